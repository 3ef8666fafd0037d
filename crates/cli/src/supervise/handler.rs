//! What each request to `control.sock` means. docs/control.md says the same to its users.

use std::sync::Arc;
use std::time::Duration;

use hyper::Method;
use hyper::body::Bytes;
use nydusbox::{MountOutcome, MountRequest, Status, StopOutcome, UnmountOutcome};
use nydusbox_protocol::{ContainerId, Endpoint, MountPoint};
use tokio::sync::{mpsc, oneshot, watch};

use super::owner::{Change, Desk};
use super::report::{self, Subject};
use crate::control::wire::{self, Changed, Code, ControlError, MountBody, Outcome, SandboxInfo};
use crate::control::{Answer, Handler, Lines, ask_daemon};
use crate::error::Failure;

/// How long the daemon may take to say how it is. It takes less than a millisecond.
const ANSWERS_WITHIN: Duration = Duration::from_secs(1);

/// What is known of the sandbox, and how to have it changed.
#[derive(Debug)]
pub(super) struct Requests {
    subject: Arc<Subject>,
    status: watch::Receiver<Status>,
    desk: Desk,
}

impl Requests {
    pub(super) fn new(subject: Subject, status: watch::Receiver<Status>, desk: Desk) -> Self {
        Self {
            subject: Arc::new(subject),
            status,
            desk,
        }
    }

    /// The sandbox as it is now.
    pub(super) async fn info(&self) -> SandboxInfo {
        let status = self.status.borrow().clone();
        look(&self.subject, &status).await
    }

    fn watch(&self) -> Lines {
        let mut status = self.status.clone();
        // The first line comes at once.
        status.mark_changed();
        Lines::from_source((Arc::clone(&self.subject), status), next_status)
    }

    async fn mount(&self, body: &[u8]) -> Result<Changed, ControlError> {
        let body: MountBody = serde_json::from_slice(body).map_err(|e| bad_request("read the body", &e))?;
        let request = MountRequest::rafs(&body.container, &body.bootstrap, body.config)
            .map_err(|e| ControlError::of(Code::BadRequest, Failure::of(&e)))?
            .with_prefetch(body.prefetch_files);
        let at = request.at().clone();
        let outcome = self
            .ask(|reply| Change::Mount(request, reply))
            .await?
            .map_err(|e| report::mount_error(&e))?;
        let outcome = match outcome {
            MountOutcome::Mounted => Outcome::Mounted,
            MountOutcome::AlreadyMounted => Outcome::AlreadyMounted,
        };
        Ok(Changed { at, outcome })
    }

    async fn unmount(&self, query: &str) -> Result<Changed, ControlError> {
        let container = query
            .strip_prefix("container=")
            .ok_or_else(|| ControlError::new(Code::BadRequest, "the query is not container=ID"))?;
        // An id has no character that would be encoded, but for `+`.
        let container = ContainerId::new(container.replace("%2B", "+").replace("%2b", "+"))
            .map_err(|e| bad_request("use the container id", &e))?;
        let at = MountPoint::rafs_lowerdir(&container);
        let place = at.clone();
        let outcome = self
            .ask(|reply| Change::Unmount(place, reply))
            .await?
            .map_err(|e| report::unmount_error(&e))?;
        let outcome = match outcome {
            UnmountOutcome::Unmounted => Outcome::Unmounted,
            UnmountOutcome::WasNotMounted => Outcome::WasNotMounted,
        };
        Ok(Changed { at, outcome })
    }

    async fn ask<T>(&self, change: impl FnOnce(oneshot::Sender<T>) -> Change) -> Result<T, ControlError> {
        let (reply, result) = oneshot::channel();
        // Either fails when the owner is ending the sandbox.
        let _ = self.desk.changes.send(change(reply)).await;
        result.await.map_err(|_| {
            ControlError::new(
                Code::Stopping,
                format!("sandbox {} is being stopped", self.subject.id),
            )
        })
    }

    async fn stop(&self) -> Answer {
        // Full or closed: it is being stopped already, and both who ask hear the outcome.
        let _: Result<(), mpsc::error::TrySendError<()>> = self.desk.stop.try_send(());
        let mut ended = self.desk.ended.clone();
        let outcome: Option<Arc<StopOutcome>> = match ended.wait_for(Option::is_some).await {
            Ok(outcome) => (*outcome).clone(),
            Err(_) => None,
        };
        match outcome {
            Some(outcome) => Answer::json(&report::stopped(&self.subject.id, &outcome)),
            None => Answer::Failed(ControlError::new(Code::Internal, "the supervisor is ending")),
        }
    }
}

impl Handler for Requests {
    async fn answer(&self, method: &Method, path: &str, query: &str, body: Bytes) -> Answer {
        let changed = |result: Result<Changed, ControlError>| match result {
            Ok(changed) => Answer::json(&changed),
            Err(error) => Answer::Failed(error),
        };
        match (method, path) {
            (&Method::GET, wire::SANDBOX) if query == "watch" => Answer::Lines(self.watch()),
            (&Method::GET, wire::SANDBOX) => Answer::json(&self.info().await),
            (&Method::POST, wire::MOUNTS) => changed(self.mount(&body).await),
            (&Method::DELETE, wire::MOUNTS) => changed(self.unmount(query).await),
            (&Method::POST, wire::STOP) => self.stop().await,
            _ => Answer::Failed(ControlError::new(
                Code::NoRoute,
                format!("there is no {method} {path}"),
            )),
        }
    }
}

fn bad_request(what: &str, error: &(dyn std::error::Error + 'static)) -> ControlError {
    ControlError::of(Code::BadRequest, Failure::new(what, error))
}

async fn look(subject: &Subject, status: &Status) -> SandboxInfo {
    let target = Endpoint::DaemonInfoV2.path();
    let answer = tokio::time::timeout(ANSWERS_WITHIN, ask_daemon(&subject.api_socket, target)).await;
    report::info(subject, status, answer.ok().flatten().as_ref())
}

async fn next_status(
    (subject, mut status): (Arc<Subject>, watch::Receiver<Status>),
) -> Option<(String, (Arc<Subject>, watch::Receiver<Status>))> {
    // Closed: the sandbox is gone, and its last state has been told.
    status.changed().await.ok()?;
    let now = status.borrow_and_update().clone();
    let info = look(&subject, &now).await;
    let line = serde_json::to_string(&info).ok()?;
    Some((line, (subject, status)))
}
