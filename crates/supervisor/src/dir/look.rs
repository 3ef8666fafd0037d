//! A sandbox's directory looked at by somebody who has nothing to do with it: nothing is locked, changed or waited for.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, Stat};

use super::{DirError, lock, ours};

/// A directory that has a lock as sandboxes have one. It may be in use, and be gone at any time.
#[derive(Debug)]
pub struct LookedAt {
    path: PathBuf,
    dir: OwnedFd,
    stat: Stat,
    lock: OwnedFd,
}

impl LookedAt {
    /// `None` when there is no such directory, or no file in it that could be a sandbox's lock.
    pub fn new(path: impl AsRef<Path>) -> Option<Self> {
        let path = path.as_ref().to_owned();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = rustix::fs::open(&path, flags, Mode::empty()).ok()?;
        let stat = rustix::fs::fstat(&dir).ok()?;
        let lock = lock::look(&dir)?;
        Some(Self {
            path,
            dir,
            stat,
            lock,
        })
    }

    /// The lock. Whoever has the sandbox holds it (`flock(2)`).
    #[must_use]
    pub fn lock(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }

    /// The process that has the sandbox, or had it, as the lock says.
    #[must_use]
    pub fn owner(&self) -> Option<u32> {
        lock::owner(&lock::content(&self.lock))
    }

    /// Whether something shows that it is a sandbox's directory. [`crate::sweep`] leaves all others alone.
    #[must_use]
    pub fn is_sandbox(&self) -> bool {
        let checked = ours::check(&self.path, &self.dir, &self.stat, &self.lock);
        !matches!(checked, Err(DirError::Foreign { .. }))
    }
}
