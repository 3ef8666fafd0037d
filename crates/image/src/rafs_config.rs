//! The configuration with which a daemon serves an image directory: ConfigV2 JSON, local backend.
//!
//! Only writes the text; mounting with it is the supervisor's.

use std::path::{Path, PathBuf};

use serde_json::json;
use thiserror::Error;

use crate::image_dir::ImageDir;

/// The daemon configuration (ConfigV2, JSON) for `image`: blobs from its blob directory, decompressed
/// chunks kept in `cache_dir` (made by the daemon if it isn't there; several images may share one), extended
/// attributes served, nothing fetched before it is read.
///
/// `id` becomes the configuration's id; give each mount its own, the daemon's cache metrics are kept by it.
///
/// # Errors
/// When a path is not UTF-8: JSON can't carry it.
pub fn rafs_config(image: &ImageDir, id: &str, cache_dir: &Path) -> Result<String, RafsConfigError> {
    local_rafs_config(&image.blob_dir(), id, cache_dir)
}

/// The same for any image whose blobs are in `blob_dir` under their ids.
///
/// # Errors
/// When a path is not UTF-8: JSON can't carry it.
pub fn local_rafs_config(blob_dir: &Path, id: &str, cache_dir: &Path) -> Result<String, RafsConfigError> {
    // Fetching is off, but its batch size is also the unit of merging reads, and nydusd divides by it.
    let prefetch = json!({
        "enable": false, "threads": 8, "batch_size": 1 << 20, "bandwidth_limit": 0, "prefetch_all": false,
    });
    let config = json!({
        "version": 2,
        "id": id,
        "backend": { "type": "localfs", "localfs": { "dir": utf8(blob_dir)? } },
        "cache": {
            "type": "blobcache",
            "compressed": false,
            "validate": false,
            "prefetch": prefetch,
            "filecache": { "work_dir": utf8(cache_dir)? },
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
