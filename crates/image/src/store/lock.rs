//! Locks of the store: waiting for them can be given up, and is told.

use std::fs::{File, OpenOptions};
use std::path::Path;
use std::thread;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::StoreError;
use crate::progress::{Phase, Progress};

/// How often a lock that somebody has is tried: waiting in the kernel could not be given up.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// For adding: others may add, too.
pub(super) fn shared(path: &Path, progress: &dyn Progress) -> Result<File, StoreError> {
    wait(path, FlockOperation::NonBlockingLockShared, progress)
}

/// For one alone.
pub(super) fn exclusive(path: &Path, progress: &dyn Progress) -> Result<File, StoreError> {
    wait(path, FlockOperation::NonBlockingLockExclusive, progress)
}

/// For one alone, if nobody has it.
pub(super) fn try_exclusive(path: &Path) -> Result<Option<File>, StoreError> {
    let file = open(path)?;
    let got = attempt(&file, FlockOperation::NonBlockingLockExclusive, path)?;
    Ok(got.then_some(file))
}

fn wait(path: &Path, operation: FlockOperation, progress: &dyn Progress) -> Result<File, StoreError> {
    let file = open(path)?;
    if attempt(&file, operation, path)? {
        return Ok(file);
    }
    progress.begin(Phase::Wait, None);
    loop {
        if progress.is_cancelled() {
            return Err(StoreError::Cancelled);
        }
        thread::sleep(RETRY_INTERVAL);
        if attempt(&file, operation, path)? {
            return Ok(file);
        }
    }
}

fn attempt(file: &File, operation: FlockOperation, path: &Path) -> Result<bool, StoreError> {
    match flock(file, operation) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(errno) => Err(StoreError::io(path, errno.into())),
    }
}

fn open(path: &Path) -> Result<File, StoreError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(|source| StoreError::io(path, source))
}
