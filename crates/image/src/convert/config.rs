//! What can be asked of a conversion. Every value here is valid once it exists.

use std::path::PathBuf;
use std::str::FromStr;

use serde::Serialize;

use crate::config::{RafsFormat, UnknownName};
use crate::source::Platform;

/// Where the data of a converted image is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// In blobs made of the layers.
    #[default]
    Native,
    /// In the original layers, which stay as they are; only an index of each is made. RAFS v6 only. A layer that
    /// can't be indexed ([`Unindexed`](crate::Unindexed)) is converted as in native mode.
    Reference,
}

impl FromStr for Mode {
    type Err = UnknownName;

    fn from_str(s: &str) -> Result<Self, UnknownName> {
        match s {
            "native" => Ok(Self::Native),
            "ref" => Ok(Self::Reference),
            _ => Err(UnknownName {
                found: s.to_owned(),
                expected: "native, ref",
            }),
        }
    }
}

/// How an image is converted. See [`convert`](crate::convert()).
#[derive(Debug, Clone)]
pub struct ConvertConfig {
    pub(crate) platform: Platform,
    pub(crate) mode: Mode,
    pub(crate) format: RafsFormat,
    pub(crate) chunk_dict: Option<PathBuf>,
    pub(crate) work_dir: Option<PathBuf>,
}

impl ConvertConfig {
    /// A conversion of the image for `platform`, to RAFS v6 with zstd and chunks of 1 MiB.
    #[must_use]
    pub fn new(platform: Platform) -> Self {
        Self {
            platform,
            mode: Mode::default(),
            format: RafsFormat::default(),
            chunk_dict: None,
            work_dir: None,
        }
    }

    /// Sets where the data is.
    #[must_use]
    pub fn mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// Sets the format; RAFS v6 with zstd and chunks of 1 MiB unless set. What is in original layers
    /// stays as it is compressed.
    #[must_use]
    pub fn format(mut self, format: RafsFormat) -> Self {
        self.format = format;
        self
    }

    /// Sets the bootstrap of an image whose chunks are not stored again, but for those in original layers. Its blobs have to be where the image is
    /// written to.
    #[must_use]
    pub fn chunk_dict(mut self, bootstrap: Option<PathBuf>) -> Self {
        self.chunk_dict = bootstrap;
        self
    }

    /// Sets where blobs are made before they are written; the system's temporary directory if `None`. As much
    /// room as the image takes is needed there.
    #[must_use]
    pub fn work_dir(mut self, dir: Option<PathBuf>) -> Self {
        self.work_dir = dir;
        self
    }
}
