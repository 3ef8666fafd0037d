//! How many descriptors guests may cost, how many inodes they may know, and how many directories they may be in the
//! middle of.
//!
//! One budget for all shares of a daemon, taken from `RLIMIT_NOFILE` with room left for the daemon itself: its
//! sockets, guest memory, blob caches. A guest that has used it up is answered ENFILE; the daemon works on.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::process::{Resource, getrlimit};

/// Descriptors kept for the daemon: 509 regions of guest memory, two for each queue, one for each worker's passing
/// needs, sockets, and the blobs of 255 images with their caches.
const RESERVED: usize = 2048;
/// More than this is never given to inodes: each pins a dentry and an inode of the host.
const MOST_INODES: usize = 256 * 1024;
/// Inodes kept by handle: some 300 bytes of memory each.
const MOST_HANDLES: usize = 2 << 20;
/// Directories of which entries are kept between two requests: some 100 KiB each.
const MOST_LISTINGS: usize = 256;

/// What is left of one kind.
#[derive(Debug)]
struct Counter(AtomicUsize);

/// One descriptor or directory of the budget; it goes back when dropped.
#[derive(Debug)]
pub(crate) struct Permit(Arc<Counter>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Counter {
    fn take(self: &Arc<Self>) -> Option<Permit> {
        self.0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
            .is_ok()
            .then(|| Permit(Arc::clone(self)))
    }
}

/// The descriptors that guests may cost.
#[derive(Debug)]
pub(crate) struct Budget {
    files: Arc<Counter>,
    inodes: Arc<Counter>,
    handles: Arc<Counter>,
    listings: Arc<Counter>,
}

impl Budget {
    /// So many open files and directories, so many inodes that are kept by descriptor, and so many by handle.
    pub(crate) fn new(files: usize, inodes: usize, handles: usize) -> Self {
        let counter = |n| Arc::new(Counter(AtomicUsize::new(n)));
        Self {
            files: counter(files),
            inodes: counter(inodes),
            handles: counter(handles),
            listings: counter(MOST_LISTINGS),
        }
    }

    /// Half of what this process may open for files, half for inodes, after the daemon's own needs.
    pub(crate) fn of_process() -> Self {
        let limit = getrlimit(Resource::Nofile)
            .current
            .and_then(|limit| usize::try_from(limit).ok())
            .unwrap_or(usize::MAX / 2);
        // Where the limit is low, half of it has to do for the daemon.
        let guest = limit.saturating_sub(RESERVED).max(limit / 2);
        Self::new(guest / 2, (guest / 2).min(MOST_INODES), MOST_HANDLES)
    }

    /// For an open file or directory.
    pub(super) fn file(&self) -> Option<Permit> {
        self.files.take()
    }

    /// For entries of a directory that are kept.
    pub(super) fn listing(&self) -> Option<Permit> {
        self.listings.take()
    }

    /// For an inode that is kept by handle, without a descriptor.
    pub(super) fn handle(&self) -> Option<Permit> {
        self.handles.take()
    }

    /// For an inode.
    pub(super) fn inode(&self) -> Option<Permit> {
        self.inodes.take()
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn what_is_dropped_can_be_had_again() {
        let budget = Budget::new(1, 0, 0);
        let permit = budget.file().unwrap();
        assert!(budget.file().is_none());
        drop(permit);
        assert!(budget.file().is_some());
        assert!(budget.inode().is_none() && budget.handle().is_none());
    }
}
