//! An image directory on disk: its layout, its summary file, and the check that it is whole.
//!
//! Never looks inside bootstrap or blobs; a daemon does that when it serves them. How one is made is in
//! `build.rs`, how it is described to a daemon in `rafs_config.rs`.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::config::FsVersion;
use crate::error::BuildError;
use crate::staging::Staging;
use crate::summary::BuildSummary;
use crate::{BLOB_DIR, BOOTSTRAP_FILE, SUMMARY_FILE};

/// The version of `image.json` that is written, and the only one there has been.
const SUMMARY_VERSION: u32 = 1;

/// What `image.json` holds.
#[derive(Debug, Serialize, Deserialize)]
struct SummaryFile {
    version: u32,
    image: BuildSummary,
}

/// Read before anything else, so that another version is not taken for a damaged file.
#[derive(Debug, Deserialize)]
struct SummaryVersion {
    version: u32,
}

/// An image directory that was found complete.
#[derive(Debug, Clone)]
pub struct ImageDir {
    path: PathBuf,
    summary: BuildSummary,
}

impl ImageDir {
    /// Opens the image directory at `path`: its summary is read, and the files it names are there in the
    /// size it gives. Their content isn't read.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let not_an_image = || OpenError::NotAnImageDir {
            path: path.to_owned(),
        };
        let unreadable = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => not_an_image(),
            _ => OpenError::Unreadable {
                path: path.to_owned(),
                source,
            },
        };
        // Absolute, because a daemon that is told of it may run in another directory.
        let dir = path.canonicalize().map_err(unreadable)?;
        let text = fs::read(dir.join(SUMMARY_FILE)).map_err(unreadable)?;
        let damaged = |source| OpenError::DamagedSummary {
            path: dir.join(SUMMARY_FILE),
            source,
        };
        let SummaryVersion { version } = serde_json::from_slice(&text).map_err(damaged)?;
        if version != SUMMARY_VERSION {
            return Err(OpenError::UnknownVersion { path: dir, version });
        }
        let SummaryFile { image: summary, .. } = serde_json::from_slice(&text).map_err(damaged)?;

        check_size(&dir.join(BOOTSTRAP_FILE), summary.bootstrap_bytes)?;
        for blob in &summary.blobs {
            check_size(&dir.join(BLOB_DIR).join(&blob.id), blob.compressed_bytes)?;
        }
        Ok(Self { path: dir, summary })
    }

    /// The directory's absolute path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The bootstrap, which is what gets mounted.
    #[must_use]
    pub fn bootstrap(&self) -> PathBuf {
        self.path.join(BOOTSTRAP_FILE)
    }

    /// The directory of blobs.
    #[must_use]
    pub fn blob_dir(&self) -> PathBuf {
        self.path.join(BLOB_DIR)
    }

    /// What is in the image.
    #[must_use]
    pub fn summary(&self) -> &BuildSummary {
        &self.summary
    }

    /// Version of the RAFS format.
    #[must_use]
    pub fn fs_version(&self) -> FsVersion {
        self.summary.fs_version
    }
}

fn check_size(path: &Path, expected_bytes: u64) -> Result<(), OpenError> {
    match fs::metadata(path) {
        Ok(meta) if meta.is_file() && meta.len() == expected_bytes => Ok(()),
        Ok(meta) if meta.is_file() => Err(OpenError::WrongSize {
            path: path.to_owned(),
            expected_bytes,
            found_bytes: meta.len(),
        }),
        Ok(_) => Err(OpenError::Missing {
            path: path.to_owned(),
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(OpenError::Missing {
            path: path.to_owned(),
        }),
        Err(source) => Err(OpenError::Unreadable {
            path: path.to_owned(),
            source,
        }),
    }
}

/// Moves what belongs to the image out of the builder's working directory; whatever else the builder left
/// there (it always writes an empty second bootstrap for external blobs) stays behind and goes with it.
pub(crate) fn fill(staging: &Staging, summary: &BuildSummary) -> Result<(), BuildError> {
    let moved = |from: &Path, to: &Path| {
        File::open(from)
            .and_then(|file| file.sync_all())
            .and_then(|()| fs::rename(from, to))
            .map_err(|source| BuildError::output(to, source))
    };
    let blobs = staging.image().join(BLOB_DIR);
    fs::create_dir(&blobs).map_err(|source| BuildError::output(&blobs, source))?;
    for blob in &summary.blobs {
        moved(&staging.work_blobs().join(&blob.id), &blobs.join(&blob.id))?;
    }
    moved(&staging.work_bootstrap(), &staging.image().join(BOOTSTRAP_FILE))?;
    write_summary(&staging.image(), summary)
}

/// Writes and syncs `image.json` in `dir`.
fn write_summary(dir: &Path, summary: &BuildSummary) -> Result<(), BuildError> {
    let path = dir.join(SUMMARY_FILE);
    let content = SummaryFile {
        version: SUMMARY_VERSION,
        image: summary.clone(),
    };
    let write = || {
        let mut text = serde_json::to_vec_pretty(&content)?;
        text.push(b'\n');
        let mut file = File::create(&path)?;
        file.write_all(&text)?;
        file.sync_all()
    };
    write().map_err(|source| BuildError::output(&path, source))
}

/// Why a directory can't be used as an image.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OpenError {
    /// It isn't there, or has no `image.json`.
    #[error("{} is not an image directory", path.display())]
    NotAnImageDir {
        /// The path that was given.
        path: PathBuf,
    },
    /// Something in it can't be looked at.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// What can't be read.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// `image.json` isn't what was written.
    #[error("{} is damaged", path.display())]
    DamagedSummary {
        /// The summary file.
        path: PathBuf,
        /// Where it goes wrong.
        #[source]
        source: serde_json::Error,
    },
    /// Made by a version of this program that doesn't exist yet.
    #[error("image directory {} is of version {version}, which is not known here", path.display())]
    UnknownVersion {
        /// The directory.
        path: PathBuf,
        /// The version it says it is of.
        version: u32,
    },
    /// The bootstrap or a blob isn't there.
    #[error("image is incomplete: {} is missing", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The bootstrap or a blob was cut, or added to.
    #[error("image is damaged: {} has {found_bytes} bytes instead of {expected_bytes}", path.display())]
    WrongSize {
        /// The file.
        path: PathBuf,
        /// Its size when the image was built.
        expected_bytes: u64,
        /// Its size now.
        found_bytes: u64,
    },
}
