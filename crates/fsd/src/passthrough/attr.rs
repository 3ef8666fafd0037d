//! Attributes: read, changed, and in the shape the FUSE library takes.

use std::os::fd::AsFd;

use fuse_backend_rs::abi::fuse_abi::{SetattrValid, stat64, statvfs64};
use fuse_backend_rs::api::filesystem::{Context, Entry};
use rustix::fs::{
    AtFlags, Mode, OFlags, Stat, Statx, StatxFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, chmodat,
    chownat, fchmod, fstat, ftruncate, futimens, makedev, statx, utimensat,
};
use rustix::io::{Errno, Result};
use rustix::path::DecInt;
use rustix::process::{Gid, Uid};

use super::Share;
use super::credentials::WithoutFsetid;
use super::inode::HostId;

const EXECUTE: u32 = 1;
const WRITE: u32 = 2;
const READ: u32 = 4;

/// Looks a name up below `dir`, or `dir` itself when the name is empty, without following anything.
pub(super) fn stat_at(dir: impl AsFd, name: &std::ffi::CStr) -> Result<Statx> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::EMPTY_PATH;
    statx(dir, name, flags, StatxFlags::BASIC_STATS | StatxFlags::MNT_ID)
}

pub(super) fn host_id(stat: &Statx) -> HostId {
    HostId {
        dev: makedev(stat.stx_dev_major, stat.stx_dev_minor),
        ino: stat.stx_ino,
        mount: stat.stx_mnt_id,
    }
}

fn blank() -> stat64 {
    // The library's own way to an empty `stat64`.
    Entry::default().attr
}

pub(super) fn from_statx(stat: &Statx) -> stat64 {
    let mut attr = blank();
    attr.st_dev = makedev(stat.stx_dev_major, stat.stx_dev_minor);
    attr.st_ino = stat.stx_ino;
    attr.st_mode = stat.stx_mode.into();
    attr.st_nlink = stat.stx_nlink.into();
    attr.st_uid = stat.stx_uid;
    attr.st_gid = stat.stx_gid;
    attr.st_rdev = makedev(stat.stx_rdev_major, stat.stx_rdev_minor);
    attr.st_size = stat.stx_size.cast_signed();
    attr.st_blksize = stat.stx_blksize.into();
    attr.st_blocks = stat.stx_blocks.cast_signed();
    (attr.st_atime, attr.st_atime_nsec) = (stat.stx_atime.tv_sec, stat.stx_atime.tv_nsec.into());
    (attr.st_mtime, attr.st_mtime_nsec) = (stat.stx_mtime.tv_sec, stat.stx_mtime.tv_nsec.into());
    (attr.st_ctime, attr.st_ctime_nsec) = (stat.stx_ctime.tv_sec, stat.stx_ctime.tv_nsec.into());
    attr
}

fn from_stat(stat: &Stat) -> stat64 {
    let mut attr = blank();
    attr.st_dev = stat.st_dev;
    attr.st_ino = stat.st_ino;
    attr.st_mode = stat.st_mode;
    attr.st_nlink = stat.st_nlink;
    attr.st_uid = stat.st_uid;
    attr.st_gid = stat.st_gid;
    attr.st_rdev = stat.st_rdev;
    attr.st_size = stat.st_size;
    attr.st_blksize = stat.st_blksize;
    attr.st_blocks = stat.st_blocks;
    (attr.st_atime, attr.st_atime_nsec) = (stat.st_atime, stat.st_atime_nsec.cast_signed());
    (attr.st_mtime, attr.st_mtime_nsec) = (stat.st_mtime, stat.st_mtime_nsec.cast_signed());
    (attr.st_ctime, attr.st_ctime_nsec) = (stat.st_ctime, stat.st_ctime_nsec.cast_signed());
    attr
}

impl Share {
    /// What the host says of an inode now. One system call where the inode is pinned.
    pub(crate) fn getattr(&self, nodeid: u64) -> Result<stat64> {
        let inode = self.inodes.get(nodeid)?;
        let mut attr = from_stat(&fstat(inode.path_fd()?)?);
        attr.st_ino = nodeid;
        Ok(attr)
    }

    /// Changes what `valid` names.
    pub(crate) fn setattr(
        &self,
        nodeid: u64,
        attr: &stat64,
        handle: Option<u64>,
        valid: SetattrValid,
    ) -> Result<stat64> {
        self.writable()?;
        let inode = self.inodes.get(nodeid)?;
        let file = handle.map(|handle| self.files.get(handle, nodeid)).transpose()?;
        let path = inode.path_fd()?;
        if valid.contains(SetattrValid::MODE) {
            let mode = Mode::from_raw_mode(attr.st_mode & 0o7777);
            match &file {
                Some(file) => fchmod(&**file, mode)?,
                None => chmodat(&self.proc, DecInt::from_fd(&path), mode, AtFlags::empty())?,
            }
        }
        if valid.intersects(SetattrValid::UID | SetattrValid::GID) {
            let new = |bit, id: u32| match valid.contains(bit) {
                true if id == u32::MAX => Err(Errno::INVAL),
                true => Ok(Some(id)),
                false => Ok(None),
            };
            let uid = new(SetattrValid::UID, attr.st_uid)?.map(Uid::from_raw);
            let gid = new(SetattrValid::GID, attr.st_gid)?.map(Gid::from_raw);
            let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW;
            chownat(&path, c"", uid, gid, flags)?;
        }
        if valid.contains(SetattrValid::SIZE) {
            let size = u64::try_from(attr.st_size).map_err(|_| Errno::INVAL)?;
            let opened = match &file {
                Some(_) => None,
                None => Some(inode.open(&self.proc, OFlags::WRONLY | OFlags::NONBLOCK)?),
            };
            let _killing = WithoutFsetid::when(valid.contains(SetattrValid::KILL_SUIDGID))?;
            match (&file, opened) {
                (_, Some(fd)) => ftruncate(fd, size)?,
                (Some(file), None) => ftruncate(&**file, size)?,
                (None, None) => return Err(Errno::IO),
            }
        }
        if valid.intersects(SetattrValid::ATIME | SetattrValid::MTIME) {
            let time = |given, now, sec, nsec| Timespec {
                tv_sec: sec,
                tv_nsec: if valid.contains(now) {
                    UTIME_NOW
                } else if valid.contains(given) {
                    nsec
                } else {
                    UTIME_OMIT
                },
            };
            let times = Timestamps {
                last_access: time(
                    SetattrValid::ATIME,
                    SetattrValid::ATIME_NOW,
                    attr.st_atime,
                    attr.st_atime_nsec,
                ),
                last_modification: time(
                    SetattrValid::MTIME,
                    SetattrValid::MTIME_NOW,
                    attr.st_mtime,
                    attr.st_mtime_nsec,
                ),
            };
            match &file {
                Some(file) => futimens(&**file, &times)?,
                // Through the link in /proc, which leads to the inode itself, be it a symbolic link.
                None => utimensat(&self.proc, DecInt::from_fd(&path), &times, AtFlags::empty())?,
            }
        }
        let mut now = from_stat(&fstat(&path)?);
        now.st_ino = nodeid;
        Ok(now)
    }

    /// Whether a process of the guest may do this, judged by the mode alone. A guest's kernel judges for itself and
    /// does not ask.
    pub(crate) fn access(&self, ctx: &Context, nodeid: u64, mask: u32) -> Result<()> {
        let attr = self.getattr(nodeid)?;
        if mask & WRITE != 0 {
            self.writable()?;
        }
        let class = if ctx.uid == attr.st_uid {
            attr.st_mode >> 6
        } else if ctx.gid == attr.st_gid {
            attr.st_mode >> 3
        } else {
            attr.st_mode
        };
        let granted = if ctx.uid == 0 {
            let executable = attr.st_mode & 0o111 != 0;
            READ | WRITE | if executable { EXECUTE } else { 0 }
        } else {
            class & 7
        };
        if mask & 7 & !granted == 0 {
            Ok(())
        } else {
            Err(Errno::ACCESS)
        }
    }

    /// The figures of the file system an inode is on.
    pub(crate) fn statfs(&self, nodeid: u64) -> Result<statvfs64> {
        let inode = self.inodes.get(nodeid)?;
        crate::sys::statvfs::statvfs(inode.path_fd()?.as_fd())
    }
}
