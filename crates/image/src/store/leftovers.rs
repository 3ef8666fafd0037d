//! What only a process that was killed leaves in the store: files and directories that are not complete.
//!
//! For those who have the store's lock alone: as long as anybody adds, nobody can tell.

use std::ffi::OsStr;
use std::fs::{self, DirEntry};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::{Store, StoreError};
use crate::source::blob_dir::PARTIAL_PREFIX;

impl Store {
    /// Removes them.
    pub(super) fn remove_leftovers(&self) -> Result<(), StoreError> {
        for path in self.leftovers()? {
            tracing::debug!(path = %path.display(), "removing what an interrupted process left");
            remove(&path)?;
        }
        Ok(())
    }

    /// Finds them.
    pub(super) fn leftovers(&self) -> Result<Vec<PathBuf>, StoreError> {
        let mut found: Vec<_> = entries(&self.work())?.iter().map(DirEntry::path).collect();
        let mut dirs = vec![self.path.clone(), self.path.join("refs"), self.bootstraps()];
        for parent in [self.path.join("blobs"), self.layers()] {
            dirs.extend(entries(&parent)?.iter().map(DirEntry::path));
        }
        for dir in dirs {
            let partial = entries(&dir)?
                .into_iter()
                .filter(|entry| is_partial(&entry.file_name()));
            found.extend(partial.map(|entry| entry.path()));
        }
        Ok(found)
    }
}

pub(super) fn is_partial(name: &OsStr) -> bool {
    name.as_bytes().starts_with(PARTIAL_PREFIX.as_bytes())
}

/// What is in a directory; nothing if it isn't there.
pub(super) fn entries(dir: &Path) -> Result<Vec<DirEntry>, StoreError> {
    let failed = |source| StoreError::io(dir, source);
    match fs::read_dir(dir) {
        Ok(entries) => entries.collect::<io::Result<_>>().map_err(failed),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(failed(source)),
    }
}

/// Removes a file or a directory; one that is gone is fine.
pub(super) fn remove(path: &Path) -> Result<(), StoreError> {
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StoreError::io(path, error)),
        Ok(()) | Err(_) => Ok(()),
    }
}
