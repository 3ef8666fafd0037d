//! A container's images mounted one after the other: all of them, or none.
//!
//! A client that goes away has its request dropped, at any moment. So the mounting is a task of its own, which undoes
//! what it has done when one layer is refused, and when nobody is there any more to be told that all are mounted: a
//! command that was interrupted leaves nothing.
//!
//! One container's change is carried out, and undone, before the next begins: in between, a mount would be told of layers
//! that are about to go.

use std::sync::Arc;

use nydusbox::{MountError, MountOutcome, MountRequest, Status};
use nydusbox_protocol::MountPoint;
use tokio::sync::{Mutex, MutexGuard, mpsc, oneshot, watch};

use super::owner::Change;
use super::report::{self, Subject};
use crate::control::wire::{Changed, Code, ControlError, Outcome};

/// Has the sandbox changed by its owner.
#[derive(Debug, Clone)]
pub(super) struct Changes {
    pub(super) subject: Arc<Subject>,
    pub(super) owner: mpsc::Sender<Change>,
    pub(super) status: watch::Receiver<Status>,
    /// Held while the images of a container are changed. Nobody waits long for it once the owner ends the sandbox: then
    /// nothing more is carried out.
    turn: Arc<Mutex<()>>,
}

impl Changes {
    pub(super) fn new(
        subject: Arc<Subject>,
        owner: mpsc::Sender<Change>,
        status: watch::Receiver<Status>,
    ) -> Self {
        Self {
            subject,
            owner,
            status,
            turn: Arc::default(),
        }
    }

    /// Waits until nobody changes a container's images.
    pub(super) async fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    /// Whether something is, or may be, mounted there.
    fn is_listed(&self, at: &MountPoint) -> bool {
        self.status.borrow().mounts.iter().any(|mount| mount.at == *at)
    }

    pub(super) async fn ask<T>(
        &self,
        change: impl FnOnce(oneshot::Sender<T>) -> Change,
    ) -> Result<T, ControlError> {
        let (reply, result) = oneshot::channel();
        // Either fails when the owner is ending the sandbox.
        let _ = self.owner.send(change(reply)).await;
        result.await.map_err(|_| self.stopping())
    }

    pub(super) fn stopping(&self) -> ControlError {
        ControlError::new(
            Code::Stopping,
            format!("sandbox {} is being stopped", self.subject.id),
        )
    }
}

/// What came of it, and by what to say that it was heard.
type Told = (Result<Changed, ControlError>, oneshot::Sender<()>);

/// Mounts in this order. The answer is for `at`. Dropping the future undoes it.
pub(super) async fn mount(
    changes: &Changes,
    requests: impl Iterator<Item = MountRequest> + Send + 'static,
    at: MountPoint,
) -> Result<Changed, ControlError> {
    let (tell, told) = oneshot::channel();
    let mounting = Mounting {
        changes: changes.clone(),
        mounted: Vec::new(),
    };
    tokio::spawn(mounting.run(requests, at, tell));
    let (result, heard) = told.await.map_err(|_| changes.stopping())?;
    let _ = heard.send(());
    result
}

struct Mounting {
    changes: Changes,
    /// By this request, or perhaps; what was there before stays.
    mounted: Vec<MountPoint>,
}

impl Mounting {
    async fn run(
        mut self,
        requests: impl Iterator<Item = MountRequest>,
        at: MountPoint,
        tell: oneshot::Sender<Told>,
    ) {
        let changes = self.changes.clone();
        let _turn = changes.turn().await;
        let result = self.mount(requests, at, &tell).await;
        if result.is_err() {
            self.undo().await;
        }
        let (heard, hears) = oneshot::channel();
        let _ = tell.send((result, heard));
        if hears.await.is_err() && !self.mounted.is_empty() {
            tracing::info!("whoever asked for a mount is gone; it is undone");
            self.undo().await;
        }
    }

    /// Goes on as long as somebody waits for it.
    async fn mount(
        &mut self,
        requests: impl Iterator<Item = MountRequest>,
        at: MountPoint,
        tell: &oneshot::Sender<Told>,
    ) -> Result<Changed, ControlError> {
        let mut outcome = Outcome::AlreadyMounted;
        for request in requests {
            if tell.is_closed() {
                break;
            }
            let at = request.at().clone();
            let was_listed = self.changes.is_listed(&at);
            match self.changes.ask(|reply| Change::Mount(request, reply)).await? {
                Ok(MountOutcome::AlreadyMounted) => {}
                Ok(MountOutcome::Mounted) => {
                    outcome = Outcome::Mounted;
                    self.mounted.push(at);
                }
                Err(error) => {
                    if !was_listed && may_be_mounted(&error) {
                        self.mounted.push(at);
                    }
                    return Err(report::mount_error(&error));
                }
            }
        }
        Ok(Changed { at, outcome })
    }

    async fn undo(&mut self) {
        // The container's own place first, which is above the others.
        for at in std::mem::take(&mut self.mounted).into_iter().rev() {
            match self.changes.ask(|reply| Change::Unmount(at, reply)).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "a layer is left mounted"
                ),
                // It goes with the sandbox.
                Err(_) => return,
            }
        }
    }
}

/// Whether the daemon may have done what failed, or may yet.
fn may_be_mounted(error: &MountError) -> bool {
    matches!(error, MountError::Daemon { source, .. } if !source.is_definite())
}

#[cfg(test)]
#[path = "layers_tests.rs"]
mod tests;
