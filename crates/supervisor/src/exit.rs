//! How a daemon ended.

use std::fmt;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use serde::{Deserialize, Serialize};

/// Why a process is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitCause {
    /// It exited with this status.
    Code(i32),
    /// A signal with this number ended it.
    Signal(i32),
    /// The kernel killed it because its cgroup's memory was used up.
    Oom,
    /// It is gone, and its status was not ours to have: it was adopted, or someone else took it (this process ignores
    /// SIGCHLD, or waits for any child).
    Unknown,
}

impl From<ExitStatus> for ExitCause {
    fn from(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(code), _) => Self::Code(code),
            (None, Some(signal)) => Self::Signal(signal),
            (None, None) => Self::Unknown,
        }
    }
}

impl fmt::Display for ExitCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exited with status {code}"),
            Self::Signal(number) => write!(f, "was ended by signal {number}"),
            Self::Oom => f.write_str("was killed because its memory limit was reached"),
            Self::Unknown => f.write_str("is gone, its status unknown"),
        }
    }
}

/// The end of a daemon: its cause and what it said last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Why it is gone.
    pub cause: ExitCause,
    /// The last lines of its standard output and error, oldest first, at most 20.
    pub last_lines: Vec<String>,
}

impl fmt::Display for Exit {
    /// The cause, and the last line if there is one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the daemon {}", self.cause)?;
        match self.last_lines.last() {
            Some(line) => write!(f, " (its last line: {line})"),
            None => Ok(()),
        }
    }
}
