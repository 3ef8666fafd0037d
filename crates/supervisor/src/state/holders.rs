//! Which processes are a sandbox's daemon, without trusting a number.
//!
//! Before the daemon is spawned the supervisor opens `daemon.lock` and locks it; the child inherits that open file
//! description, and the supervisor closes its own copy as soon as the child is there. From then on
//!
//! - the lock is held exactly as long as the daemon or a descendant of it lives: a lock belongs to the open file
//!   description, every copy of which is closed when its process ends, whatever ended it;
//! - whoever has that file open is one of them: nobody else opens a file in a directory only its owner may enter,
//!   except a supervisor, and that one holds `lock`.
//!
//! There is no moment between fork and the note of the process id in which a daemon could be missed: the copy is made
//! by fork itself. And there is none in which a stranger could be hit: a number that was given out again belongs to a
//! process that does not have this file open. The process is held by a pidfd *before* it is looked at, so what was
//! looked at is what gets the signal.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::binds::Inode;

/// The file whose lock the daemon inherits.
pub(crate) const DAEMON_LOCK: &str = "daemon.lock";
/// Inherited descriptors keep their number, which must be none that is mapped in the child.
const LOWEST_FD: i32 = 16;

/// What is known of the lock.
#[derive(Debug)]
pub(crate) enum DaemonLock {
    /// Nobody held it; now this descriptor does.
    Taken(OwnedFd),
    /// A daemon holds it.
    Held(Inode),
}

/// Takes the lock for a daemon that is to be spawned, if none has it.
pub(crate) fn take(dir: impl AsFd) -> io::Result<DaemonLock> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    try_lock(&rustix::fs::openat(
        dir,
        DAEMON_LOCK,
        flags,
        Mode::RUSR | Mode::WUSR,
    )?)
}

/// Looks whether a daemon has the lock; `None` when there never was one.
pub(crate) fn probe(dir: impl AsFd) -> io::Result<Option<DaemonLock>> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(dir, DAEMON_LOCK, flags, Mode::empty()) {
        Ok(fd) => try_lock(&fd).map(Some),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

fn try_lock(fd: &OwnedFd) -> io::Result<DaemonLock> {
    let stat = rustix::fs::fstat(fd)?;
    match rustix::fs::flock(fd, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(DaemonLock::Taken(rustix::io::fcntl_dupfd_cloexec(fd, LOWEST_FD)?)),
        Err(Errno::WOULDBLOCK) => Ok(DaemonLock::Held(Inode {
            dev: stat.st_dev,
            ino: stat.st_ino,
        })),
        Err(errno) => Err(errno.into()),
    }
}

/// A process that holds the lock.
#[derive(Debug)]
pub(crate) struct Holder {
    pub(crate) pid: Pid,
    pub(crate) pidfd: OwnedFd,
}

impl Holder {
    /// The process id.
    pub(crate) fn id(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Kills it.
    pub(crate) fn kill(&self) {
        if let Err(error) = pidfd_send_signal(&self.pidfd, Signal::KILL)
            && error != Errno::SRCH
        {
            tracing::warn!(pid = self.pid.as_raw_nonzero(), %error, "cannot send SIGKILL");
        }
    }

    /// Waits for its end; false when it has not ended by then.
    pub(crate) fn wait(&self, timeout: Timespec) -> bool {
        let mut fds = [PollFd::from_borrowed_fd(self.pidfd.as_fd(), PollFlags::IN)];
        matches!(poll(&mut fds, Some(&timeout)), Ok(ready) if ready > 0)
    }
}

/// Every process, other than this one, that has the lock's file open, oldest number first.
pub(crate) fn holders(lock: Inode) -> io::Result<Vec<Holder>> {
    let own = rustix::process::getpid();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|n| n.parse().ok()).and_then(Pid::from_raw) else {
            continue;
        };
        if pid == own {
            continue;
        }
        // Processes come and go while we look, and those of others are not ours.
        let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else {
            continue;
        };
        let holder = Holder { pid, pidfd };
        // Asked last whether it has not ended: then everything before was about this process.
        if has_open(&entry.path(), lock) && !holder.wait(Timespec::default()) {
            found.push(holder);
        }
    }
    found.sort_by_key(|holder| holder.pid.as_raw_nonzero());
    Ok(found)
}

/// Whether a process has it open. One that was killed and has a thread that does not end, because it waits for a dead
/// file system, shows that thread's files only: its first one has none any more.
fn has_open(process: &Path, lock: Inode) -> bool {
    let paths = |dir: &str, of: &Path| {
        let entries = std::fs::read_dir(of.join(dir)).into_iter().flatten();
        entries.flatten().map(|entry| entry.path())
    };
    let mut files = paths("fd", process).peekable();
    match files.peek() {
        Some(_) => files.any(|path| is_it(path, lock)),
        None => paths("task", process)
            .flat_map(|thread| paths("fd", &thread))
            .any(|path| is_it(path, lock)),
    }
}

fn is_it(descriptor: PathBuf, lock: Inode) -> bool {
    // The name first: looking at a file on a dead network file system could take for ever.
    let named = std::fs::read_link(&descriptor).is_ok_and(|target| {
        let name = target
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        name.trim_end_matches(" (deleted)") == DAEMON_LOCK
    });
    named && std::fs::metadata(descriptor).is_ok_and(|file| (file.dev(), file.ino()) == (lock.dev, lock.ino))
}
