//! What each request to `control.sock` means. docs/control.md says the same to its users.

use std::sync::Arc;
use std::time::Duration;

use hyper::Method;
use hyper::body::Bytes;
use nydusbox::{EventItem, Events, MountRequest, Status, StopOutcome, UnmountOutcome};
use nydusbox_protocol::{ContainerId, Endpoint, MountPoint, SandboxId};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot, watch};

use super::cache_keeper::CacheKeeper;
use super::layers::{self, Changes};
use super::owner::{Change, Desk, Level};
use super::report::{self, Subject};
use crate::control::wire::{
    self, Changed, Code, ControlError, ImageBody, LevelBody, MountBody, Outcome, SandboxInfo,
};
use crate::control::{Answer, Handler, Lines, ask_daemon};
use crate::error::Failure;

/// How long the daemon may take to say how it is. It takes less than a millisecond.
const ANSWERS_WITHIN: Duration = Duration::from_secs(1);

/// That somebody is there.
#[derive(Debug, Serialize)]
struct Greeting<'a> {
    id: &'a SandboxId,
}

/// What is known of the sandbox, and how to have it changed.
#[derive(Debug)]
pub(super) struct Requests {
    subject: Arc<Subject>,
    status: watch::Receiver<Status>,
    /// Not read itself: each reader has a clone, which begins at the beginning.
    events: Events,
    changes: Changes,
    desk: Desk,
    caches: Arc<CacheKeeper>,
}

impl Requests {
    pub(super) fn new(
        subject: Subject,
        status: watch::Receiver<Status>,
        events: Events,
        desk: Desk,
        caches: Arc<CacheKeeper>,
    ) -> Self {
        let subject = Arc::new(subject);
        Self {
            caches,
            changes: Changes::new(Arc::clone(&subject), desk.changes.clone(), status.clone()),
            subject,
            status,
            events,
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

    /// The body, when its certificates are trusted.
    fn trusted(&self, body: &[u8]) -> Result<MountBody, ControlError> {
        let body: MountBody = parse(body)?;
        self.subject
            .trust
            .add(&body.ca_certificates)
            .map_err(|e| ControlError::of(Code::Internal, Failure::new("trust the certificates", &e)))?;
        Ok(body)
    }

    /// Mounts layers from the lowest up, so that a container's own place appears last.
    async fn mount(&self, body: &[u8]) -> Result<Changed, ControlError> {
        let requests = mount_requests(self.trusted(body)?)?;
        let at = requests.first.at().clone();
        layers::mount(&self.changes, requests.upwards(), at).await
    }

    async fn remount(&self, body: &[u8]) -> Result<Changed, ControlError> {
        let requests = mount_requests(self.trusted(body)?)?;
        let at = requests.first.at().clone();
        let _turn = self.changes.turn().await;
        for request in requests.upwards() {
            self.changes
                .ask(|reply| Change::Remount(request, reply))
                .await?
                .map_err(|e| report::remount_error(&e))?;
        }
        Ok(Changed {
            at,
            outcome: Outcome::Remounted,
        })
    }

    /// Unmounts a container's own place, and then what layers it has below.
    async fn unmount(&self, query: &str) -> Result<Changed, ControlError> {
        let container = query
            .strip_prefix("container=")
            .ok_or_else(|| ControlError::new(Code::BadRequest, "the query is not container=ID"))?;
        // An id has no character that would be encoded, but for `+`.
        let container = ContainerId::new(container.replace("%2B", "+").replace("%2b", "+"))
            .map_err(|e| bad_request("use the container id", &e))?;
        let own = MountPoint::rafs_lowerdir(&container);
        let _turn = self.changes.turn().await;
        let layers: Vec<MountPoint> = self
            .status
            .borrow()
            .mounts
            .iter()
            .map(|mount| mount.at.clone())
            .filter(|at| *at != own && at.is_layer_of(&container))
            .collect();
        let mut outcome = Outcome::WasNotMounted;
        for at in std::iter::once(own.clone()).chain(layers) {
            let unmounted = self.changes.ask(|reply| Change::Unmount(at, reply)).await?;
            if unmounted.map_err(|e| report::unmount_error(&e))? == UnmountOutcome::Unmounted {
                outcome = Outcome::Unmounted;
            }
        }
        Ok(Changed { at: own, outcome })
    }

    async fn set_level(&self, body: &[u8]) -> Result<LevelBody, ControlError> {
        let body: LevelBody = parse(body)?;
        let (reply, result) = oneshot::channel();
        let _ = self.desk.levels.send(Level(body.level, reply)).await;
        match result.await {
            Ok(Ok(())) => Ok(body),
            Ok(Err(error)) => Err(report::call_error("change the log level", &error)),
            Err(_) => Err(self.changes.stopping()),
        }
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
        let changed = |result: Result<Changed, ControlError>| {
            self.caches.changed();
            match result {
                Ok(changed) => Answer::json(&changed),
                Err(error) => Answer::Failed(error),
            }
        };
        match (method, path) {
            (&Method::GET, wire::GREETING) => Answer::json(&Greeting { id: &self.subject.id }),
            (&Method::GET, wire::SANDBOX) if query == "watch" => Answer::Lines(self.watch()),
            (&Method::GET, wire::SANDBOX) => Answer::json(&self.info().await),
            (&Method::GET, wire::EVENTS) if query == "follow" => {
                Answer::Lines(Lines::from_source(self.events.clone(), next_event))
            }
            (&Method::GET, wire::EVENTS) => {
                Answer::Lines(Lines::from_source(self.events.clone(), known_event))
            }
            (&Method::PUT, wire::LOG_LEVEL) => match self.set_level(&body).await {
                Ok(level) => Answer::json(&level),
                Err(error) => Answer::Failed(error),
            },
            (&Method::PUT, wire::MOUNTS) => changed(self.remount(&body).await),
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

/// A container's images as requests; the first is the topmost and has the container's own place.
struct MountRequests {
    first: MountRequest,
    below: Vec<MountRequest>,
}

impl MountRequests {
    fn upwards(self) -> impl Iterator<Item = MountRequest> {
        self.below.into_iter().rev().chain([self.first])
    }
}

fn mount_requests(body: MountBody) -> Result<MountRequests, ControlError> {
    let container = &body.container;
    let mut requests = Vec::with_capacity(body.images.len());
    for (layer, image) in body.images.into_iter().enumerate() {
        let ImageBody {
            bootstrap,
            config,
            prefetch_files,
            prefetch_parts,
        } = image;
        let request = match (layer, &body.snapshotdir) {
            (0, Some(dir)) => MountRequest::rafs_with_snapshotdir(container, bootstrap, config, dir),
            (layer, _) => MountRequest::rafs_layer(container, layer, bootstrap, config),
        };
        let request = request.map_err(|e| bad_request(&format!("mount images[{layer}]"), &e))?;
        let request = request.with_prefetch(prefetch_files);
        requests.push(request.with_prefetch_parts(prefetch_parts));
    }
    let mut requests = requests.into_iter();
    match requests.next() {
        Some(first) => Ok(MountRequests {
            first,
            below: requests.collect(),
        }),
        None => Err(ControlError::new(Code::BadRequest, "the body has no image")),
    }
}

/// Says where a body is wrong. What the parser says is not repeated: it quotes values, and a body holds credentials.
fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ControlError> {
    serde_json::from_slice(body).map_err(|e| {
        let (line, column) = (e.line(), e.column());
        let said = format!("the body cannot be understood (line {line}, column {column})");
        ControlError::new(Code::BadRequest, said)
    })
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

async fn next_event(mut events: Events) -> Option<(String, Events)> {
    let item = events.next().await?;
    Some((event_line(item)?, events))
}

/// Only what has happened so far.
async fn known_event(mut events: Events) -> Option<(String, Events)> {
    let item = events.try_next()?;
    Some((event_line(item)?, events))
}

fn event_line(item: EventItem) -> Option<String> {
    match item {
        EventItem::Record(record) => serde_json::to_string(&record).ok(),
        EventItem::Lost { count } => Some(format!("{{\"lost\":{count}}}")),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn of_a_path_that_is_none_the_field_is_named_and_not_the_value() {
        let image = |bootstrap: &str| format!(r#"{{"bootstrap": "{bootstrap}", "config": "/image.boot"}}"#);
        let (good, bad) = (image("/b"), image("S3CR3T"));
        let wrong = [
            (
                format!(r#"{{"container": "c1", "images": [{good}, {bad}]}}"#),
                "images[1]",
                "bootstrap",
            ),
            (
                format!(r#"{{"container": "c1", "images": [{good}], "snapshotdir": "S3CR3T"}}"#),
                "images[0]",
                "snapshotdir",
            ),
        ];
        for (body, layer, field) in wrong {
            let refused = mount_requests(parse(body.as_bytes()).unwrap());
            let Err(ControlError { message, code, .. }) = refused else {
                panic!("{body}")
            };
            assert_eq!(code, Code::BadRequest);
            assert!(!message.contains("S3CR3T"), "{message}");
            assert!(message.contains(layer) && message.contains(field), "{message}");
        }
    }

    #[test]
    fn what_is_said_of_a_body_that_is_wrong_quotes_nothing_of_it() {
        for body in [
            r#"{"container": "c1", "images": "S3CR3T"}"#,
            r#"{"container": "c1", "images": [{"bootstrap": "/b", "config": "{}", "prefetch_files": "S3CR3T"}]}"#,
            r#"{"container": "S3CR3T/", "images": []}"#,
            r#""S3CR3T""#,
        ] {
            let error = parse::<MountBody>(body.as_bytes()).unwrap_err();
            assert_eq!(error.code, Code::BadRequest);
            assert!(!error.message.contains("S3CR3T"), "{}", error.message);
            assert!(error.message.contains("(line 1, column "), "{}", error.message);
        }
    }
}
