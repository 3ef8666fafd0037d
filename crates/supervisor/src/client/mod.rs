//! The client's end of the daemon's API: typed calls over one kept connection.
//!
//! One call at a time (`&mut self`); each has one deadline over connecting, headers and body. Whether a failure
//! means "refused" or "unknown whether it happened" is in the error ([`CallError::is_definite`]). The bytes are in
//! [`transport`] (below it [`socket`]), the meaning of refusals in [`classify`].

use std::time::Duration;

use nydusbox_protocol::{
    ConfigureCommand, DaemonInfo, Endpoint, MountCommand, MountPoint, ReadTrace, SocketPath,
};
use tokio::time::Instant;

pub(crate) mod classify;
mod error;
mod socket;
mod transport;

pub use error::CallError;
pub(crate) use transport::ConnectFailure;
use transport::{Begun, Connection, Request};

use crate::alarm::Alarm;
use crate::secrets::Secrets;
use crate::shared_command::SharedCommand;

/// The largest answer that is read. `GET /api/v1/daemon` with 255 mounts and long configurations stays below 1 MiB.
pub(crate) const BODY_LIMIT_BYTES: usize = 4 << 20;

/// How much of what a daemon says of a failed read is kept, in characters.
const WORDS_KEPT: usize = 300;

/// What a daemon remembers of reads of blobs that failed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct FailedReads {
    /// How many; older ones are forgotten.
    pub(crate) remembered: usize,
    /// When, and what happened.
    pub(crate) newest: Option<String>,
}

/// A client of one daemon.
#[derive(Debug)]
pub(crate) struct ApiClient {
    socket: SocketPath,
    deadline: Duration,
    /// Rings when the call that is under way has taken too long; made for the first one.
    timer: Option<Alarm>,
    line: Line,
    secrets: Secrets,
}

/// The connection that is kept.
#[derive(Debug, Default)]
enum Line {
    #[default]
    Closed,
    Idle(Connection),
    /// All of a request is sent but its body.
    Announced {
        connection: Connection,
        what: (Endpoint, MountPoint, SharedCommand),
        request: Request,
    },
}

impl ApiClient {
    /// A client that connects when first needed. `deadline` bounds each call.
    pub(crate) fn new(socket: SocketPath, deadline: Duration) -> Self {
        Self {
            socket,
            deadline,
            timer: None,
            line: Line::Closed,
            secrets: Secrets::default(),
        }
    }

    /// Masks these in whatever the daemon says in refusing.
    pub(crate) fn with_secrets(mut self, secrets: &Secrets) -> Self {
        self.secrets = secrets.clone();
        self
    }

    /// A body as it may be shown.
    fn masked(&self, body: &[u8]) -> Vec<u8> {
        let text = String::from_utf8_lossy(body);
        self.secrets.mask(&text).into_owned().into_bytes()
    }

    /// Connects, if not connected.
    pub(crate) async fn connect(&mut self) -> Result<(), ConnectFailure> {
        if let Line::Closed = self.line {
            self.line = Line::Idle(Connection::open(&self.socket).await?);
        }
        Ok(())
    }

    /// The daemon's version and state, without its mounts: small whatever is mounted.
    pub(crate) async fn daemon_info(&mut self) -> Result<DaemonInfo, CallError> {
        self.info(Endpoint::DaemonInfoV2).await
    }

    /// The daemon's version and state with its mounts.
    pub(crate) async fn daemon_info_with_mounts(&mut self) -> Result<DaemonInfo, CallError> {
        self.info(Endpoint::DaemonInfo).await
    }

    async fn info(&mut self, endpoint: Endpoint) -> Result<DaemonInfo, CallError> {
        let (status, body) = self.call(endpoint, endpoint.path(), &[]).await?;
        if status != 200 {
            return Err(classify::refusal(status, &self.masked(&body)));
        }
        serde_json::from_slice(&body).map_err(|_| classify::unexpected(status, &self.masked(&body)))
    }

    /// The counters an endpoint keeps under an id; without one its only ones, where there are no others.
    pub(crate) async fn counters<T: serde::de::DeserializeOwned>(
        &mut self,
        endpoint: Endpoint,
        id: Option<&str>,
    ) -> Result<T, CallError> {
        let target = id.map_or_else(|| endpoint.path().to_owned(), |id| endpoint.with("id", id));
        let (status, body) = self.call(endpoint, &target, &[]).await?;
        if status != 200 {
            return Err(classify::refusal(status, &self.masked(&body)));
        }
        serde_json::from_slice(&body).map_err(|_| classify::unexpected(status, &self.masked(&body)))
    }

    /// What has gone wrong in reading blobs, as far as the daemon remembers it; of the newest its words.
    pub(crate) async fn failed_reads(&mut self) -> Result<FailedReads, CallError> {
        #[derive(serde::Deserialize)]
        struct Events {
            errors: Vec<String>,
        }
        let Events { errors } = self.counters(Endpoint::Events, None).await?;
        let newest = errors.last().map(|words| {
            let words = self.secrets.mask(words);
            // A registry's own words may be in it.
            let shown = words.chars().take(WORDS_KEPT);
            shown.map(|c| if c.is_control() { ' ' } else { c }).collect()
        });
        Ok(FailedReads {
            remembered: errors.len(),
            newest,
        })
    }

    /// The requests being served now; empty as nydusd says it, without content.
    pub(crate) async fn in_flight<T: serde::de::DeserializeOwned>(&mut self) -> Result<Vec<T>, CallError> {
        let endpoint = Endpoint::MetricsInflight;
        let (status, body) = self.call(endpoint, endpoint.path(), &[]).await?;
        match status {
            204 => Ok(Vec::new()),
            200 => {
                serde_json::from_slice(&body).map_err(|_| classify::unexpected(status, &self.masked(&body)))
            }
            status => Err(classify::refusal(status, &self.masked(&body))),
        }
    }

    /// Changes how much the daemon logs.
    pub(crate) async fn configure(&mut self, command: ConfigureCommand) -> Result<(), CallError> {
        let endpoint = Endpoint::Configure;
        let body = serde_json::to_vec(&command).map_err(|source| CallError::Unencodable { source })?;
        match self.call(endpoint, endpoint.path(), &body).await? {
            (204, _) => Ok(()),
            (status, body) => Err(classify::refusal(status, &self.masked(&body))),
        }
    }

    /// Begins or ends to record what is read of an image.
    pub(crate) async fn record_trace(&mut self, at: &MountPoint, on: bool) -> Result<(), CallError> {
        let endpoint = if on {
            Endpoint::StartTrace
        } else {
            Endpoint::StopTrace
        };
        let target = format!("{}?{}", endpoint.path(), at.query());
        match self.call(endpoint, &target, &[]).await? {
            (204, _) => Ok(()),
            (status, body) => Err(classify::refusal(status, &self.masked(&body))),
        }
    }

    /// What was recorded.
    pub(crate) async fn trace(&mut self, at: &MountPoint) -> Result<ReadTrace, CallError> {
        let endpoint = Endpoint::Trace;
        let target = format!("{}?{}", endpoint.path(), at.query());
        match self.call(endpoint, &target, &[]).await? {
            (200, body) => {
                serde_json::from_slice(&body).map_err(|_| classify::unexpected(200, &self.masked(&body)))
            }
            (status, body) => Err(classify::refusal(status, &self.masked(&body))),
        }
    }

    /// Has the daemon get ready for a mount or remount that is asked for next: all of the request is sent but its
    /// body, without which it can do nothing.
    pub(crate) fn announce(&mut self, endpoint: Endpoint, at: &MountPoint, command: &SharedCommand) {
        let Line::Idle(mut connection) = std::mem::take(&mut self.line) else {
            return;
        };
        let request = changing(endpoint, at, Some(command));
        self.line = match connection.begin(&request) {
            Begun::Not => Line::Idle(connection),
            Begun::Head => Line::Announced {
                connection,
                what: (endpoint, at.clone(), command.clone()),
                request,
            },
            Begun::Broken => Line::Closed,
        };
    }

    /// What was announced is not asked for.
    pub(crate) fn withdraw(&mut self) {
        if let Line::Announced { .. } = self.line {
            self.line = Line::Closed;
        }
    }

    /// Mounts a file system.
    pub(crate) async fn mount(&mut self, at: &MountPoint, command: &SharedCommand) -> Result<(), CallError> {
        self.change(Endpoint::Mount, at, Some(command)).await
    }

    /// Gives a mounted image a new bootstrap or configuration.
    pub(crate) async fn remount(
        &mut self,
        at: &MountPoint,
        command: &SharedCommand,
    ) -> Result<(), CallError> {
        self.change(Endpoint::Remount, at, Some(command)).await
    }

    /// Unmounts what is at a mount point.
    pub(crate) async fn unmount(&mut self, at: &MountPoint) -> Result<(), CallError> {
        self.change(Endpoint::Umount, at, None).await
    }

    async fn change(
        &mut self,
        endpoint: Endpoint,
        at: &MountPoint,
        command: Option<&SharedCommand>,
    ) -> Result<(), CallError> {
        let (kept, request) = match std::mem::take(&mut self.line) {
            Line::Announced {
                connection,
                what: (announced, place, with),
                request,
            } if (announced, &place, Some(&with)) == (endpoint, at, command) => (Some(connection), request),
            line => (line.idle(), changing(endpoint, at, command)),
        };
        let (status, body) = self.in_time(kept, &request).await?;
        match status {
            // 204 is what nydusd answers; nothing else may pass for "done".
            204 => Ok(()),
            status => Err(classify::refusal(status, &self.masked(&body))),
        }
    }

    async fn call(
        &mut self,
        endpoint: Endpoint,
        target: &str,
        body: &[u8],
    ) -> Result<(u16, Vec<u8>), CallError> {
        let kept = std::mem::take(&mut self.line).idle();
        let request = Request::new(endpoint.method().as_str(), target, body);
        self.in_time(kept, &request).await
    }

    async fn in_time(
        &mut self,
        kept: Option<Connection>,
        request: &Request,
    ) -> Result<(u16, Vec<u8>), CallError> {
        let (after, until) = (self.deadline, Instant::now() + self.deadline);
        let mut timer = self.timer.take().unwrap_or_else(|| Alarm::at(until));
        timer.set(until);
        let answer = tokio::select! {
            biased;
            answer = self.exchange(kept, request) => answer,
            () = timer.rung() => Err(CallError::TimedOut { after }),
        };
        self.timer = Some(timer);
        answer
    }

    /// Sends a request on a connection that was kept, or on a new one. The connection is kept only after the answer: it
    /// may still be on its way when this is dropped, and must not be taken for the next call's.
    async fn exchange(
        &mut self,
        kept: Option<Connection>,
        request: &Request,
    ) -> Result<(u16, Vec<u8>), CallError> {
        if let Some(mut kept) = kept {
            match kept.send(request).await {
                // The peer closed the connection while it was idle and has not seen the request.
                Err(transport::Failure::NotSent) => {}
                Ok(answer) => return Ok(self.keep(kept, answer)),
                Err(transport::Failure::Call(error)) => return Err(error),
            }
        }
        let mut fresh = Connection::open(&self.socket).await?;
        match fresh.send(request).await {
            Ok(answer) => Ok(self.keep(fresh, answer)),
            Err(transport::Failure::NotSent) => Err(CallError::Unreachable {
                source: std::io::ErrorKind::ConnectionReset.into(),
            }),
            Err(transport::Failure::Call(error)) => Err(error),
        }
    }

    fn keep(&mut self, connection: Connection, answer: transport::Answer) -> (u16, Vec<u8>) {
        if answer.kept {
            self.line = Line::Idle(connection);
        }
        (answer.status, answer.body)
    }
}

impl Line {
    /// The connection, if nothing is sent on it yet.
    fn idle(self) -> Option<Connection> {
        match self {
            Self::Idle(connection) => Some(connection),
            Self::Closed | Self::Announced { .. } => None,
        }
    }
}

/// The request that changes what is mounted at a place.
fn changing(endpoint: Endpoint, at: &MountPoint, command: Option<&SharedCommand>) -> Request {
    let body = command.map_or("", SharedCommand::json);
    Request::new(
        endpoint.method().as_str(),
        &MountCommand::target(at),
        body.as_bytes(),
    )
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
