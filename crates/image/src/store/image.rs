//! An image that is ready to be served.

use std::fs::File;
use std::path::PathBuf;

use crate::config::FsVersion;
use crate::source::{Digest, ImageConfiguration, ImageRef, Platform};

/// An image that is ready to be served. While this lives, the image is not removed from the store by anybody.
#[derive(Debug)]
#[non_exhaustive]
pub struct StoredImage {
    /// What was asked for, with an absolute path.
    pub reference: ImageRef,
    /// Of the manifest of the image in nydus' form; none for what [`build`](crate::build()) made.
    pub digest: Option<Digest>,
    /// What it was made for.
    pub platform: Platform,
    /// Which command it has, for which user and so on; empty for what [`build`](crate::build()) made.
    pub config: ImageConfiguration,
    /// What gets mounted.
    pub bootstrap: PathBuf,
    /// Version of the RAFS format.
    pub fs_version: FsVersion,
    /// Where the data is.
    pub data: ImageData,
    /// The data as it is stored, in bytes.
    pub data_bytes: u64,
    pub(super) id: String,
    /// Locked, shared.
    pub(super) _guard: Option<File>,
}

/// Where the blobs of an image are.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ImageData {
    /// On this host, under their ids.
    Local {
        /// The directory.
        blob_dir: PathBuf,
    },
    /// In a registry; they are fetched as they are read.
    Remote {
        /// The image there.
        reference: ImageRef,
    },
}

impl StoredImage {
    /// A name for the image that is the same each time: the hexadecimal part of its digest, or of one of its blobs.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }
}
