//! Errors of the sandbox's operations, one per operation.
//!
//! Messages are fragments that read after "failed to" and never repeat their source; print the chain once, at the
//! edge. What a call to the daemon can answer is [`CallError`].

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use nydusbox_protocol::{DaemonState, MountPoint, SandboxId};

use crate::binds::BindError;
use crate::client::CallError;
use crate::dir::{DirError, Leftover};
use crate::environment::EnvironmentError;
use crate::exit::{Exit, ExitCause};
use crate::preflight::{ArgumentError, PreflightError};
use crate::slots::SLOTS;

/// An error with its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// A sandbox that did not start. Nothing of it is left but what `leftovers` names.
#[derive(Debug, thiserror::Error)]
#[error("start sandbox {sandbox}")]
#[non_exhaustive]
pub struct StartError {
    /// Which sandbox.
    pub sandbox: SandboxId,
    /// The first thing that went wrong.
    #[source]
    pub cause: Box<StartCause>,
    /// What the daemon printed last, oldest first, at most 20 lines.
    pub last_lines: Vec<String>,
    /// What could not be undone; normally nothing.
    pub leftovers: Vec<Leftover>,
}

/// Why a sandbox did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartCause {
    /// Its directory could not be taken.
    #[error(transparent)]
    Dir(#[from] DirError),
    /// An argument of the caller's that the daemon would not take.
    #[error(transparent)]
    Argument(#[from] ArgumentError),
    /// The program could not be asked which arguments it takes.
    #[error(transparent)]
    Preflight(#[from] PreflightError),
    /// A socket, the log file or a watch could not be made.
    #[error("{action} {path:?}")]
    Prepare {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The network namespace could not be entered, or a limit that is required not applied.
    #[error(transparent)]
    Environment(#[from] EnvironmentError),
    /// The program could not be executed.
    #[error("execute {exe:?}")]
    Spawn {
        /// The program.
        exe: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The daemon ended before it served.
    #[error("wait for the daemon: it {0}")]
    Exited(ExitCause),
    /// The deadline of the whole start passed.
    #[error("wait longer than {after:?} for {waiting_for}")]
    Deadline {
        /// The deadline.
        after: Duration,
        /// What had not happened by then.
        waiting_for: WaitingFor,
    },
    /// What answers on the API socket does not answer as a daemon does.
    #[error("ask the daemon for its state")]
    Api(#[source] CallError),
    /// The daemon refused to share the directory.
    #[error("share {share:?}")]
    Share {
        /// The directory.
        share: String,
        /// Why.
        #[source]
        source: CallError,
    },
}

/// What a start was waiting for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WaitingFor {
    /// The program to say which arguments it takes.
    Preflight,
    /// The daemon to bind its API socket.
    Socket,
    /// Its first answer.
    Answer,
    /// Its state to become RUNNING.
    Running {
        /// What it said last.
        state: DaemonState,
    },
    /// The shared directory's mount.
    Share,
}

impl std::fmt::Display for WaitingFor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Preflight => f.write_str("the program to say which arguments it takes"),
            Self::Socket => f.write_str("the daemon to bind its API socket"),
            Self::Answer => f.write_str("the daemon's first answer"),
            Self::Running { state } => write!(f, "the daemon to run (its state is {state:?})"),
            Self::Share => f.write_str("the daemon to share the directory"),
        }
    }
}

/// Why a mount was not made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MountError {
    /// Something else is mounted there; unmount it first.
    #[error("mount at {at}: something else is mounted there")]
    Conflict {
        /// Where.
        at: MountPoint,
    },
    /// The daemon's VFS has no mounts inside mounts.
    #[error("mount at {at}: it overlaps the mount at {with}")]
    Overlaps {
        /// Where.
        at: MountPoint,
        /// The mount in the way.
        with: MountPoint,
    },
    /// No slot is left; what is mounted is not affected.
    #[error("mount at {at}: all {SLOTS} slots of the daemon are in use")]
    SlotsExhausted {
        /// Where.
        at: MountPoint,
    },
    /// A snapshot's directory is shown in the share, and there is none.
    #[error("mount at {at}: its snapshot directory needs a shared directory, and the sandbox has none")]
    NoShare {
        /// Where.
        at: MountPoint,
    },
    /// The snapshot's directory cannot be bound; nothing was mounted.
    #[error("mount at {at} with its snapshot directory")]
    Snapshotdir {
        /// Where.
        at: MountPoint,
        /// Why.
        #[source]
        source: BindError,
    },
    /// The daemon reads requests of a certain size at most: a stock nydusd 51200 bytes, ours 1 MiB.
    #[error("mount at {at}: the request has {len_bytes} bytes, the daemon takes {limit_bytes}")]
    TooLarge {
        /// Where.
        at: MountPoint,
        /// The request's size.
        len_bytes: usize,
        /// The daemon's limit.
        limit_bytes: usize,
    },
    /// The daemon refused, or its answer was lost.
    #[error("mount at {at}")]
    Daemon {
        /// Where.
        at: MountPoint,
        /// Why.
        #[source]
        source: CallError,
    },
    /// The daemon is gone.
    #[error("mount at {at}: {exit}")]
    Exited {
        /// Where.
        at: MountPoint,
        /// How it ended.
        exit: Exit,
    },
    /// The daemon ended, and no other one served before the request's time was over. It was not carried out.
    #[error("mount at {at}: the daemon is being restarted, for more than {after:?}")]
    Recovering {
        /// Where.
        at: MountPoint,
        /// How long the request has waited.
        after: Duration,
    },
    /// The sandbox is being stopped.
    #[error("mount at {at}: the sandbox is stopping")]
    Stopping {
        /// Where.
        at: MountPoint,
    },
}

/// Why a mount did not get its new image or configuration. What is mounted there is as it was, unless the daemon's
/// answer was lost.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RemountError {
    /// Nothing is mounted there.
    #[error("remount {at}: nothing is mounted there")]
    NotMounted {
        /// Where.
        at: MountPoint,
    },
    /// Only an image can take an image's place.
    #[error("remount {at}: only an image can be remounted, with an image")]
    NotAnImage {
        /// Where.
        at: MountPoint,
    },
    /// As [`MountError::TooLarge`].
    #[error("remount {at}: the request has {len_bytes} bytes, the daemon takes {limit_bytes}")]
    TooLarge {
        /// Where.
        at: MountPoint,
        /// The request's size.
        len_bytes: usize,
        /// The daemon's limit.
        limit_bytes: usize,
    },
    /// The daemon refused, or its answer was lost.
    #[error("remount {at}")]
    Daemon {
        /// Where.
        at: MountPoint,
        /// Why.
        #[source]
        source: CallError,
    },
    /// The daemon is gone.
    #[error("remount {at}: {exit}")]
    Exited {
        /// Where.
        at: MountPoint,
        /// How it ended.
        exit: Exit,
    },
    /// As [`MountError::Recovering`].
    #[error("remount {at}: the daemon is being restarted, for more than {after:?}")]
    Recovering {
        /// Where.
        at: MountPoint,
        /// How long the request has waited.
        after: Duration,
    },
    /// The sandbox is being stopped.
    #[error("remount {at}: the sandbox is stopping")]
    Stopping {
        /// Where.
        at: MountPoint,
    },
}

/// Why an unmount failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnmountError {
    /// The daemon refused, or its answer was lost.
    #[error("unmount {at}")]
    Daemon {
        /// Where.
        at: MountPoint,
        /// Why.
        #[source]
        source: CallError,
    },
    /// The daemon is gone, and its mounts with it.
    #[error("unmount {at}: {exit}")]
    Exited {
        /// Where.
        at: MountPoint,
        /// How it ended.
        exit: Exit,
    },
    /// As [`MountError::Recovering`].
    #[error("unmount {at}: the daemon is being restarted, for more than {after:?}")]
    Recovering {
        /// Where.
        at: MountPoint,
        /// How long the request has waited.
        after: Duration,
    },
    /// The sandbox is being stopped.
    #[error("unmount {at}: the sandbox is stopping")]
    Stopping {
        /// Where.
        at: MountPoint,
    },
}
