//! The sandbox's owner: the only one who has the `Sandbox`. Handlers send it orders, and ask it to stop.
//!
//! A change under way never delays a stop: it is dropped, its sender is told that the sandbox is stopping, and the
//! library, which carries out even what nobody waits for, sees to the rest.

use std::sync::Arc;

use nydusbox::{
    CallError, MountError, MountOutcome, MountRequest, RemountError, Sandbox, StopOutcome, UnmountError,
    UnmountOutcome,
};
use nydusbox_protocol::{LogLevel, MountPoint};
use tokio::sync::{mpsc, oneshot, watch};

/// A change of the sandbox, and where its result goes.
#[derive(Debug)]
pub(super) enum Change {
    Mount(MountRequest, oneshot::Sender<Result<MountOutcome, MountError>>),
    Remount(MountRequest, oneshot::Sender<Result<(), RemountError>>),
    Unmount(MountPoint, oneshot::Sender<Result<UnmountOutcome, UnmountError>>),
}

/// A log level, and where the result goes.
#[derive(Debug)]
pub(super) struct Level(
    pub(super) LogLevel,
    pub(super) oneshot::Sender<Result<(), CallError>>,
);

/// The handlers' ends.
#[derive(Debug)]
pub(super) struct Desk {
    pub(super) changes: mpsc::Sender<Change>,
    pub(super) levels: mpsc::Sender<Level>,
    pub(super) stop: mpsc::Sender<()>,
    pub(super) ended: watch::Receiver<Option<Arc<StopOutcome>>>,
}

/// The owner's ends.
#[derive(Debug)]
pub(super) struct Owner {
    sandbox: Sandbox,
    changes: mpsc::Receiver<Change>,
    levels: mpsc::Receiver<Level>,
    stop: mpsc::Receiver<()>,
    ended: watch::Sender<Option<Arc<StopOutcome>>>,
}

impl Owner {
    pub(super) fn new(sandbox: Sandbox) -> (Self, Desk) {
        let (changes, changes_in) = mpsc::channel(16);
        let (levels, levels_in) = mpsc::channel(16);
        let (stop, stop_in) = mpsc::channel(1);
        let (ended, ended_in) = watch::channel(None);
        let desk = Desk {
            changes,
            levels,
            stop,
            ended: ended_in,
        };
        let owner = Self {
            sandbox,
            changes: changes_in,
            levels: levels_in,
            stop: stop_in,
            ended,
        };
        (owner, desk)
    }

    /// Carries out changes until someone asks for the end, here or through the desk; then ends the sandbox.
    pub(super) async fn run(self, asked: impl Future<Output = ()>) -> Arc<StopOutcome> {
        let Self {
            sandbox,
            mut changes,
            mut levels,
            mut stop,
            ended,
        } = self;
        tokio::select! {
            biased;
            () = asked => {}
            Some(()) = stop.recv() => {}
            () = carry_out(&sandbox, &mut changes) => {}
            () = set_levels(&sandbox, &mut levels) => {}
        }
        // Those who wait to be served hear that it is too late.
        drop((changes, levels));
        let outcome = Arc::new(sandbox.stop().await);
        ended.send_replace(Some(Arc::clone(&outcome)));
        outcome
    }
}

/// One after the other, as the daemon does.
async fn carry_out(sandbox: &Sandbox, changes: &mut mpsc::Receiver<Change>) {
    while let Some(change) = changes.recv().await {
        // Whoever does not wait for the result any more does not need it.
        match change {
            Change::Mount(request, reply) => drop(reply.send(sandbox.mount(request).await)),
            Change::Remount(request, reply) => drop(reply.send(sandbox.remount(request).await)),
            Change::Unmount(at, reply) => drop(reply.send(sandbox.unmount(at).await)),
        }
    }
}

/// Beside the changes: a slow mount is when one wants to see more.
async fn set_levels(sandbox: &Sandbox, levels: &mut mpsc::Receiver<Level>) {
    while let Some(Level(level, reply)) = levels.recv().await {
        drop(reply.send(sandbox.set_log_level(level).await));
    }
}
