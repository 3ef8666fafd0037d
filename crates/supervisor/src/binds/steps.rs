//! The steps of a bind on the file system, each relative to a descriptor that is already held.
//!
//! `openat2` refuses symlinks and leaving the directory; `open_tree` and `move_mount` mount one descriptor on
//! another without a path in between. Only `umount2` takes paths: it gets the parent's descriptor below
//! `/proc/self/fd` and a last component it does not follow.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use nydusbox_protocol::ContainerId;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};

use super::{BindError, Inode, Mount, failed};

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
    let fd = open_dir(CWD, path, NO_LINKS).map_err(|errno| failed("open", path, errno))?;
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

/// What is known without asking a file system's server, which may not answer: neither changes.
const KNOWN: AtFlags = AtFlags::EMPTY_PATH.union(AtFlags::STATX_DONT_SYNC);

fn inode(fd: &OwnedFd) -> rustix::io::Result<Inode> {
    let stat = rustix::fs::statx(fd, "", KNOWN, StatxFlags::INO)?;
    Ok(Inode {
        dev: rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor),
        ino: stat.stx_ino,
    })
}

/// The number a mount has in mountinfo.
fn mount_id(root: &OwnedFd) -> rustix::io::Result<u64> {
    Ok(rustix::fs::statx(root, "", KNOWN, StatxFlags::MNT_ID)?.stx_mnt_id)
}

const NO_LINKS: ResolveFlags = ResolveFlags::NO_SYMLINKS.union(ResolveFlags::NO_MAGICLINKS);
const BELOW: ResolveFlags = ResolveFlags::BENEATH.union(NO_LINKS);

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

    /// Mounts a directory on `name`. It becomes a slave of where it comes from: what is mounted below one end does
    /// not appear at the other.
    pub(super) fn attach(
        &self,
        source: &OwnedFd,
        source_path: &Path,
        name: &'static str,
    ) -> Result<Mount, BindError> {
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
        let id = mount_id(&tree).map_err(mounting)?;
        let parent = inode(&self.fd).map_err(mounting)?;
        let mount = Mount { id, parent };
        let by_descriptors =
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        rustix::mount::move_mount(&tree, "", &target, "", by_descriptors).map_err(mounting)?;
        let root = format!("/proc/self/fd/{}", tree.as_raw_fd());
        match rustix::mount::mount_change(root, MountPropagationFlags::DOWNSTREAM) {
            Ok(()) => Ok(mount),
            Err(errno) => {
                self.detach(name, inode(source).map_err(mounting)?, Some(mount))?;
                Err(mounting(errno))
            }
        }
    }

    /// The directory that is mounted on `name`, if it is a mount point, and the mount.
    pub(super) fn mounted(&self, name: &str) -> Result<Option<(Inode, Mount)>, BindError> {
        let path = self.path.join(name);
        match open_dir(&self.fd, Path::new(name), BELOW | ResolveFlags::NO_XDEV) {
            // On a link or a file of the guest's nothing of ours can be mounted.
            Ok(_) | Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => return Ok(None),
            Err(Errno::XDEV) => {}
            Err(errno) => return Err(failed("open", &path, errno)),
        }
        // Crossing a mount counts as leaving the directory for BENEATH, and a single component has no way out.
        open_dir(&self.fd, Path::new(name), NO_LINKS)
            .and_then(|fd| {
                let (id, parent) = (mount_id(&fd)?, inode(&self.fd)?);
                Ok(Some((inode(&fd)?, Mount { id, parent })))
            })
            .map_err(|errno| failed("open", &path, errno))
    }

    /// Unmounts `name` if what is mounted there is `ours`, by this mount if that is known. Lazily: the daemon may still
    /// have files open.
    pub(super) fn detach(
        &self,
        name: &str,
        ours: Inode,
        mount: Option<Mount>,
    ) -> Result<Detached, BindError> {
        let Some((found, on_top)) = self.mounted(name)? else {
            return Ok(Detached::Nothing);
        };
        if found == ours && mount.is_none_or(|mount| mount == on_top) {
            return match unmount(&self.fd, name) {
                Ok(()) => Ok(Detached::Ours),
                Err(errno) => Err(failed("unmount", &self.path.join(name), errno)),
            };
        }
        // A number is given out again: if the one on top has it, that is not ours.
        let below = |listed: &u64| *listed != on_top.id && mount.is_none_or(|mount| mount.id == *listed);
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
        mounts().unwrap_or_default().into_iter().filter_map(at).collect()
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

/// Where the mount with this number is, if there is one.
pub(super) fn find(id: u64) -> io::Result<Option<PathBuf>> {
    let found = mounts()?.into_iter().find(|(number, _)| *number == id);
    Ok(found.map(|(_, path)| path))
}

/// Unmounts what is listed at `path` under our number, if it is our mount; whether it was. What can't be reached, so that
/// it can't be told, is an error: it may be ours.
pub(super) fn detach_at(path: &Path, name: &str, ours: Inode, mount: Mount) -> io::Result<bool> {
    // What is above it can be renamed. It cannot itself, as little as any mount point.
    let (Some(dir), true) = (path.parent(), path.file_name() == Some(OsStr::new(name))) else {
        return Ok(false);
    };
    let parent = open_by_steps(dir)?;
    if inode(&parent)? != mount.parent {
        return Ok(false);
    }
    let root = open_dir(&parent, Path::new(name), NO_LINKS)?;
    if mount_id(&root)? != mount.id {
        return Err(io::Error::other("something else is mounted on it"));
    }
    if inode(&root)? != ours {
        return Ok(false);
    }
    unmount(&parent, name)?;
    Ok(true)
}

/// Opens a directory by a path of any length, as a guest can make them.
fn open_by_steps(path: &Path) -> rustix::io::Result<OwnedFd> {
    let mut dir = open_dir(CWD, Path::new("/"), NO_LINKS)?;
    for component in path.components() {
        if let Component::Normal(name) = component {
            dir = open_dir(&dir, Path::new(name), NO_LINKS)?;
        }
    }
    Ok(dir)
}

/// Every mount by its number, and where it is.
fn mounts() -> io::Result<Vec<(u64, PathBuf)>> {
    let table = std::fs::read("/proc/thread-self/mountinfo")?;
    let mount = |line: &[u8]| {
        // 36 35 98:0 /root /mount/point …
        let mut fields = line.split(|byte| *byte == b' ');
        let number = str::from_utf8(fields.next()?).ok()?.parse().ok()?;
        Some((number, fields.nth(3).map(unescaped)?))
    };
    Ok(table.split(|byte| *byte == b'\n').filter_map(mount).collect())
}

/// A path as in mountinfo, where space, tab, line feed and backslash are octal escapes. A guest names directories with any
/// bytes.
fn unescaped(field: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let digits = after.get(..3).filter(|_| byte == b'\\');
        let code = digits.and_then(|digits| u8::from_str_radix(str::from_utf8(digits).ok()?, 8).ok());
        out.push(code.unwrap_or(byte));
        rest = match code {
            Some(_) => &after[3..],
            None => after,
        };
    }
    OsString::from_vec(out).into()
}
