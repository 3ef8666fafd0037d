//! The commands' end of `control.sock`: one request, and its answer whole or line by line.

use std::path::Path;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use nydusbox_protocol::{SandboxId, SocketPath};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::presence::{Presence, no_answer, owner_of};
use super::wire::{self, ControlError};
use crate::error::Failure;
use crate::state_dir::StateDir;

/// How long a supervisor may take to answer anything at all.
pub(crate) const ANSWERS_WITHIN: Duration = Duration::from_secs(5);

/// How long the kernel may take to close all that a killed supervisor had open.
const DIES_WITHIN: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(5);

/// A connection to one supervisor.
#[derive(Debug)]
pub(crate) struct Client {
    state_dir: StateDir,
    id: SandboxId,
    sender: http1::SendRequest<Full<Bytes>>,
    /// Ends with the connection; dropped with the runtime of the command.
    _connection: JoinHandle<hyper::Result<()>>,
}

impl Client {
    /// Connects to a sandbox's supervisor; says what is the matter if there is none.
    pub(crate) async fn of(state_dir: &StateDir, id: &SandboxId) -> Result<Self, Failure> {
        match Presence::of(state_dir, id).await {
            Presence::Live(stream) => Self::greeted(stream, state_dir, id).await,
            other => Err(other.failure(state_dir, id)),
        }
    }

    /// Speaks HTTP on a connection that is there, once whoever owns the sandbox has shown that it answers: what is asked
    /// then may take as long as a mount, and a supervisor that is stopped, or waits for a dead file system, for ever.
    pub(crate) async fn greeted(
        stream: UnixStream,
        state_dir: &StateDir,
        id: &SandboxId,
    ) -> Result<Self, Failure> {
        let owner = owner_of(&stream);
        let mut client = Self::on(stream, state_dir, id).await?;
        let greeting = async {
            let response = client.exchange(Method::GET, wire::GREETING, Bytes::new()).await?;
            // Whatever it is.
            client.whole(response.into_body()).await
        };
        match timeout(ANSWERS_WITHIN, greeting).await {
            Ok(answer) => answer.map(|_| client),
            Err(_) => Err(no_answer(id, owner)),
        }
    }

    /// Speaks HTTP on a connection that is there.
    pub(crate) async fn on(
        stream: UnixStream,
        state_dir: &StateDir,
        id: &SandboxId,
    ) -> Result<Self, Failure> {
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| Failure::new(&format!("ask the supervisor of sandbox {id}"), &e))?;
        Ok(Self {
            state_dir: state_dir.clone(),
            id: id.clone(),
            sender,
            _connection: tokio::spawn(connection),
        })
    }

    /// Asks for a document.
    pub(crate) async fn get<T: DeserializeOwned>(&mut self, target: &str) -> Result<T, Failure> {
        self.send(Method::GET, target, Bytes::new()).await
    }

    /// Asks for a change, with or without a body.
    pub(crate) async fn change<T: DeserializeOwned>(
        &mut self,
        method: Method,
        target: &str,
        body: Option<&(impl Serialize + Sync)>,
    ) -> Result<T, Failure> {
        let body = body
            .map(serde_json::to_vec)
            .transpose()
            .map_err(|e| Failure::new("write the request", &e))?
            .unwrap_or_default();
        self.send(method, target, body.into()).await
    }

    /// Asks for lines, and gives each to `line` until that says `false` or there are no more.
    pub(crate) async fn lines(
        &mut self,
        target: &str,
        mut line: impl FnMut(&str) -> Result<bool, Failure>,
    ) -> Result<(), Failure> {
        let response = self.exchange(Method::GET, target, Bytes::new()).await?;
        let mut body = self.accepted(response).await?;
        let mut text = Vec::new();
        while let Some(frame) = body.frame().await {
            // A supervisor that was killed breaks off in the middle.
            let frame = match frame {
                Ok(frame) => frame,
                Err(error) => return Err(self.broken(&error).await),
            };
            text.extend_from_slice(&frame.into_data().unwrap_or_default());
            while let Some(end) = text.iter().position(|&b| b == b'\n') {
                let rest = text.split_off(end + 1);
                text.truncate(end);
                if !line(&String::from_utf8_lossy(&text))? {
                    return Ok(());
                }
                text = rest;
            }
        }
        Ok(())
    }

    async fn send<T: DeserializeOwned>(
        &mut self,
        method: Method,
        target: &str,
        body: Bytes,
    ) -> Result<T, Failure> {
        let response = self.exchange(method, target, body).await?;
        let body = self.accepted(response).await?;
        let body = self.whole(body).await?;
        serde_json::from_slice(&body)
            .map_err(|e| Failure::new(&format!("understand the supervisor of sandbox {}", self.id), &e))
    }

    async fn exchange(
        &mut self,
        method: Method,
        target: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>, Failure> {
        let request = Request::builder()
            .method(method)
            .uri(target)
            .header("host", "localhost")
            .body(Full::new(body))
            .map_err(|e| Failure::new("write the request", &e))?;
        let answer = match self.sender.ready().await {
            Ok(()) => self.sender.send_request(request).await,
            Err(error) => Err(error),
        };
        match answer {
            Ok(response) => Ok(response),
            Err(error) => Err(self.broken(&error).await),
        }
    }

    async fn whole(&self, body: Incoming) -> Result<Bytes, Failure> {
        match body.collect().await {
            Ok(body) => Ok(body.to_bytes()),
            Err(error) => Err(self.broken(&error).await),
        }
    }

    /// The body of an answer that is no refusal.
    async fn accepted(&self, response: Response<Incoming>) -> Result<Incoming, Failure> {
        let status = response.status();
        if status.is_success() {
            return Ok(response.into_body());
        }
        let body = self.whole(response.into_body()).await?;
        Err(match serde_json::from_slice::<ControlError>(&body) {
            Ok(error) => error.into(),
            Err(_) => Failure::plain(format!(
                "the supervisor of sandbox {} answers with status {status}",
                self.id
            )),
        })
    }

    /// The connection broke: most likely its supervisor is gone, and then that is what to say. One that is being killed
    /// still listens, or has its lock, for a moment.
    async fn broken(&self, error: &hyper::Error) -> Failure {
        let until = Instant::now() + DIES_WITHIN;
        loop {
            let presence = Presence::of(&self.state_dir, &self.id).await;
            let is_there = matches!(presence, Presence::Live(_) | Presence::Busy { .. });
            if is_there && Instant::now() < until {
                sleep(LOOK).await;
                continue;
            }
            return match presence {
                Presence::Live(_) => {
                    Failure::new(&format!("hear from the supervisor of sandbox {}", self.id), error)
                }
                other => other.failure(&self.state_dir, &self.id),
            };
        }
    }
}

/// Asks a daemon's API for a document; `None` if it does not give it.
pub(crate) async fn ask_daemon<T: DeserializeOwned>(socket: &SocketPath, target: &str) -> Option<T> {
    let (_, body) = ask_daemon_for_text(socket.as_path(), target).await?;
    serde_json::from_slice(&body).ok()
}

/// Asks a daemon's API for anything: the status and the body; `None` if it does not answer.
pub(crate) async fn ask_daemon_for_text(socket: &Path, target: &str) -> Option<(StatusCode, Bytes)> {
    let stream = UnixStream::connect(socket).await.ok()?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.ok()?;
    let exchange = async {
        let request = Request::get(target)
            .header("host", "localhost")
            .body(Full::new(Bytes::new()))
            .ok()?;
        let response = sender.send_request(request).await.ok()?;
        let status = response.status();
        let body = response.into_body().collect().await.ok()?.to_bytes();
        Some((status, body))
    };
    tokio::select! {
        answer = exchange => answer,
        // It ends before the exchange only when it breaks.
        _ = connection => None,
    }
}
