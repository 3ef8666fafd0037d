//! A cgroup v2 leaf for one daemon: made, filled, asked whether the kernel killed for memory, and removed.
//!
//! It is made beside the cgroup of this process rather than in it, because a cgroup that has processes cannot give
//! controllers to its children. A controller that the parent has but does not pass on is switched on there, which is
//! the only thing that stays. Where the daemon is put in: [`super::prepared`].
//!
//! Nobody else's leaf is removed or written to: its name is that of one sandbox's directory, and whatever is written goes
//! to the directory that was made, however it is called by then.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nydusbox_protocol::SandboxId;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::Pid;

use super::LimitError;
use crate::binds::Inode;

/// How long a killed cgroup may take to be empty.
const EMPTY_WAIT: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};
/// Names tried when the cgroup of a daemon before has processes in it that do not go.
const NAMES: usize = 16;

/// `CGROUP2_SUPER_MAGIC` of linux/magic.h.
const CGROUP2_SUPER_MAGIC: rustix::fs::FsWord = 0x6367_7270;

/// The name a sandbox's leaf is given, unless it is in use. A sandbox of the same id in another state directory has
/// another one, whatever mount namespace it is in: who holds the directory's lock may remove what has its name.
pub(super) fn leaf_name(sandbox: &SandboxId, dir: &Path) -> Result<String, LimitError> {
    let Inode { dev, ino } = inode(dir).map_err(|source| LimitError::Io {
        action: "look at the sandbox's directory",
        path: dir.to_owned(),
        source,
    })?;
    Ok(format!("nydusbox-{sandbox}.{dev:x}-{ino:x}"))
}

/// Removes the cgroup of a daemon whose supervisor is gone, with whatever is in it. Of one that is known by its path only
/// it cannot be said whose processes are in it: then it is removed if there are none.
pub(crate) fn remove_leaf(path: &Path, inode: Option<Inode>) -> io::Result<()> {
    match inode {
        Some(inode) => Leaf::recalled(path.to_owned(), inode)
            .remove()
            .map_err(|(_, error)| error),
        None => match rustix::fs::rmdir(path) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno.into()),
        },
    }
}

/// The directory of a cgroup that is known by its path only, if a process is in it.
pub(crate) fn leaf_of(path: &Path, pid: Pid) -> Option<Inode> {
    let inode = inode(path).ok()?;
    let members = std::fs::read_to_string(path.join("cgroup.procs")).ok()?;
    let pid = pid.as_raw_nonzero().get();
    members
        .lines()
        .any(|line| line.parse() == Ok(pid))
        .then_some(inode)
}

fn inode(path: &Path) -> io::Result<Inode> {
    let found = std::fs::symlink_metadata(path)?;
    Ok(Inode {
        dev: found.dev(),
        ino: found.ino(),
    })
}

/// A cgroup with one daemon in it. Dropping it kills what is in it and removes it.
#[derive(Debug)]
pub(crate) struct Leaf {
    path: PathBuf,
    /// Somebody may have removed it and made another in its place.
    inode: Inode,
    removed: bool,
}

impl Leaf {
    /// Makes a new, empty cgroup below `parent`. One of the same name that is empty was left by a predecessor and is
    /// replaced, so that its counters are not taken for ours.
    pub(super) fn create(parent: &Path, name: &str) -> Result<Self, LimitError> {
        let found = rustix::fs::statfs(parent).map_err(|errno| LimitError::Io {
            action: "look at the cgroup",
            path: parent.to_owned(),
            source: errno.into(),
        })?;
        // Elsewhere a directory could be made too, and would not be a cgroup.
        if found.f_type != CGROUP2_SUPER_MAGIC {
            return Err(LimitError::NotACgroup {
                path: parent.to_owned(),
            });
        }
        for n in 0..NAMES {
            let path = match n {
                0 => parent.join(name),
                n => parent.join(format!("{name}.{n}")),
            };
            let made = match std::fs::create_dir(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    match std::fs::remove_dir(&path) {
                        Ok(()) => std::fs::create_dir(&path),
                        // Processes are in it.
                        Err(_) => continue,
                    }
                }
                made => made,
            };
            let inode = made
                .and_then(|()| inode(&path))
                .map_err(|source| LimitError::Io {
                    action: "make the cgroup",
                    path: path.clone(),
                    source,
                })?;
            return Ok(Self::recalled(path, inode));
        }
        Err(LimitError::InUse {
            path: parent.join(name),
        })
    }

    /// The leaf of a daemon that someone else has started.
    pub(super) fn recalled(path: PathBuf, inode: Inode) -> Self {
        Self {
            path,
            inode,
            removed: false,
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn inode(&self) -> Inode {
        self.inode
    }

    /// Sets a limit of a controller the parent passes on.
    pub(super) fn set(&self, file: &str, value: u64) -> Result<(), LimitError> {
        self.write(file, &value.to_string())
    }

    /// Puts a process in.
    pub(super) fn place(&self, pid: Pid) -> Result<(), LimitError> {
        self.write("cgroup.procs", &pid.as_raw_nonzero().to_string())
    }

    fn write(&self, file: &str, value: &str) -> Result<(), LimitError> {
        let write = || match self.open()? {
            Some(dir) => self::file(&dir, file, OFlags::WRONLY)?.write_all(value.as_bytes()),
            None => Err(io::ErrorKind::NotFound.into()),
        };
        write().map_err(|source| LimitError::Io {
            action: "write",
            path: self.path.join(file),
            source,
        })
    }

    /// How often the kernel killed a process of it because the memory limit was reached.
    pub(super) fn oom_kills(&self) -> u64 {
        let read = || match self.open()? {
            Some(dir) => again(&mut file(&dir, "memory.events", OFlags::RDONLY)?),
            None => Ok(String::new()),
        };
        let events = read().unwrap_or_default();
        counter(&events, "oom_kill").unwrap_or(0)
    }

    /// Kills whatever is in it and removes it.
    pub(super) fn remove(mut self) -> Result<(), (PathBuf, io::Error)> {
        self.removed = true;
        self.clear().map_err(|error| (self.path.clone(), error))
    }

    fn clear(&self) -> io::Result<()> {
        let Some(dir) = self.open()? else { return Ok(()) };
        match rustix::fs::rmdir(&self.path) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::BUSY) => {}
            Err(errno) => return Err(errno.into()),
        }
        // Something has left the daemon's process group, but a cgroup cannot be left.
        file(&dir, "cgroup.kill", OFlags::WRONLY)?.write_all(b"1")?;
        let mut events = file(&dir, "cgroup.events", OFlags::RDONLY)?;
        while counter(&again(&mut events)?, "populated") == Some(1) {
            // The file's change is an exceptional condition of the descriptor, told once after each read of it.
            let mut fds = [PollFd::from_borrowed_fd(events.as_fd(), PollFlags::PRI)];
            match poll(&mut fds, Some(&EMPTY_WAIT)) {
                Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(rustix::fs::rmdir(&self.path)?)
    }

    /// Its directory, if it is still there.
    fn open(&self) -> io::Result<Option<OwnedFd>> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = match rustix::fs::open(&self.path, flags, Mode::empty()) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        let found = rustix::fs::fstat(&dir)?;
        Ok((self.inode.dev == found.st_dev && self.inode.ino == found.st_ino).then_some(dir))
    }
}

/// Opens a file of a cgroup.
fn file(dir: &OwnedFd, name: &str, flags: OFlags) -> io::Result<File> {
    Ok(rustix::fs::openat(dir, name, flags | OFlags::CLOEXEC, Mode::empty())?.into())
}

/// Reads a file from its beginning.
fn again(file: &mut File) -> io::Result<String> {
    let mut text = String::new();
    file.rewind()?;
    file.read_to_string(&mut text)?;
    Ok(text)
}

impl Drop for Leaf {
    fn drop(&mut self) {
        if !self.removed
            && let Err(error) = self.clear()
        {
            tracing::warn!(cgroup = %self.path.display(), %error, "left behind");
        }
    }
}

/// The cgroup in which leaves are made unless the caller names one.
pub(super) fn default_parent() -> Result<PathBuf, LimitError> {
    let read = |path: &str| {
        std::fs::read_to_string(path).map_err(|source| LimitError::Io {
            action: "read",
            path: path.into(),
            source,
        })
    };
    parent(&read("/proc/self/mountinfo")?, &read("/proc/self/cgroup")?).ok_or(LimitError::NoCgroup2)
}

/// Makes sure that `parent` passes a controller on.
pub(super) fn ensure_controller(parent: &Path, controller: &'static str) -> Result<(), LimitError> {
    let has = |file: &str| {
        let path = parent.join(file);
        let text = std::fs::read_to_string(&path).map_err(|source| LimitError::Io {
            action: "read",
            path,
            source,
        })?;
        Ok(text.split_ascii_whitespace().any(|word| word == controller))
    };
    if has("cgroup.subtree_control")? {
        return Ok(());
    }
    if !has("cgroup.controllers")? {
        return Err(LimitError::NoController {
            controller,
            path: parent.to_owned(),
        });
    }
    let path = parent.join("cgroup.subtree_control");
    std::fs::write(&path, format!("+{controller}")).map_err(|source| LimitError::Io {
        action: "write",
        path,
        source,
    })
}

/// The directory beside that of the process whose `cgroup` file is given; the root itself for one in the root.
fn parent(mountinfo: &str, cgroup: &str) -> Option<PathBuf> {
    // 36 35 98:0 /root /mount/point options - cgroup2 source options
    let (root, mount_point) = mountinfo.lines().find_map(|line| {
        let (mount, source) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        (source.split(' ').next() == Some("cgroup2")).then(|| Some((fields.next()?, fields.next()?)))?
    })?;
    let own = cgroup.lines().find_map(|line| line.strip_prefix("0::"))?;
    let below = Path::new(own).strip_prefix(root).ok()?;
    let mut path = PathBuf::from(mount_point);
    path.extend(below.parent());
    Some(path)
}

/// A counter of a file of `name value` lines.
fn counter(text: &str, name: &str) -> Option<u64> {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(key, _)| *key == name)
        .and_then(|(_, value)| value.trim().parse().ok())
}

#[cfg(test)]
#[path = "cgroup_tests.rs"]
mod tests;
