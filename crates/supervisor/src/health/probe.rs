//! Observes a daemon, round after round, on a connection of its own.
//!
//! Every call has a short deadline and only reads; a round that is dropped leaves nothing but a closed connection.
//! What it finds is judged in [`super::judge`].

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nydusbox_protocol::{FsType, MountPoint, SocketPath};
use serde::Deserialize;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};

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

/// The least between two rounds, whatever the daemon says meanwhile.
const APART: Duration = Duration::from_millis(100);

/// What a round finds.
type Round = Pin<Box<dyn Future<Output = (Observed, Finder)> + Send>>;

/// Observes one sandbox for as long as it serves.
pub(crate) struct Watch {
    /// `None`: never.
    interval: Option<Duration>,
    socket: SocketPath,
    secrets: Secrets,
    /// Says what is mounted, and whether the daemon serves.
    status: watch::Receiver<Status>,
    due: Instant,
    /// Before this no round begins because of what the daemon says.
    rested: Instant,
    /// The daemon has said that a VMM has come or gone.
    frontend_moved: Arc<Notify>,
    /// The daemon that was looked at last.
    last: Option<u32>,
    round: Option<Round>,
    finder: Finder,
    judge: Judge,
}

impl Watch {
    /// The first round is due at once, further ones also when `frontend_moved` is told.
    pub(crate) fn new(
        config: &SandboxConfig,
        status: watch::Receiver<Status>,
        frontend_moved: Arc<Notify>,
    ) -> Self {
        Self {
            interval: config.health_interval(),
            socket: config.api_socket().clone(),
            secrets: config.secrets().clone(),
            status,
            due: Instant::now(),
            rested: Instant::now(),
            frontend_moved,
            last: None,
            round: None,
            finder: Finder::default(),
            judge: Judge::default(),
        }
    }

    /// There is another daemon.
    pub(crate) fn hear(&mut self, frontend_moved: Arc<Notify>) {
        self.frontend_moved = frontend_moved;
    }

    /// The next round's report, and what has become worse; never while the daemon does not serve. Cancel safe: a
    /// round that has begun goes on with the next call.
    pub(crate) async fn report(&mut self) -> (HealthReport, Vec<SandboxEvent>) {
        let Some(interval) = self.interval else {
            return std::future::pending().await;
        };
        if self.round.is_none() {
            let last = self.last;
            loop {
                tokio::select! {
                    () = sleep_until(self.due) => break,
                    // Of another daemon than was looked at nothing is known.
                    Ok(_) = self.status.wait_for(|status| last.is_some_and(|pid| pid != status.pid)) => break,
                    () = self.frontend_moved.notified() => self.due = self.due.min(self.rested),
                }
            }
            let serving = |status: &Status| status.phase == StatusPhase::Serving;
            let found = self.status.wait_for(serving).await;
            let Ok((pid, images)) = found.map(|status| (status.pid, images(&status))) else {
                return std::future::pending().await;
            };
            self.last = Some(pid);
            let client = ApiClient::new(self.socket.clone(), CALL).with_secrets(&self.secrets);
            self.round = Some(Box::pin(round(client, images, self.finder.clone())));
        }
        let Some(round) = &mut self.round else {
            return std::future::pending().await;
        };
        let (mut observed, finder) = round.await;
        (self.round, self.finder) = (None, finder);
        self.rested = Instant::now() + APART;
        self.due = Instant::now() + interval;
        {
            let status = self.status.borrow();
            observed.busy = status.mounts.iter().any(|mount| !mount.confirmed);
            observed.vmm = observed.vmm.or(status.vmm_attached);
        }
        self.judge.judge(&observed)
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
