//! One HTTP exchange, for callers that block: the only file that knows the HTTP library.
//!
//! Never decides what a status means, never follows a redirect, never tries again: see `endpoint.rs`. Each
//! wait has a limit on silence, not on the whole, so that a large blob may take as long as it takes.

use std::fmt;
use std::fs;
use std::future::Future;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use hyper::body::Bytes;
use reqwest::header::HeaderMap;
use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, Method, Request, Response, StatusCode, Url};
use tokio::runtime::{Builder, Handle, Runtime};

use super::error::{RegistryError, TransportError};
use super::name::is_loopback;

const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
const USER_AGENT: &str = concat!("nydusbox/", env!("CARGO_PKG_VERSION"));

/// The thread that moves bytes for all connections to one registry and its mirrors.
#[derive(Debug)]
pub(super) struct Mover(Option<Runtime>);

impl Mover {
    pub(super) fn start() -> Result<Self, RegistryError> {
        Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("registry")
            .enable_all()
            .build()
            .map(|runtime| Self(Some(runtime)))
            .map_err(|source| RegistryError::NoThread { source })
    }

    fn handle(&self) -> Handle {
        self.0.as_ref().expect("only taken when dropped").handle().clone()
    }
}

impl Drop for Mover {
    fn drop(&mut self) {
        // Waiting for its threads is not allowed on a thread of another runtime, where a caller may be.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// What certificates a server may show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Trust {
    pub(super) ca_files: Vec<PathBuf>,
    pub(super) skip_verify: bool,
}

/// Connections to a server, and to those it sends to.
pub(super) struct Transport {
    mover: Handle,
    trust: Trust,
    silence: Duration,
    /// Made when needed: reading the system's certificates takes longer than a request.
    direct: OnceLock<Client>,
    proxied: OnceLock<Client>,
}

impl Transport {
    pub(super) fn new(mover: &Mover, trust: Trust, silence: Duration) -> Self {
        Self {
            mover: mover.handle(),
            trust,
            silence,
            direct: OnceLock::new(),
            proxied: OnceLock::new(),
        }
    }

    /// What this machine itself serves is never asked for through a proxy; for the rest `HTTP_PROXY`,
    /// `HTTPS_PROXY` and `NO_PROXY` hold, as they do in Go's tools.
    fn client(&self, url: &Url) -> Result<&Client, RegistryError> {
        let here = url.host_str().is_some_and(is_loopback);
        let slot = if here { &self.direct } else { &self.proxied };
        if let Some(client) = slot.get() {
            return Ok(client);
        }
        let mut builder = Client::builder()
            .redirect(Policy::none())
            .referer(false)
            .user_agent(USER_AGENT)
            .connect_timeout(CONNECT_DEADLINE.min(self.silence))
            .danger_accept_invalid_certs(self.trust.skip_verify);
        if here {
            builder = builder.no_proxy();
        }
        for path in &self.trust.ca_files {
            let pem = fs::read(path).map_err(|source| RegistryError::Unreadable {
                path: path.clone(),
                source,
            })?;
            let certificates = Certificate::from_pem_bundle(&pem).unwrap_or_default();
            if certificates.is_empty() {
                return Err(RegistryError::NoCertificate { path: path.clone() });
            }
            builder = certificates
                .into_iter()
                .fold(builder, reqwest::ClientBuilder::add_root_certificate);
        }
        // The library wants to be within a runtime when it makes timers.
        let _guard = self.mover.enter();
        let client = builder.build().map_err(|source| RegistryError::NoClient {
            source: source.into(),
        })?;
        Ok(slot.get_or_init(|| client))
    }

    /// Sends a request and waits for the head of its answer.
    pub(super) fn exchange(
        &self,
        method: Method,
        url: Url,
        headers: HeaderMap,
        body: Option<reqwest::Body>,
    ) -> Result<Result<Answer, TransportError>, RegistryError> {
        let client = self.client(&url)?;
        let mut request = Request::new(method, url);
        *request.headers_mut() = headers;
        *request.body_mut() = body;
        let answered = self.within_silence(client.execute(request));
        Ok(answered.map(|response| self.answer(response)))
    }

    pub(super) fn answer(&self, response: Response) -> Answer {
        Answer {
            status: response.status(),
            url: response.url().clone(),
            headers: response.headers().clone(),
            content: Content {
                response,
                piece: Bytes::new(),
                mover: self.mover.clone(),
                silence: self.silence,
            },
        }
    }

    fn within_silence<T>(
        &self,
        future: impl Future<Output = reqwest::Result<T>>,
    ) -> Result<T, TransportError> {
        within(&self.mover, self.silence, future)
    }
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transport")
            .field("trust", &self.trust)
            .finish_non_exhaustive()
    }
}

fn within<T>(
    mover: &Handle,
    silence: Duration,
    future: impl Future<Output = reqwest::Result<T>>,
) -> Result<T, TransportError> {
    mover.block_on(async {
        match tokio::time::timeout(silence, future).await {
            Ok(done) => done.map_err(TransportError::from),
            Err(_) => Err(TransportError::silent(silence)),
        }
    })
}

/// What came back.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    /// What was asked, for a redirect to be relative to.
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    pub(super) content: Content,
}

impl Answer {
    /// A header's text; `None` also if it isn't text.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// The body of an answer, as it comes.
pub(super) struct Content {
    response: Response,
    piece: Bytes,
    mover: Handle,
    silence: Duration,
}

impl Read for Content {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match within(&self.mover, self.silence, self.response.chunk()).map_err(io::Error::other)? {
                Some(piece) => self.piece = piece,
                None => return Ok(0),
            }
        }
        let taken = self.piece.split_to(self.piece.len().min(buf.len()));
        buf[..taken.len()].copy_from_slice(&taken);
        Ok(taken.len())
    }
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Content").finish_non_exhaustive()
    }
}
