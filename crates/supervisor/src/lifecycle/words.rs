//! What the machine and its driver say to each other.

use std::time::Duration;

use nydusbox_protocol::{BackendCollection, MountPoint};

#[cfg(doc)]
use super::Lifecycle;
use crate::client::CallError;
use crate::error::{MountError, RemountError, UnmountError};
use crate::events::SandboxEvent;
use crate::exit::Exit;
use crate::ledger::UnmountOutcome;
use crate::request::MountRequest;
use crate::shared_command::SharedCommand;
use crate::stop::{Ending, StopStep};

/// How a granted mount went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MountOutcome {
    /// The daemon has mounted it.
    Mounted,
    /// The same was mounted there already; nothing was done.
    AlreadyMounted,
}

/// What happened.
#[derive(Debug)]
pub(crate) enum Event {
    /// A request; only while [`Lifecycle::takes_requests`].
    Request(Request),
    /// The call under way ended.
    Answer(Result<(), CallError>),
    /// The daemon is gone and reaped.
    Exited(Exit),
    /// Another daemon runs, with this process id, and has no mounts.
    Launched(u32),
    /// There is no other daemon; nothing of the attempt is left.
    LaunchFailed { reason: String, last_lines: Vec<String> },
    /// A VMM is, or is not, connected.
    Vmm(bool),
    /// A daemon that was taken over says what it has mounted, which it did not do then.
    Told(BackendCollection),
    /// The owner wants an orderly end.
    Stop(Ending),
    /// The owner is gone.
    Abandoned,
    /// The timer armed last has run out.
    Elapsed,
}

#[derive(Debug)]
pub(crate) enum Request {
    Mount(MountRequest),
    Remount(MountRequest),
    Unmount(MountPoint),
}

/// What is to be done, in this order.
#[derive(Debug)]
pub(crate) enum Action {
    Call(Call),
    /// Forget the call under way: no `Answer` for it may come any more.
    AbandonCall,
    /// Answers the one request that is open.
    Reply(Reply),
    /// Sets the timer, replacing what was set.
    Arm(Timer),
    Disarm,
    Terminate,
    Kill,
    /// Start another daemon: `Launched` or `LaunchFailed` is owed.
    Launch,
    /// Undo the launch under way.
    AbandonLaunch,
    /// Tells whoever follows the sandbox.
    Emit(SandboxEvent),
    /// The end.
    Finish(StopStep),
}

impl Action {
    /// Whether it has no effect but that somebody knows more.
    pub(crate) fn only_tells(&self) -> bool {
        match self {
            Self::Reply(_) | Self::Emit(_) => true,
            Self::Call(_)
            | Self::AbandonCall
            | Self::Arm(_)
            | Self::Disarm
            | Self::Terminate
            | Self::Kill
            | Self::Launch
            | Self::AbandonLaunch
            | Self::Finish(_) => false,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Call {
    Mount(MountPoint, SharedCommand),
    Remount(MountPoint, SharedCommand),
    Unmount(MountPoint),
    /// Mounts again what the daemon before had.
    Restore(MountPoint, SharedCommand),
    /// Mounts something harmless there and unmounts it.
    Skip(MountPoint),
    /// From now on a VMM can connect.
    Admit,
}

#[derive(Debug)]
pub(crate) enum Reply {
    Mount(Result<MountOutcome, MountError>),
    Remount(Result<(), RemountError>),
    Unmount(Result<UnmountOutcome, UnmountError>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Timer {
    /// A broken connection is usually the first sign of an exit: so long it may take to show.
    ExitShows,
    /// All the unmounting of a stop.
    Unmount,
    /// From SIGTERM to SIGKILL.
    Grace,
    /// From SIGKILL to reaped.
    Reap,
    /// Before another daemon is started.
    Backoff(Duration),
}
