//! From a name to an inode, one component at a time.
//!
//! Nothing here follows a symbolic link, and `..` never leads to what the guest does not know already, so that a
//! directory that is moved out of the share while a guest walks through it does not let the guest out.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use fuse_backend_rs::api::filesystem::Entry;
use rustix::fs::{FileType, Mode, OFlags, RawMode, Statx, openat};
use rustix::io::{Errno, Result};

use super::attr::{from_statx, host_id, stat_at};
use super::budget::Permit;
use super::inode::{Inode, Location};
use super::{CACHE_TIMEOUT, Share};
use crate::sys::file_handle::FileHandle;

/// `FUSE_ATTR_SUBMOUNT`: the guest makes a mount of its own of this directory.
const ATTR_SUBMOUNT: u32 = 1;

/// A name for something new: one component, and not one of the two that every directory has.
pub(super) fn component(name: &CStr) -> Result<&CStr> {
    match name.to_bytes() {
        b"" => Err(Errno::NOENT),
        b"." | b".." => Err(Errno::EXIST),
        bytes if bytes.contains(&b'/') => Err(Errno::INVAL),
        _ => Ok(name),
    }
}

pub(super) fn kind_of(stat: &Statx) -> FileType {
    FileType::from_raw_mode(RawMode::from(stat.stx_mode))
}

/// What an inode that is not known yet may take of the budget.
pub(super) enum Place {
    /// A descriptor.
    Descriptor(Permit),
    /// A handle.
    Handle(Permit),
}

impl Share {
    /// Finds a name; the guest knows the inode once more. One system call where it is known and pinned.
    pub(crate) fn lookup(&self, parent: u64, name: &CStr) -> Result<Entry> {
        let parent = self.inodes.get(parent)?;
        match name.to_bytes() {
            b"" => return Err(Errno::NOENT),
            b"." => return self.lookup_self(&parent),
            b".." => return self.lookup_parent(&parent),
            bytes if bytes.contains(&b'/') => return Err(Errno::INVAL),
            _ => {}
        }
        let (inode, stat) = self.find(&parent, parent.path_fd()?.as_fd(), name, None)?;
        Ok(self.entry(&inode, &stat, &parent))
    }

    /// Finds a name below `dir`, which is `parent`. What was made just now has its place already.
    pub(super) fn find(
        &self,
        parent: &Inode,
        dir: std::os::fd::BorrowedFd<'_>,
        name: &CStr,
        place: Option<Place>,
    ) -> Result<(Arc<Inode>, Statx)> {
        if parent.kind != FileType::Directory {
            return Err(Errno::NOTDIR);
        }
        let stat = stat_at(dir, name)?;
        if let Some(inode) = self.inodes.claim(&host_id(&stat), || FileHandle::of(dir, name)) {
            return Ok((inode, stat));
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        self.adopt(openat(dir, name, flags, Mode::empty())?, place)
    }

    /// Makes an inode of what an `O_PATH` descriptor leads to, or finds that it is one already.
    pub(super) fn adopt(&self, fd: OwnedFd, place: Option<Place>) -> Result<(Arc<Inode>, Statx)> {
        // Asked again: the name may lead elsewhere by now.
        let stat = stat_at(&fd, c"")?;
        let id = host_id(&stat);
        if let Some(inode) = self.inodes.claim(&id, || FileHandle::of(fd.as_fd(), c"")) {
            return Ok((inode, stat));
        }
        let location = self.locate(fd, &stat, place)?;
        Ok((self.inodes.insert(id, kind_of(&stat), location), stat))
    }

    /// A descriptor as long as there are plenty, because it makes everything else cheaper; then a file handle.
    fn place(&self, has_handles: impl FnOnce() -> bool) -> Result<Place> {
        let budget = &self.common.budget;
        if let Some(permit) = budget.inode() {
            return Ok(Place::Descriptor(permit));
        }
        let place = if has_handles() {
            budget.handle().map(Place::Handle)
        } else {
            budget.file().map(Place::Descriptor)
        };
        place.ok_or(Errno::NFILE)
    }

    /// A place for what is about to be made in a directory: taken before, so that nothing is made and then refused.
    pub(super) fn place_in(&self, dir: &Inode) -> Result<Place> {
        self.place(|| self.has_handles(&dir.id))
    }

    fn locate(&self, fd: OwnedFd, stat: &Statx, place: Option<Place>) -> Result<Location> {
        let place = match place {
            Some(place) => place,
            None => self.place(|| self.handle_mount(&fd, stat).is_some())?,
        };
        let permit = match place {
            Place::Descriptor(permit) => permit,
            Place::Handle(permit) => {
                if let Some(mount) = self.handle_mount(&fd, stat)
                    && let Ok(handle) = FileHandle::of(fd.as_fd(), c"")
                {
                    return Ok(Location::Handle(handle, mount, permit));
                }
                self.common.budget.file().ok_or(Errno::NFILE)?
            }
        };
        Ok(Location::Pinned(fd, Some(permit)))
    }

    /// What a guest is told of an inode that it has found below `parent`.
    pub(super) fn entry(&self, inode: &Inode, stat: &Statx, parent: &Inode) -> Entry {
        let submount = inode.kind == FileType::Directory
            && self.announces_submounts()
            && !inode.id.same_mount(&parent.id);
        let mut attr = from_statx(stat);
        attr.st_ino = inode.nodeid;
        Entry {
            inode: inode.nodeid,
            generation: 0,
            attr,
            attr_flags: if submount { ATTR_SUBMOUNT } else { 0 },
            attr_timeout: CACHE_TIMEOUT,
            entry_timeout: CACHE_TIMEOUT,
        }
    }

    fn lookup_self(&self, inode: &Arc<Inode>) -> Result<Entry> {
        if inode.kind != FileType::Directory {
            return Err(Errno::NOTDIR);
        }
        let stat = stat_at(inode.path_fd()?, c"")?;
        if inode.nodeid != self.inodes.root().nodeid && !inode.claim() {
            return Err(Errno::NOENT);
        }
        Ok(self.entry(inode, &stat, inode))
    }

    fn lookup_parent(&self, inode: &Arc<Inode>) -> Result<Entry> {
        if inode.nodeid == self.inodes.root().nodeid {
            return self.lookup_self(inode);
        }
        let dir = inode.path_fd()?;
        let stat = stat_at(&dir, c"..")?;
        let parent = self
            .inodes
            .claim(&host_id(&stat), || FileHandle::of(dir.as_fd(), c".."))
            .ok_or(Errno::NOENT)?;
        Ok(self.entry(&parent, &stat, &parent))
    }

    /// The guest forgets an inode `count` times.
    pub(crate) fn forget(&self, nodeid: u64, count: u64) {
        self.inodes.forget(nodeid, count);
    }
}
