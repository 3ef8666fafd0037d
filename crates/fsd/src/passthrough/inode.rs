//! One inode that the guest knows, and how we get at it.
//!
//! It is kept by an `O_PATH` descriptor, which pins it, or by a file handle, which costs nothing while it is not
//! used. A handle names one file for ever, but its inode number may be given to another file once it is gone.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FileType, Mode, OFlags, openat};
use rustix::io::{Errno, Result};
use rustix::path::DecInt;

use super::budget::Permit;
use crate::sys::file_handle::FileHandle;

/// What the host calls an inode. Unique among those that exist at one time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct HostId {
    pub(super) dev: u64,
    pub(super) ino: u64,
    /// Two mounts of one file system are two places to a guest.
    pub(super) mount: u64,
}

impl HostId {
    pub(super) fn same_mount(&self, other: &Self) -> bool {
        (self.dev, self.mount) == (other.dev, other.mount)
    }
}

/// How an inode is kept.
#[derive(Debug)]
pub(super) enum Location {
    /// Held open, with `O_PATH`.
    Pinned(
        OwnedFd,
        #[expect(dead_code, reason = "held for its drop")] Option<Permit>,
    ),
    /// By file handle, on the file system of this directory.
    Handle(
        FileHandle,
        Arc<OwnedFd>,
        #[expect(dead_code, reason = "held for its drop")] Permit,
    ),
}

/// `/proc/self/fd`, through which an `O_PATH` descriptor becomes one that can be read.
#[derive(Debug)]
pub(super) struct ProcFd(OwnedFd);

impl ProcFd {
    pub(super) fn open() -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(c"/proc/self/fd", flags, Mode::empty()).map(Self)
    }

    /// Opens the file behind a descriptor anew.
    pub(super) fn reopen(&self, fd: impl AsFd, flags: OFlags) -> Result<OwnedFd> {
        openat(
            &self.0,
            DecInt::from_fd(&fd),
            flags | OFlags::CLOEXEC,
            Mode::empty(),
        )
    }
}

impl AsFd for ProcFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// An `O_PATH` descriptor of an inode, held or opened for the occasion.
#[derive(Debug)]
pub(super) enum PathFd<'a> {
    Held(BorrowedFd<'a>),
    Opened(OwnedFd),
}

impl AsFd for PathFd<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Held(fd) => *fd,
            Self::Opened(fd) => fd.as_fd(),
        }
    }
}

/// An inode that the guest has looked up.
#[derive(Debug)]
pub(super) struct Inode {
    /// Its number to the guest.
    pub(super) nodeid: u64,
    pub(super) id: HostId,
    pub(super) kind: FileType,
    location: Location,
    /// How often the guest was told of it and did not forget. From 0 it never comes back.
    lookups: AtomicU64,
}

impl Inode {
    /// An inode that is known once.
    pub(super) fn new(nodeid: u64, id: HostId, kind: FileType, location: Location) -> Self {
        Self {
            nodeid,
            id,
            kind,
            location,
            lookups: AtomicU64::new(1),
        }
    }

    /// Counts one more lookup, unless the last was just forgotten.
    pub(super) fn claim(&self) -> bool {
        self.lookups
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| (n > 0).then(|| n + 1))
            .is_ok()
    }

    /// Whether the guest has not forgotten it.
    pub(super) fn is_known(&self) -> bool {
        self.lookups.load(Ordering::Acquire) > 0
    }

    /// Takes lookups back; true when none is left. A guest that forgets too often forgets all.
    pub(super) fn forget(&self, count: u64) -> bool {
        let mut now = self.lookups.load(Ordering::Acquire);
        loop {
            if now == 0 {
                return false;
            }
            let left = now.saturating_sub(count);
            match self
                .lookups
                .compare_exchange_weak(now, left, Ordering::AcqRel, Ordering::Acquire)
            {
                Ok(_) => return left == 0,
                Err(other) => now = other,
            }
        }
    }

    /// A descriptor to look at it and below it, not to read it.
    pub(super) fn path_fd(&self) -> Result<PathFd<'_>> {
        match &self.location {
            Location::Pinned(fd, _) => Ok(PathFd::Held(fd.as_fd())),
            Location::Handle(handle, mount, _) => handle
                .open(mount.as_fd(), OFlags::PATH | OFlags::CLOEXEC)
                .map(PathFd::Opened),
        }
    }

    /// Opens a regular file or a directory. Anything else would be opened for what is behind it: a device, or a pipe
    /// that makes us wait.
    pub(super) fn open(&self, proc: &ProcFd, flags: OFlags) -> Result<OwnedFd> {
        match (self.kind, &self.location) {
            (FileType::RegularFile | FileType::Directory, Location::Pinned(fd, _)) => proc.reopen(fd, flags),
            (FileType::RegularFile | FileType::Directory, Location::Handle(handle, mount, _)) => {
                handle.open(mount.as_fd(), flags | OFlags::CLOEXEC)
            }
            (FileType::Symlink, _) => Err(Errno::LOOP),
            _ => Err(Errno::BADF),
        }
    }

    /// Whether this is the very file that the host calls `self.id` now and that has this handle.
    pub(super) fn is(&self, handle: impl FnOnce() -> Result<FileHandle>) -> bool {
        match &self.location {
            // While it is held its number is not given to another.
            Location::Pinned(..) => true,
            Location::Handle(ours, ..) => handle().is_ok_and(|theirs| theirs == *ours),
        }
    }
}

impl Location {
    /// The handle, made if need be.
    pub(super) fn handle(&self) -> Result<FileHandle> {
        match self {
            Self::Pinned(fd, _) => FileHandle::of(fd.as_fd(), c""),
            Self::Handle(handle, ..) => Ok(handle.clone()),
        }
    }
}
