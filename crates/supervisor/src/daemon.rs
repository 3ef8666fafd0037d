//! A running daemon: its process and its output, watched by one future.
//!
//! Whoever waits for the daemon's end also reads what it prints, so it can never block on a full pipe. Built by
//! [`crate::launch`], then owned by [`crate::driver`].

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout, timeout_at};

use crate::binds::Inode;
use crate::dir::Leftover;
use crate::exit::{Exit, ExitCause};
use crate::output::Output;
use crate::process::Process;

/// How long after the end of the process its pipe may still be held open (by something that left its process
/// group) before the last lines are taken as they are.
const DRAIN: Duration = Duration::from_millis(40);
/// How long a killed process may take to be reaped. Longer only happens in uninterruptible sleep.
pub(crate) const REAP: Duration = Duration::from_secs(5);

/// A daemon. Dropping it kills its process group and reaps it before `drop` returns.
#[derive(Debug)]
pub(crate) struct Daemon {
    process: Process,
    output: Output,
    version: String,
    ended: Option<(ExitCause, Instant)>,
}

impl Daemon {
    pub(crate) fn new(process: Process, output: Output) -> Self {
        Self {
            process,
            output,
            version: String::new(),
            ended: None,
        }
    }

    /// The process id, for logs only.
    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// The version it names in its answers; empty before the first.
    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    pub(crate) fn set_version(&mut self, version: String) {
        self.version = version;
    }

    /// Its cgroup, if it has one of its own.
    pub(crate) fn cgroup(&self) -> Option<&Path> {
        self.process.cgroup()
    }

    /// That cgroup's directory, by what it is.
    pub(crate) fn cgroup_inode(&self) -> Option<Inode> {
        self.process.cgroup_inode()
    }

    /// What was made for it and could not be removed when it was reaped.
    pub(crate) fn take_left(&mut self) -> Option<Leftover> {
        let (path, source) = self.process.take_left()?;
        Some(Leftover::Path { path, source })
    }

    /// The last lines it has printed so far.
    pub(crate) fn last_lines(&self) -> Vec<String> {
        self.output.last_lines()
    }

    /// From now on somebody is told each time it prints that a VMM has come or gone.
    pub(crate) fn tell_of_frontends(&mut self, whom: Arc<Notify>) {
        self.output.tell_of_frontends(whom);
    }

    /// A call begins: what it prints meanwhile can wait.
    pub(crate) fn leave_output(&mut self) {
        self.output.leave();
    }

    /// Waits for the daemon's end and reads its output meanwhile; resolves when the process is reaped and its
    /// output read to the end. Cancel safe; resolves again at once when called again.
    pub(crate) async fn exited(&mut self) -> Exit {
        let (cause, at) = loop {
            if let Some(ended) = self.ended {
                break ended;
            }
            tokio::select! {
                biased;
                cause = self.process.exited() => self.ended = Some((cause, Instant::now())),
                () = self.output.pump() => {
                    // A daemon that prints without pause must not use up the task's turn: what waits beside this
                    // future is polled after every chunk.
                    tokio::task::yield_now().await;
                }
            }
        };
        while !self.output.ended() && timeout_at(at + DRAIN, self.output.pump_at_once()).await.is_ok() {}
        Exit {
            cause,
            last_lines: self.output.last_lines(),
        }
    }

    /// Asks it to end.
    pub(crate) fn terminate(&self) {
        self.process.terminate();
    }

    /// Kills it and its process group.
    pub(crate) fn kill(&self) {
        self.process.kill_group();
    }

    /// Kills it and waits until it is reaped; `None` when it does not go within [`REAP`].
    pub(crate) async fn kill_and_reap(&mut self) -> Option<Exit> {
        self.kill();
        timeout(REAP, self.exited()).await.ok()
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::output::LogFile;
    use nydusbox_protocol::SandboxId;
    use std::process::{Command, Stdio};

    /// Time is paused and moves only while nothing but a timer is waited for: what passes here is what a caller
    /// waits beyond the end of the process.
    #[tokio::test(start_paused = true)]
    async fn last_lines_come_within_50_ms_of_the_exit_though_the_pipe_stays_open() {
        let dir = tempfile::tempdir().unwrap();
        let log = LogFile::create(&dir.path().join("log"), &dir.path().join("log.1")).unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", "echo the last line; exit 3"])
            .stdin(Stdio::null())
            .stdout(writer.try_clone().unwrap())
            .stderr(writer.try_clone().unwrap());
        let output = Output::new(
            reader.into(),
            log,
            SandboxId::new("s1").unwrap(),
            crate::secrets::Secrets::default(),
        )
        .unwrap();
        let process = Process::spawn(&mut command).unwrap();
        drop(command);
        let begun = Instant::now();
        let exit = Daemon::new(process, output).exited().await;
        assert_eq!(exit.cause, ExitCause::Code(3));
        assert_eq!(exit.last_lines, ["the last line"]);
        let waited = begun.elapsed();
        assert!(waited > Duration::ZERO, "the pipe was not waited for at all");
        assert!(waited <= Duration::from_millis(50), "{waited:?}");
        drop(writer);
    }
}
