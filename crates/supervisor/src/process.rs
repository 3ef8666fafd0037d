//! One child process: spawned, signalled, waited for, reaped, all through one owner.
//!
//! A signal goes out only while the child has not been reaped, so neither the pid nor the process group can be
//! someone else's. What was put round the child ([`crate::environment`]) goes with it. One taken over from a
//! supervisor that is gone is not our child: it is held by a pidfd, and its descendants are known by the lock they
//! inherit ([`crate::state`]). Dropping a [`Process`] kills its group and reaps it before `drop` returns. What the child says
//! is in [`crate::output`]; both together are [`crate::daemon`].

use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, pidfd_send_signal};
use tokio::io::unix::AsyncFd;

use crate::binds::Inode;
use crate::environment::{Prepared, Surroundings};
use crate::error::StartCause;
use crate::exit::ExitCause;
use crate::readiness::readable_fd;
use crate::state::{self, Holder};

/// How long `drop` waits for a killed child. Longer only happens in uninterruptible sleep, where waiting would
/// block the caller for as long as a broken disk pleases.
const DROP_WAIT: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// Who can wait for a process.
#[derive(Debug)]
enum Parent {
    /// This process: it is our child.
    Us(Child),
    /// Someone else has become its parent, and takes its status. Whoever has this file open goes with it.
    Other(Inode),
}

/// A child in its own process group, or what was one of a supervisor that is gone.
#[derive(Debug)]
pub(crate) struct Process {
    parent: Parent,
    pid: Pid,
    /// Whose members go with it. Ours for as long as the child is not reaped.
    group: Pid,
    surroundings: Surroundings,
    /// A cgroup that could not be removed.
    left: Option<(PathBuf, io::Error)>,
    pidfd: AsyncFd<OwnedFd>,
    reaped: Option<ExitCause>,
}

impl Process {
    /// Starts a command as the leader of a new process group. Must be called within a runtime.
    pub(crate) fn spawn(command: &mut Command) -> io::Result<Self> {
        let child = command.process_group(0).spawn()?;
        let group = Pid::from_child(&child);
        Self::owned(child, group, Surroundings::default())
    }

    /// Starts a command made for an environment, in it. What could not be had is told to `notice`.
    pub(crate) fn spawn_in(
        prepared: Prepared,
        command: &mut Command,
        notice: &mut dyn FnMut(&'static str, String),
    ) -> Result<Self, StartCause> {
        let (child, group, surroundings) = prepared.spawn(command, notice)?;
        Self::owned(child, group, surroundings).map_err(|source| StartCause::Spawn {
            exe: command.get_program().into(),
            source,
        })
    }

    fn owned(mut child: Child, group: Pid, surroundings: Surroundings) -> io::Result<Self> {
        match Self::watch(&child) {
            Ok(pidfd) => Ok(Self {
                pid: Pid::from_child(&child),
                parent: Parent::Us(child),
                group,
                surroundings,
                left: None,
                pidfd,
                reaped: None,
            }),
            Err(error) => {
                // Without a pidfd (out of descriptors) it could not be waited for without blocking.
                child.kill()?;
                child.wait()?;
                Err(error)
            }
        }
    }

    /// Takes over a daemon that someone else has started. Must be called within a runtime.
    pub(crate) fn adopt(daemon: Holder, lock: Inode, cgroup: Option<(PathBuf, Inode)>) -> io::Result<Self> {
        Ok(Self {
            pidfd: readable_fd(daemon.pidfd)?,
            parent: Parent::Other(lock),
            pid: daemon.pid,
            group: daemon.pid,
            surroundings: Surroundings::recalled(cgroup),
            left: None,
            reaped: None,
        })
    }

    fn watch(child: &Child) -> io::Result<AsyncFd<OwnedFd>> {
        readable_fd(pidfd_open(Pid::from_child(child), PidfdFlags::empty())?)
    }

    /// The process id, for logs only.
    pub(crate) fn id(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Waits until the child has ended and reaps it, taking whatever is left of its group along. Cancel safe; may
    /// be called again after it has ended.
    pub(crate) async fn exited(&mut self) -> ExitCause {
        loop {
            if let Some(cause) = self.reaped {
                return cause;
            }
            // One waits, which takes no place in a list of those who do.
            match poll_fn(|context| self.pidfd.poll_read_ready(context)).await {
                Ok(mut guard) => guard.clear_ready(),
                // The runtime is shutting down and drops this future next; `drop` reaps.
                Err(_) => std::future::pending().await,
            }
            if self.ended() {
                self.reap();
            }
        }
    }

    /// Whether the child has ended, reaped or not.
    fn ended(&self) -> bool {
        self.reaped.is_some() || wait_readable(self.pidfd.get_ref(), Timespec::default())
    }

    /// Reaps a child that has ended. Its group is killed first: until the leader is reaped the group's number is
    /// still ours.
    fn reap(&mut self) {
        self.kill_group();
        let cause = match &mut self.parent {
            Parent::Us(child) => match child.try_wait() {
                Ok(Some(status)) => status.into(),
                Ok(None) => return,
                Err(_) => ExitCause::Unknown,
            },
            Parent::Other(_) => ExitCause::Unknown,
        };
        // Of one that is not our child the cause is not known, but the kernel's count is.
        let killed = matches!(cause, ExitCause::Unknown) || cause == ExitCause::Signal(Signal::KILL.as_raw());
        self.reaped = Some(match killed && self.surroundings.oom_killed() {
            true => ExitCause::Oom,
            false => cause,
        });
        self.left = self.surroundings.remove();
    }

    /// The child's cgroup, if it has one of its own.
    pub(crate) fn cgroup(&self) -> Option<&Path> {
        self.surroundings.cgroup()
    }

    /// That cgroup's directory, by what it is.
    pub(crate) fn cgroup_inode(&self) -> Option<Inode> {
        self.surroundings.cgroup_inode()
    }

    /// What was round the child and could not be removed with it.
    pub(crate) fn take_left(&mut self) -> Option<(PathBuf, io::Error)> {
        self.left.take()
    }

    /// Asks the child to end.
    pub(crate) fn terminate(&self) {
        if self.reaped.is_none()
            && let Err(error) = pidfd_send_signal(&self.pidfd, Signal::TERM)
        {
            tracing::warn!(pid = self.id(), %error, "cannot send SIGTERM");
        }
    }

    /// Kills the child and its group.
    pub(crate) fn kill_group(&self) {
        if self.reaped.is_some() {
            return;
        }
        let sent = match &self.parent {
            Parent::Us(_) => kill_process_group(self.group, Signal::KILL),
            // Its group's number may be someone else's as soon as its parent has reaped it.
            Parent::Other(lock) => {
                let sent = pidfd_send_signal(&self.pidfd, Signal::KILL);
                state::holders(*lock)
                    .unwrap_or_default()
                    .iter()
                    .for_each(Holder::kill);
                sent
            }
        };
        // ESRCH: the leader is a zombie, or reaped, and nothing else is in the group.
        if let Err(error) = sent
            && error != rustix::io::Errno::SRCH
        {
            tracing::warn!(pid = self.id(), %error, "cannot send SIGKILL");
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.reaped.is_some() {
            return;
        }
        self.kill_group();
        if wait_readable(self.pidfd.get_ref(), DROP_WAIT) {
            self.reap();
        } else {
            tracing::error!(pid = self.id(), "killed, but does not end");
        }
    }
}

fn wait_readable(fd: &OwnedFd, timeout: Timespec) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)];
    loop {
        match poll(&mut fds, Some(&timeout)) {
            Ok(ready) => return ready > 0,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn sh(script: &str) -> Process {
        Process::spawn(Command::new("/bin/sh").args(["-c", script])).unwrap()
    }

    #[tokio::test]
    async fn reports_code_and_signal() {
        assert_eq!(sh("exit 7").exited().await, ExitCause::Code(7));
        assert_eq!(sh("kill -9 $$").exited().await, ExitCause::Signal(9));
        let mut process = sh("exec sleep 1000");
        process.terminate();
        assert_eq!(process.exited().await, ExitCause::Signal(15));
        assert_eq!(process.exited().await, ExitCause::Signal(15));
    }

    #[tokio::test]
    async fn drop_kills_and_reaps_before_it_returns() {
        let process = sh("exec sleep 1000");
        let proc_dir = format!("/proc/{}", process.id());
        assert!(Path::new(&proc_dir).exists());
        drop(process);
        assert!(!Path::new(&proc_dir).exists());
    }

    #[tokio::test]
    async fn the_group_goes_with_its_leader() {
        let (reader, writer) = io::pipe().unwrap();
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", "sleep 1000 & exit 0"])
            .stdout(writer.try_clone().unwrap());
        drop(writer);
        let mut process = Process::spawn(&mut command).unwrap();
        drop(command);
        assert_eq!(process.exited().await, ExitCause::Code(0));
        // The sleeping grandchild held the pipe: end of file means it is gone as well.
        let rest = tokio::task::spawn_blocking(move || io::read_to_string(reader).unwrap())
            .await
            .unwrap();
        assert_eq!(rest, "");
    }
}
