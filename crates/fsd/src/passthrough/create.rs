//! New files, directories, links and special files.
//!
//! Each is made as the process in the guest that asks for it (`credentials.rs`), in one directory, under one name.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};

use fuse_backend_rs::abi::fuse_abi::CreateIn;
use fuse_backend_rs::api::filesystem::{Context, Entry};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, linkat, mkdirat, mknodat, openat, symlinkat};
use rustix::io::{Errno, Result};
use rustix::path::DecInt;

use super::Share;
use super::attr::stat_at;
use super::budget::Permit;
use super::credentials::Acting;
use super::data::{changes, host_flags};
use super::files::OpenFile;
use super::inode::Inode;
use super::lookup::{Place, component};

/// Permissions only; the umask has been applied by the guest.
fn permissions(mode: u32) -> Mode {
    Mode::from_raw_mode(mode & 0o7777)
}

impl Share {
    fn acting_for(&self, ctx: &Context) -> Result<Acting> {
        Acting::of(ctx.uid, ctx.gid, self.knows_groups())
    }

    /// Makes and opens a file; opens it if it is there and the guest does not insist. Returns its handle too.
    pub(crate) fn create(
        &self,
        ctx: &Context,
        parent: u64,
        name: &CStr,
        args: &CreateIn,
    ) -> Result<(Entry, u64)> {
        self.writable()?;
        let name = component(name)?;
        let parent = self.inodes.get(parent)?;
        let dir = parent.path_fd()?;
        // Before anything has happened: with nothing left for it, it isn't made.
        let permit = self.common.budget.file().ok_or(Errno::NFILE)?;
        let place = self.place_in(&parent)?;
        let flags = host_flags(args.flags);
        let made = {
            let _acting = self.acting_for(ctx)?;
            // Exclusively: a file of somebody else's is opened below, as the guest's kernel has allowed it.
            let flags = flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
            openat(&dir, name, flags, permissions(args.mode))
        };
        match made {
            Ok(fd) => self.keep(&parent, fd, changes(flags), permit, place),
            Err(Errno::EXIST) if !OFlags::from_bits_retain(args.flags).contains(OFlags::EXCL) => {
                drop((permit, place));
                let (inode, stat) = self.find(&parent, dir.as_fd(), name, None)?;
                match self.open(inode.nodeid, args.flags, args.fuse_flags) {
                    Ok(handle) => Ok((self.entry(&inode, &stat, &parent), handle)),
                    Err(error) => {
                        self.inodes.forget(inode.nodeid, 1);
                        Err(error)
                    }
                }
            }
            Err(error) => Err(error),
        }
    }

    /// Makes and opens a file that has no name yet.
    pub(crate) fn tmpfile(&self, ctx: &Context, parent: u64, args: &CreateIn) -> Result<(Entry, u64)> {
        self.writable()?;
        let parent = self.inodes.get(parent)?;
        let dir = parent.path_fd()?;
        let permit = self.common.budget.file().ok_or(Errno::NFILE)?;
        let place = self.place_in(&parent)?;
        // With O_EXCL it never gets a name.
        let exclusive = OFlags::from_bits_retain(args.flags) & OFlags::EXCL;
        let flags = host_flags(args.flags) - OFlags::TRUNC;
        let fd = {
            let _acting = self.acting_for(ctx)?;
            openat(
                &dir,
                c".",
                flags | exclusive | OFlags::TMPFILE,
                permissions(args.mode),
            )?
        };
        self.keep(&parent, fd, true, permit, place)
    }

    /// Gives a file that was just made its inode and its handle.
    fn keep(
        &self,
        parent: &Inode,
        fd: OwnedFd,
        writable: bool,
        permit: Permit,
        place: Place,
    ) -> Result<(Entry, u64)> {
        let (inode, stat) = self.adopt(self.proc.reopen(&fd, OFlags::PATH)?, Some(place))?;
        match self
            .files
            .insert(OpenFile::file(inode.nodeid, fd, writable, permit))
        {
            Ok(handle) => Ok((self.entry(&inode, &stat, parent), handle)),
            Err(error) => {
                self.inodes.forget(inode.nodeid, 1);
                Err(error)
            }
        }
    }

    /// Makes a directory.
    pub(crate) fn mkdir(&self, ctx: &Context, parent: u64, name: &CStr, mode: u32) -> Result<Entry> {
        self.make(ctx, parent, name, |dir, name| {
            mkdirat(dir, name, permissions(mode))
        })
    }

    /// Makes a file, pipe, socket or device. They are opened in the guest, never here.
    pub(crate) fn mknod(
        &self,
        ctx: &Context,
        parent: u64,
        name: &CStr,
        mode: u32,
        rdev: u32,
    ) -> Result<Entry> {
        let kind = match FileType::from_raw_mode(mode) {
            FileType::Unknown => return Err(Errno::INVAL),
            kind => kind,
        };
        self.make(ctx, parent, name, |dir, name| {
            mknodat(dir, name, kind, permissions(mode), rdev.into())
        })
    }

    /// Makes a symbolic link; where it leads is the guest's business.
    pub(crate) fn symlink(&self, ctx: &Context, target: &CStr, parent: u64, name: &CStr) -> Result<Entry> {
        self.make(ctx, parent, name, |dir, name| symlinkat(target, dir, name))
    }

    fn make(
        &self,
        ctx: &Context,
        parent: u64,
        name: &CStr,
        make: impl FnOnce(std::os::fd::BorrowedFd<'_>, &CStr) -> Result<()>,
    ) -> Result<Entry> {
        self.writable()?;
        let name = component(name)?;
        let parent = self.inodes.get(parent)?;
        let dir = parent.path_fd()?;
        let place = self.place_in(&parent)?;
        {
            let _acting = self.acting_for(ctx)?;
            make(dir.as_fd(), name)?;
        }
        let (inode, stat) = self.find(&parent, dir.as_fd(), name, Some(place))?;
        Ok(self.entry(&inode, &stat, &parent))
    }

    /// Gives an inode one more name.
    pub(crate) fn link(&self, nodeid: u64, parent: u64, name: &CStr) -> Result<Entry> {
        self.writable()?;
        let name = component(name)?;
        let inode = self.inodes.get(nodeid)?;
        let parent = self.inodes.get(parent)?;
        let dir = parent.path_fd()?;
        // Held over the call: its number, once closed, may be that of another file.
        let path = inode.path_fd()?;
        // Followed: the link in /proc leads to the inode itself, be it a symbolic link.
        linkat(
            &self.proc,
            DecInt::from_fd(&path),
            &dir,
            name,
            AtFlags::SYMLINK_FOLLOW,
        )?;
        // It is known already and takes nothing of the budget.
        if inode.claim() {
            let stat = stat_at(&path, c"");
            let stat = stat.inspect_err(|_| self.inodes.forget(nodeid, 1))?;
            return Ok(self.entry(&inode, &stat, &parent));
        }
        let (inode, stat) = self.find(&parent, dir.as_fd(), name, None)?;
        Ok(self.entry(&inode, &stat, &parent))
    }
}
