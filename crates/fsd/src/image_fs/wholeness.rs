//! Whether the bootstrap is still the file that was mapped.
//!
//! Looked at only once some mapped file has been found too short: what is missing reads as zeros then
//! (`sys/mapped.rs`), and zeros would be names that are not there, and content of other files.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use rustix::io::Errno;

use super::events::report;
use crate::sys::mapped::lost_pages;

/// An image that is not to be served any more.
#[derive(Debug, thiserror::Error)]
#[error("bootstrap {} was overwritten while it was mounted; its image fails until it is mounted again", path.display())]
struct Overwritten {
    path: PathBuf,
}

/// A mapped bootstrap.
#[derive(Debug)]
pub(super) struct Wholeness {
    path: PathBuf,
    file: File,
    /// Length and time of the last change.
    was: (u64, SystemTime),
    is_lost: AtomicBool,
}

impl Wholeness {
    /// Of the file at `path`, before it is mapped.
    ///
    /// # Errors
    /// What the file system said.
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        Ok(Self {
            path: path.to_owned(),
            was: state(&file)?,
            file,
            is_lost: AtomicBool::new(false),
        })
    }

    /// A number in it.
    ///
    /// # Errors
    /// What the file system said; the end.
    pub(super) fn le16_at(&self, at_bytes: u64) -> io::Result<u16> {
        let mut bytes = [0; 2];
        self.file.read_exact_at(&mut bytes, at_bytes)?;
        Ok(u16::from_le_bytes(bytes))
    }

    /// Reads a part of it.
    ///
    /// # Errors
    /// What the file system said; the end.
    pub(super) fn read_at(&self, into: &mut [u8], at_bytes: u64) -> io::Result<()> {
        self.file.read_exact_at(into, at_bytes)
    }

    /// # Errors
    /// EIO if it is not, for good.
    pub(super) fn check(&self) -> io::Result<()> {
        if lost_pages() == 0 {
            return Ok(());
        }
        if !self.is_lost.load(Ordering::Relaxed) {
            if state(&self.file).is_ok_and(|now| now == self.was) {
                return Ok(());
            }
            if !self.is_lost.swap(true, Ordering::Relaxed) {
                report(&Overwritten {
                    path: self.path.clone(),
                });
            }
        }
        Err(Errno::IO.into())
    }
}

fn state(file: &File) -> io::Result<(u64, SystemTime)> {
    let meta = file.metadata()?;
    Ok((meta.len(), meta.modified()?))
}
