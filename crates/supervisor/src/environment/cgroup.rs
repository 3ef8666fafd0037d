//! A cgroup v2 leaf for one daemon: made, filled, asked whether the kernel killed for memory, and removed.
//!
//! It is made beside the cgroup of this process rather than in it, because a cgroup that has processes cannot give
//! controllers to its children. A controller that the parent has but does not pass on is switched on there, which is
//! the only thing that stays. Where the daemon is put in: [`super::prepared`].

use std::io;
use std::path::{Path, PathBuf};

use nydusbox_protocol::SandboxId;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::Pid;

use super::LimitError;

/// How long a killed cgroup may take to be empty.
const EMPTY_WAIT: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};
/// Names tried when a cgroup of a sandbox of the same id, in another state directory, is in use.
const NAMES: usize = 16;

/// `CGROUP2_SUPER_MAGIC` of linux/magic.h.
const CGROUP2_SUPER_MAGIC: rustix::fs::FsWord = 0x6367_7270;

/// The name a sandbox's leaf is given, unless it is in use.
pub(super) fn leaf_name(sandbox: &SandboxId) -> String {
    format!("nydusbox-{sandbox}")
}

/// Removes the cgroup of a daemon whose supervisor is gone, with whatever is in it.
pub(crate) fn remove_leaf(path: &Path) -> io::Result<()> {
    Leaf::recalled(path.to_owned())
        .remove()
        .map_err(|(_, error)| error)
}

/// A cgroup with one daemon in it. Dropping it kills what is in it and removes it.
#[derive(Debug)]
pub(crate) struct Leaf {
    path: PathBuf,
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
            made.map_err(|source| LimitError::Io {
                action: "make the cgroup",
                path: path.clone(),
                source,
            })?;
            return Ok(Self { path, removed: false });
        }
        Err(LimitError::InUse {
            path: parent.join(name),
        })
    }

    /// The leaf of a daemon that someone else has started.
    pub(super) fn recalled(path: PathBuf) -> Self {
        Self { path, removed: false }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
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
        let path = self.path.join(file);
        std::fs::write(&path, value).map_err(|source| LimitError::Io {
            action: "write",
            path,
            source,
        })
    }

    /// How often the kernel killed a process of it because the memory limit was reached.
    pub(super) fn oom_kills(&self) -> u64 {
        let events = std::fs::read_to_string(self.path.join("memory.events")).unwrap_or_default();
        counter(&events, "oom_kill").unwrap_or(0)
    }

    /// Kills whatever is in it and removes it.
    pub(super) fn remove(mut self) -> Result<(), (PathBuf, io::Error)> {
        self.removed = true;
        self.clear().map_err(|error| (self.path.clone(), error))
    }

    fn clear(&self) -> io::Result<()> {
        match rustix::fs::rmdir(&self.path) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::BUSY) => {}
            Err(errno) => return Err(errno.into()),
        }
        // Something has left the daemon's process group, but a cgroup cannot be left.
        std::fs::write(self.path.join("cgroup.kill"), "1")?;
        let events = self.path.join("cgroup.events");
        let file = std::fs::File::open(&events)?;
        while counter(&std::fs::read_to_string(&events)?, "populated") == Some(1) {
            // The file's change is an exceptional condition of the descriptor, told once after each read of it.
            let mut fds = [PollFd::new(&file, PollFlags::PRI)];
            match poll(&mut fds, Some(&EMPTY_WAIT)) {
                Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(rustix::fs::rmdir(&self.path)?)
    }
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
