//! The configuration with which a daemon serves an image: ConfigV2 JSON.
//!
//! Only writes the text; mounting with it is the supervisor's.

use std::path::{Path, PathBuf};

use serde_json::json;
use thiserror::Error;

use crate::source::RegistryBackend;

/// Where a daemon finds an image's blobs.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum BlobsAt<'a> {
    /// In a directory, under their ids.
    Directory(&'a Path),
    /// In a registry, from which they are fetched as they are read.
    Registry(&'a RegistryBackend),
}

/// How a daemon is to serve an image.
#[derive(Debug, Clone, Copy)]
pub struct RafsConfig<'a> {
    /// The configuration's id. Give each image its own: the daemon's cache metrics are kept by it.
    pub id: &'a str,
    /// Where the blobs are.
    pub blobs: BlobsAt<'a>,
    /// Where decompressed chunks are kept; made by the daemon if it isn't there. Several images may share one.
    pub cache_dir: &'a Path,
    /// Whether the files that the image itself names for it are fetched before they are read.
    pub prefetch: bool,
}

impl RafsConfig<'_> {
    /// The configuration (ConfigV2, JSON); extended attributes are served. It has a registry's credentials in it.
    ///
    /// # Errors
    /// When a path is not UTF-8: JSON can't carry it.
    pub fn to_json(&self) -> Result<String, RafsConfigError> {
        let backend = match self.blobs {
            BlobsAt::Directory(dir) => json!({ "type": "localfs", "localfs": { "dir": utf8(dir)? } }),
            BlobsAt::Registry(registry) => json!({ "type": "registry", "registry": registry }),
        };
        // Its batch size is also the unit of merging reads, and nydusd divides by it.
        let prefetch = json!({
            "enable": self.prefetch,
            "threads": 8,
            "batch_size": 1 << 20,
            "bandwidth_limit": 0,
            "prefetch_all": false,
        });
        let config = json!({
            "version": 2,
            "id": self.id,
            "backend": backend,
            "cache": {
                "type": "blobcache",
                "compressed": false,
                "validate": false,
                "prefetch": prefetch,
                "filecache": { "work_dir": utf8(self.cache_dir)? },
            },
            "rafs": {
                "mode": "direct",
                "batch_size": 1 << 20,
                "validate": false,
                "enable_xattr": true,
                "prefetch": prefetch,
            },
        });
        Ok(config.to_string())
    }
}

fn utf8(path: &Path) -> Result<&str, RafsConfigError> {
    path.to_str().ok_or_else(|| RafsConfigError {
        path: path.to_owned(),
    })
}

/// A path that a daemon's configuration can't name.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("path {} is not UTF-8 and cannot be written into a daemon configuration", path.display())]
#[non_exhaustive]
pub struct RafsConfigError {
    /// The path.
    pub path: PathBuf,
}
