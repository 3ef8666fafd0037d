//! Observes a daemon, round after round, on a connection of its own.
//!
//! Every call has a short deadline and only reads; a round that is dropped leaves nothing but a closed connection.
//! What it finds is judged in [`super::judge`].

use std::future::pending;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nydusbox_protocol::{BackendCollection, FsType, MountPoint, SocketPath};
use serde::Deserialize;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use super::HealthReport;
use super::blobs::{Blobs, Finder};
use super::judge::{InFlight, Judge, Observed};
use crate::client::{ApiClient, CallError};
use crate::config::SandboxConfig;
use crate::events::SandboxEvent;
use crate::secrets::Secrets;
use crate::status::{Status, StatusPhase};

/// How long one call of a round may take: an API that is well answers in a fraction of a millisecond.
const CALL: Duration = Duration::from_secs(1);

/// The least between two rounds, whatever happens meanwhile.
const APART: Duration = Duration::from_millis(100);

/// What a round has found.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) report: HealthReport,
    /// What has become worse.
    pub(crate) worse: Vec<SandboxEvent>,
    /// What the daemon has mounted, if that was asked.
    pub(crate) told: Option<BackendCollection>,
}

/// Has one sandbox observed, beside whoever takes the reports, until it is dropped.
pub(crate) struct Watch {
    /// `None`: it is never observed.
    found: Option<mpsc::Receiver<Found>>,
    look: Arc<Notify>,
    task: Option<JoinHandle<()>>,
}

impl Watch {
    /// The first round is due at once. If the daemon is `untold`, it is asked what it has mounted as soon as it
    /// answers. Must be called within a runtime.
    pub(crate) fn new(config: &SandboxConfig, status: watch::Receiver<Status>, untold: bool) -> Self {
        let look = Arc::new(Notify::new());
        let begun = config.health_interval().map(|interval| {
            let (sender, found) = mpsc::channel(1);
            let observer = Observer {
                interval,
                socket: config.api_socket().clone(),
                secrets: config.secrets().clone(),
                status,
                look: Arc::clone(&look),
                untold,
            };
            (found, tokio::spawn(observer.run(sender)))
        });
        let (found, task) = begun.unzip();
        Self { found, look, task }
    }

    /// Who is told has the next round begin soon: there is another daemon, or the daemon says that something has
    /// changed.
    pub(crate) fn look(&self) -> &Arc<Notify> {
        &self.look
    }

    /// What the next round finds; none begins while the daemon does not serve. Cancel safe.
    pub(crate) async fn report(&mut self) -> Found {
        match &mut self.found {
            Some(found) => match found.recv().await {
                Some(found) => found,
                None => pending().await,
            },
            None => pending().await,
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// The task that observes.
struct Observer {
    interval: Duration,
    socket: SocketPath,
    secrets: Secrets,
    /// Says what is mounted, and whether the daemon serves.
    status: watch::Receiver<Status>,
    look: Arc<Notify>,
    /// What the daemon has mounted is not known: its mounts are a predecessor's.
    untold: bool,
}

impl Observer {
    async fn run(mut self, reports: mpsc::Sender<Found>) {
        let (mut judge, mut finder) = (Judge::default(), Finder::default());
        let mut due = Instant::now();
        // Before this no round begins because somebody is told of something.
        let mut rested = due;
        let mut answered = false;
        loop {
            while timeout_at(due, self.look.notified()).await.is_ok() {
                due = due.min(rested);
            }
            let serving = |status: &Status| status.phase == StatusPhase::Serving;
            // Nobody is left who could be told.
            let Ok(images) = self.status.wait_for(serving).await.map(|status| images(&status)) else {
                return;
            };
            let client = || ApiClient::new(self.socket.clone(), CALL).with_secrets(&self.secrets);
            let (mut observed, found) = round(client(), images, finder).await;
            finder = found;
            // One that answers, but not this, is not asked again and again.
            let answered_before = std::mem::replace(&mut answered, observed.api.is_ok());
            let told = match self.untold && answered && !answered_before {
                true => client().daemon_info_with_mounts().await.ok(),
                false => None,
            };
            self.untold &= told.is_none();
            rested = Instant::now() + APART;
            due = Instant::now() + self.interval;
            {
                let status = self.status.borrow();
                observed.busy = status.mounts.iter().any(|mount| !mount.confirmed);
                observed.vmm = observed.vmm.or(status.vmm_attached);
            }
            let (report, worse) = judge.judge(&observed);
            let told = told.and_then(|info| info.backend_collection);
            if reports.send(Found { report, worse, told }).await.is_err() {
                return;
            }
        }
    }
}

/// The images the daemon has mounted.
fn images(status: &Status) -> Vec<MountPoint> {
    let mounts = status.mounts.iter();
    let images = mounts.filter(|mount| mount.fs_type == FsType::Rafs && mount.confirmed);
    images.map(|mount| mount.at.clone()).collect()
}

async fn round(mut client: ApiClient, images: Vec<MountPoint>, mut finder: Finder) -> (Observed, Finder) {
    let mut observed = Observed {
        api: Err(String::new()),
        busy: false,
        vmm: None,
        blobs: Blobs::default(),
        in_flight: InFlight::Untold,
    };
    match client.daemon_info().await {
        Ok(info) => {
            observed.api = Ok(info.state);
            observed.vmm = info.vmm_attached;
        }
        Err(error) => {
            observed.api = Err(reason(&error));
            return (observed, finder);
        }
    }
    // One that has stopped answering meanwhile is found out by the next round.
    let _ = finder.look(&mut client, images, &mut observed.blobs).await;
    observed.in_flight = match client.in_flight::<Request>().await {
        Err(_) => InFlight::Untold,
        Ok(requests) => longest(&requests, SystemTime::now()),
    };
    (observed, finder)
}

#[derive(Debug, Deserialize)]
struct Request {
    /// Its start, in whole seconds since the Unix epoch.
    timestamp_secs: u64,
    /// How long ago that was, where the daemon tells: ours does.
    #[serde(default)]
    age_ms: Option<u64>,
}

fn longest(requests: &[Request], now: SystemTime) -> InFlight {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let age = |request: &Request| match request.age_ms {
        Some(ms) => Duration::from_millis(ms),
        // Up to a second too much, and as wrong as the clock.
        None => now.saturating_sub(Duration::from_secs(request.timestamp_secs)),
    };
    match requests.iter().map(age).max() {
        None => InFlight::None,
        Some(longest) => InFlight::Longest(longest),
    }
}

/// Why there was no answer, in a word that does not change from round to round.
fn reason(error: &CallError) -> String {
    match error {
        CallError::Unreachable { source } => format!("{error}: {}", source.kind()),
        error => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_request_counts_and_a_clock_that_went_back_does_not() {
        let request = |timestamp_secs| Request {
            timestamp_secs,
            age_ms: None,
        };
        let now = UNIX_EPOCH + Duration::from_millis(100_500);
        assert_eq!(longest(&[], now), InFlight::None);
        let oldest = longest(&[request(99), request(90), request(100)], now);
        assert_eq!(oldest, InFlight::Longest(Duration::from_millis(10_500)));
        assert_eq!(longest(&[request(200)], now), InFlight::Longest(Duration::ZERO));
        let told = Request {
            age_ms: Some(17),
            ..request(90)
        };
        assert_eq!(
            longest(&[told], now),
            InFlight::Longest(Duration::from_millis(17))
        );
    }
}
