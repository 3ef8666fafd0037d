//! A host directory, shared with the guest.
//!
//! [`Share`] holds what the guest knows: the inodes it has looked up (`inodes.rs`, `inode.rs`) and the files it has
//! open (`files.rs`). What can be done with them is in the other files, one idea in each; `filesystem.rs` is how the
//! FUSE library calls it. Semantics are those of virtiofsd with `--cache auto`: nothing a guest sends leads out of
//! the directory, makes us open what is no file or directory, or has us act as another user for longer than one call.

mod attr;
mod budget;
mod create;
mod credentials;
mod data;
mod directory;
mod files;
mod filesystem;
mod inode;
mod inodes;
mod lookup;
mod names;
mod slots;
mod xattr;
mod xattr_map;

#[cfg(test)]
mod bounds_tests;
#[cfg(test)]
mod directory_tests;
#[cfg(test)]
mod tests;

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use rustix::fs::{FileType, Mode, OFlags, Statx, open};
use rustix::io::{Errno, Result};

use self::attr::{host_id, stat_at};
pub(crate) use self::budget::Budget;
pub(crate) use self::credentials::with_groups;
use self::files::Files;
pub(crate) use self::filesystem::MountedShare;
use self::inode::{HostId, Location, ProcFd};
use self::inodes::Inodes;
pub(crate) use self::xattr_map::{XattrMap, XattrMapError};
use crate::sys::file_handle::FileHandle;

/// How long a guest may believe attributes and names. The host may change the directory at any time, so it is short;
/// virtiofsd has the same for its `auto` cache mode.
const CACHE_TIMEOUT: Duration = Duration::from_secs(1);

/// What is decided about a share when it is mounted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ShareOptions {
    /// The guest can change nothing: EROFS.
    pub(crate) read_only: bool,
    /// Other names for extended attributes on the host.
    pub(crate) xattrmap: Option<XattrMap>,
}

/// What all shares of a daemon have in common.
#[derive(Debug)]
pub(crate) struct Common {
    /// The descriptors that guests may cost.
    pub(crate) budget: Budget,
    /// The guest sends supplementary groups along (`FUSE_CREATE_SUPP_GROUP`).
    pub(crate) knows_groups: AtomicBool,
    /// The guest makes a mount of its own of a directory that is one on the host (`FUSE_SUBMOUNTS`).
    pub(crate) knows_submounts: AtomicBool,
}

impl Default for Common {
    fn default() -> Self {
        Self {
            budget: Budget::of_process(),
            knows_groups: AtomicBool::new(false),
            knows_submounts: AtomicBool::new(false),
        }
    }
}

/// A host directory as the guest sees it.
pub(crate) struct Share {
    options: ShareOptions,
    common: Arc<Common>,
    proc: ProcFd,
    /// The directory, open for real: what its file system is synced through, and handles are opened by.
    root_dir: Arc<OwnedFd>,
    /// Directories like it on file systems below, for as long as an inode there is kept by handle.
    handle_mounts: Mutex<Vec<(HostId, Weak<OwnedFd>)>>,
    /// Handles of the share's file system can be opened.
    handles_work: bool,
    inodes: Inodes,
    files: Files,
}

impl std::fmt::Debug for Share {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Share")
            .field("options", &self.options)
            .field("root", self.inodes.root())
            .finish_non_exhaustive()
    }
}

impl Share {
    /// Shares a directory.
    ///
    /// # Errors
    /// It is none, cannot be listed, or /proc is not there.
    pub(crate) fn new(path: &Path, options: ShareOptions, common: Arc<Common>) -> Result<Self> {
        // Whether it can be listed shows now, not when the guest looks.
        let root_dir = open(
            path,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let proc = ProcFd::open()?;
        let pinned = proc.reopen(&root_dir, OFlags::PATH)?;
        let stat = stat_at(&pinned, c"")?;
        let handles_work = FileHandle::of(root_dir.as_fd(), c"")
            .and_then(|handle| handle.open(root_dir.as_fd(), OFlags::PATH | OFlags::CLOEXEC))
            .is_ok();
        Ok(Self {
            options,
            common,
            proc,
            root_dir: Arc::new(root_dir),
            handle_mounts: Mutex::default(),
            handles_work,
            inodes: Inodes::new(host_id(&stat), Location::Pinned(pinned, None)),
            files: Files::default(),
        })
    }

    /// The number of the directory itself.
    pub(crate) fn root(&self) -> u64 {
        self.inodes.root().nodeid
    }

    /// Closes and forgets everything the guest has open or knows.
    fn reset(&self) {
        self.files.clear();
        self.inodes.clear();
    }

    /// # Errors
    /// `ROFS` on a share that the guest may only read.
    fn writable(&self) -> Result<()> {
        if self.options.read_only {
            Err(Errno::ROFS)
        } else {
            Ok(())
        }
    }

    fn announces_submounts(&self) -> bool {
        self.common.knows_submounts.load(Ordering::Relaxed)
    }

    fn knows_groups(&self) -> bool {
        self.common.knows_groups.load(Ordering::Relaxed)
    }

    /// Whether inodes of a file system are kept by handle, as far as that is known.
    fn has_handles(&self, id: &HostId) -> bool {
        if !self.handles_work {
            return false;
        }
        let mounts = || self.handle_mounts.lock().unwrap_or_else(PoisonError::into_inner);
        id.same_mount(&self.inodes.root().id)
            || mounts()
                .iter()
                .any(|(mount, dir)| mount.same_mount(id) && dir.strong_count() > 0)
    }

    /// A directory through which handles of the file system of `fd` can be opened; `None` where they cannot.
    fn handle_mount(&self, fd: &OwnedFd, stat: &Statx) -> Option<Arc<OwnedFd>> {
        if !self.handles_work {
            return None;
        }
        let id = host_id(stat);
        if id.same_mount(&self.inodes.root().id) {
            return Some(Arc::clone(&self.root_dir));
        }
        let mut mounts = self.handle_mounts.lock().unwrap_or_else(PoisonError::into_inner);
        mounts.retain(|(_, dir)| dir.strong_count() > 0);
        if let Some(dir) = mounts.iter().find(|(mount, _)| mount.same_mount(&id)) {
            return dir.1.upgrade();
        }
        // Only a directory can be opened without a thought; a file of that mount stays pinned until one was met.
        if lookup::kind_of(stat) != FileType::Directory {
            return None;
        }
        let dir = self.proc.reopen(fd, OFlags::RDONLY | OFlags::DIRECTORY).ok()?;
        let handle = FileHandle::of(dir.as_fd(), c"").ok()?;
        handle.open(dir.as_fd(), OFlags::PATH | OFlags::CLOEXEC).ok()?;
        let dir = Arc::new(dir);
        mounts.push((id, Arc::downgrade(&dir)));
        Some(dir)
    }
}
