//! The steps of a bind on the file system, each relative to a descriptor that is already held.
//!
//! `openat2` refuses symlinks and leaving the directory; `open_tree` and `move_mount` mount one descriptor on
//! another without a path in between. Only `umount2` takes paths: it gets the parent's descriptor below
//! `/proc/self/fd` and a last component it does not follow.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nydusbox_protocol::ContainerId;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};

use super::{BindError, Inode, failed};

/// The directory that is shared. Its own path is the operator's and may have symlinks in it.
#[derive(Debug)]
pub(super) struct Share {
    path: PathBuf,
    fd: OwnedFd,
}

/// A container's directory in the share.
#[derive(Debug)]
pub(super) struct ContainerDir {
    path: PathBuf,
    fd: OwnedFd,
}

/// What became of a mount that was to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Detached {
    /// It was ours and is gone.
    Ours,
    /// It is not there; something else may be.
    Nothing,
    /// Something else is mounted on top of it.
    Covered,
}

/// Opens the directory to be bound, refusing symlinks.
pub(super) fn open_source(path: &Path) -> Result<(OwnedFd, Inode), BindError> {
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let fd = open_dir(CWD, path, resolve).map_err(|errno| failed("open", path, errno))?;
    let inode = inode(&fd).map_err(|errno| failed("open", path, errno))?;
    Ok((fd, inode))
}

fn open_dir(at: impl AsFd, path: &Path, resolve: ResolveFlags) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    loop {
        match rustix::fs::openat2(at.as_fd(), path, flags, Mode::empty(), resolve) {
            // A rename elsewhere made the kernel unsure whether `..` could have escaped: asks to be asked again.
            Err(Errno::AGAIN) => {}
            // With O_DIRECTORY a symlink as the last component is "not a directory".
            Err(Errno::NOTDIR) if is_symlink(&at, path) => return Err(Errno::LOOP),
            other => return other,
        }
    }
}

fn is_symlink(at: impl AsFd, path: &Path) -> bool {
    rustix::fs::readlinkat(at, path, Vec::new()).is_ok()
}

fn inode(fd: &OwnedFd) -> rustix::io::Result<Inode> {
    let stat = rustix::fs::fstat(fd)?;
    Ok(Inode {
        dev: stat.st_dev,
        ino: stat.st_ino,
    })
}

/// The number a mount has in mountinfo.
fn mount_id(root: &OwnedFd) -> rustix::io::Result<u64> {
    Ok(rustix::fs::statx(root, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?.stx_mnt_id)
}

const BELOW: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS);

impl Share {
    pub(super) fn open(path: &Path) -> Result<Self, BindError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(fd) => Ok(Self {
                path: path.to_owned(),
                fd,
            }),
            Err(errno) => Err(failed("open", path, errno)),
        }
    }

    /// The container's directory; refused when it is a symlink or a mount.
    pub(super) fn container(&self, id: &ContainerId) -> Result<ContainerDir, BindError> {
        let path = self.path.join(id.as_str());
        match open_dir(&self.fd, Path::new(id.as_str()), BELOW | ResolveFlags::NO_XDEV) {
            Ok(fd) => Ok(ContainerDir { path, fd }),
            Err(errno) => Err(failed("open", &path, errno)),
        }
    }

    pub(super) fn make_container(&self, id: &ContainerId) -> Result<(), BindError> {
        make(&self.fd, id.as_str(), &self.path.join(id.as_str()))
    }

    pub(super) fn remove_container(&self, id: &ContainerId) -> Result<(), BindError> {
        remove(&self.fd, id.as_str(), &self.path.join(id.as_str()))
    }
}

impl ContainerDir {
    /// Whether there is a file of this name, of whatever kind.
    pub(super) fn has(&self, name: &str) -> Result<bool, BindError> {
        match rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(failed("look at", &self.path.join(name), errno)),
        }
    }

    pub(super) fn make(&self, name: &str) -> Result<(), BindError> {
        make(&self.fd, name, &self.path.join(name))
    }

    pub(super) fn remove(&self, name: &str) -> Result<(), BindError> {
        remove(&self.fd, name, &self.path.join(name))
    }

    /// Mounts a directory on `name` and tells the mount's number. It becomes a slave of where it comes from: what is mounted below one end does
    /// not appear at the other.
    pub(super) fn attach(
        &self,
        source: &OwnedFd,
        source_path: &Path,
        name: &'static str,
    ) -> Result<u64, BindError> {
        let target_path = self.path.join(name);
        let target = open_dir(&self.fd, Path::new(name), BELOW | ResolveFlags::NO_XDEV)
            .map_err(|errno| failed("open", &target_path, errno))?;
        let mounting = |errno| match errno {
            Errno::PERM => BindError::NotPermitted {
                source_dir: source_path.to_owned(),
                target: target_path.clone(),
            },
            errno => failed("bind a directory at", &target_path, errno),
        };
        let clone =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        let tree = rustix::mount::open_tree(source, "", clone).map_err(mounting)?;
        let number = mount_id(&tree).map_err(mounting)?;
        let by_descriptors =
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        rustix::mount::move_mount(&tree, "", &target, "", by_descriptors).map_err(mounting)?;
        let root = format!("/proc/self/fd/{}", tree.as_raw_fd());
        match rustix::mount::mount_change(root, MountPropagationFlags::DOWNSTREAM) {
            Ok(()) => Ok(number),
            Err(errno) => {
                self.detach(name, inode(source).map_err(mounting)?, Some(number))?;
                Err(mounting(errno))
            }
        }
    }

    /// What is mounted on `name`, if it is a mount point, and the mount's number.
    pub(super) fn mounted(&self, name: &str) -> Result<Option<(Inode, u64)>, BindError> {
        let path = self.path.join(name);
        match open_dir(&self.fd, Path::new(name), BELOW | ResolveFlags::NO_XDEV) {
            // On a link or a file of the guest's nothing of ours can be mounted.
            Ok(_) | Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => return Ok(None),
            Err(Errno::XDEV) => {}
            Err(errno) => return Err(failed("open", &path, errno)),
        }
        // Crossing a mount counts as leaving the directory for BENEATH, and a single component has no way out.
        let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        open_dir(&self.fd, Path::new(name), resolve)
            .and_then(|fd| Ok(Some((inode(&fd)?, mount_id(&fd)?))))
            .map_err(|errno| failed("open", &path, errno))
    }

    /// Unmounts `name` if what is mounted there is `ours`, with this number if it is known. Lazily: the daemon may still
    /// have files open.
    pub(super) fn detach(&self, name: &str, ours: Inode, number: Option<u64>) -> Result<Detached, BindError> {
        let Some((found, on_top)) = self.mounted(name)? else {
            return Ok(Detached::Nothing);
        };
        if found == ours && number.is_none_or(|number| number == on_top) {
            return match unmount(&self.fd, name) {
                Ok(()) => Ok(Detached::Ours),
                Err(errno) => Err(failed("unmount", &self.path.join(name), errno)),
            };
        }
        // A number is given out again: if the one on top has it, that is not ours.
        let below = |listed: &u64| *listed != on_top && number.is_none_or(|number| number == *listed);
        Ok(match self.listed(name).iter().any(below) {
            true => Detached::Covered,
            false => Detached::Nothing,
        })
    }

    /// The numbers of all that is mounted on `name`, one on the other.
    fn listed(&self, name: &str) -> Vec<u64> {
        let Ok(path) = std::fs::read_link(format!("/proc/self/fd/{}", self.fd.as_raw_fd())) else {
            return Vec::new();
        };
        let path = path.join(name);
        let at = |(number, mounted): (u64, PathBuf)| (mounted == path).then_some(number);
        mounts().into_iter().filter_map(at).collect()
    }
}

/// A directory others may make at the same time; then it is theirs as well, and there.
fn make(dir: &OwnedFd, name: &str, path: &Path) -> Result<(), BindError> {
    match rustix::fs::mkdirat(dir, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(failed("create", path, errno)),
    }
}

fn remove(dir: &OwnedFd, name: &str, path: &Path) -> Result<(), BindError> {
    match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
        // No directory: it is not the one that was made.
        Ok(()) | Err(Errno::NOENT | Errno::NOTDIR) => Ok(()),
        Err(errno) => Err(failed("remove", path, errno)),
    }
}

fn unmount(parent: &OwnedFd, name: &str) -> rustix::io::Result<()> {
    let path = format!("/proc/self/fd/{}/{name}", parent.as_raw_fd());
    rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
}

/// Unmounts the mount with this number, wherever it is now, if it is `ours`: numbers are given out again.
pub(super) fn detach_by_id(id: u64, ours: Inode) -> Option<(PathBuf, io::Result<()>)> {
    let (_, path) = mounts().into_iter().find(|(number, _)| *number == id)?;
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let name = path.file_name()?.to_str()?;
    let parent = open_dir(CWD, path.parent()?, resolve).ok()?;
    let root = open_dir(&parent, Path::new(name), resolve).ok()?;
    let found = (inode(&root).ok()?, mount_id(&root).ok()?);
    (found == (ours, id)).then(|| (path.clone(), unmount(&parent, name).map_err(io::Error::from)))
}

/// Every mount by its number, and where it is.
fn mounts() -> Vec<(u64, PathBuf)> {
    let table = std::fs::read("/proc/thread-self/mountinfo").unwrap_or_default();
    let mount = |line: &str| {
        // 36 35 98:0 /root /mount/point …
        let mut fields = line.split(' ');
        Some((fields.next()?.parse().ok()?, fields.nth(3).map(unescaped)?))
    };
    String::from_utf8_lossy(&table)
        .lines()
        .filter_map(mount)
        .collect()
}

/// A path as in mountinfo, where space, tab, line feed and backslash are octal escapes.
fn unescaped(field: &str) -> PathBuf {
    let mut out = String::with_capacity(field.len());
    let mut rest = field;
    while let Some((before, after)) = rest.split_once('\\') {
        out.push_str(before);
        let code = after
            .get(..3)
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                out.push(code.into());
                rest = &after[3..];
            }
            None => {
                out.push('\\');
                rest = after;
            }
        }
    }
    out.push_str(rest);
    out.into()
}
