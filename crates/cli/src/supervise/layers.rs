//! A container's images mounted one after the other: all of them, or none.
//!
//! A client that goes away has its request dropped, at any moment. So the mounting is a task of its own, which undoes
//! what it has done when one layer is refused, and when nobody is there any more to be told that all are mounted: a
//! command that was interrupted leaves nothing.

use std::sync::Arc;

use nydusbox::{MountOutcome, MountRequest};
use nydusbox_protocol::MountPoint;
use tokio::sync::{mpsc, oneshot};

use super::owner::Change;
use super::report::{self, Subject};
use crate::control::wire::{Changed, Code, ControlError, Outcome};

/// Has the sandbox changed by its owner.
#[derive(Debug, Clone)]
pub(super) struct Changes {
    pub(super) subject: Arc<Subject>,
    pub(super) owner: mpsc::Sender<Change>,
}

impl Changes {
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
    /// By this request; what was there before stays.
    mounted: Vec<MountPoint>,
}

impl Mounting {
    async fn run(
        mut self,
        requests: impl Iterator<Item = MountRequest>,
        at: MountPoint,
        tell: oneshot::Sender<Told>,
    ) {
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
            match self.changes.ask(|reply| Change::Mount(request, reply)).await? {
                Ok(MountOutcome::AlreadyMounted) => {}
                Ok(MountOutcome::Mounted) => {
                    outcome = Outcome::Mounted;
                    self.mounted.push(at);
                }
                Err(error) => return Err(report::mount_error(&error)),
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
