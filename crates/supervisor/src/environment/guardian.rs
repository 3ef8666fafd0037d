//! Kills a daemon whose supervisor is gone, however that went.
//!
//! The kernel's parent-death signal is not used: it fires when the *thread* that spawned the child ends, which in a
//! tokio runtime is any worker, and can be set in the child only. Instead both hold an end of a pipe, and an end of
//! file, which the kernel makes whatever kills the supervisor, is the signal. The embedded daemon reads the pipe
//! itself (its standard input). For any other program a shell does, as the leader of the daemon's process group: it
//! kills its own group, so no process number is involved that could be someone else's, and since it is there before
//! the daemon is, there is no moment without it.

use std::io::{self, PipeWriter};
use std::process::{Child, Command, Stdio};

use rustix::process::Pid;

use super::SHELL;

/// `read` ends at end of file; nothing is ever written.
const SCRIPT: &str = "read -r _; kill -s KILL 0";

/// The leader of the daemon's process group. Dropping it kills it and reaps it.
#[derive(Debug)]
pub(super) struct Guardian {
    child: Child,
    /// The supervisor's end.
    _lifeline: PipeWriter,
}

impl Guardian {
    pub(super) fn start() -> io::Result<Self> {
        use std::os::unix::process::CommandExt;
        let (reader, writer) = io::pipe()?;
        let child = Command::new(SHELL)
            .args(["-c", SCRIPT, "nydusbox-guardian"])
            .env_clear()
            .current_dir("/")
            .stdin(reader)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        Ok(Self {
            child,
            _lifeline: writer,
        })
    }

    /// The process group, which is valid until this is dropped.
    pub(super) fn group(&self) -> Pid {
        Pid::from_child(&self.child)
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        let ended = self.child.kill().and_then(|()| self.child.wait());
        if let Err(error) = ended {
            tracing::warn!(pid = self.child.id(), %error, "cannot end the guardian");
        }
    }
}
