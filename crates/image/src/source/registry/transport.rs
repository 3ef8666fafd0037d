//! One HTTP exchange, for callers that block: the only file that knows the HTTP library.
//!
//! Never decides what a status means, never follows a redirect, never tries again: see `endpoint.rs`. Each
//! wait has a limit on silence, not on the whole, so that a large blob may take as long as it takes.

use std::fmt;
use std::fs;
use std::future::Future;
use std::io::{self, Read};
use std::path::PathBuf;
use std::pin::pin;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use hyper::body::Bytes;
use reqwest::header::HeaderMap;
use reqwest::redirect::Policy;
use reqwest::{Body, Certificate, Client, Method, Request, Response, StatusCode, Url};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::{Notify, mpsc};

use super::clock::Stop;
use super::error::{RegistryError, TransportError};
use super::name::is_loopback;
use super::payload::{PIECE_BYTES, Payload, Taken};

const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// What a request may take that tidies up.
const PARTING_DEADLINE: Duration = Duration::from_secs(3);
/// What the request that is under way may take when nothing is waited for any more.
const LAST_PIECE_DEADLINE: Duration = Duration::from_secs(2);
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

/// How long a server is waited for.
#[derive(Debug, Clone)]
pub(super) struct Patience {
    /// How long it may say nothing at all.
    pub(super) silence: Duration,
    pub(super) stop: Stop,
}

impl Patience {
    /// Ends when nothing is waited for any more. A request that changes something may come to its end first: of an upload
    /// that is broken off in the middle of a piece, Docker's registry knows nothing any more, and so can't cancel it;
    /// nor can anybody cancel one whose name was not heard.
    async fn stopped(&self, changes_something: bool) {
        while !self.stop.is_set() {
            tokio::time::sleep(Stop::NOTICED_WITHIN).await;
        }
        if changes_something {
            tokio::time::sleep(LAST_PIECE_DEADLINE).await;
        }
    }
}

/// Connections to a server, and to those it sends to.
pub(super) struct Transport {
    mover: Handle,
    trust: Trust,
    patience: Patience,
    /// Made when needed: reading the system's certificates takes longer than a request.
    direct: OnceLock<Client>,
    proxied: OnceLock<Client>,
}

impl Transport {
    pub(super) fn new(mover: &Mover, trust: Trust, patience: Patience) -> Self {
        Self {
            mover: mover.handle(),
            trust,
            patience,
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
            .connect_timeout(CONNECT_DEADLINE.min(self.patience.silence))
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
        body: Option<Bytes>,
    ) -> Result<Result<Answer, TransportError>, RegistryError> {
        let body = body.map(|bytes| {
            let taken = Taken::default();
            (Body::wrap(Payload::new(bytes, taken.clone())), taken)
        });
        self.exchange_with((method, url, headers), body, &self.patience)
    }

    /// The same also when the caller wants to wait no longer, but not for long: to tidy up.
    pub(super) fn part(
        &self,
        method: Method,
        url: Url,
        headers: HeaderMap,
    ) -> Result<Result<Answer, TransportError>, RegistryError> {
        let patience = Patience {
            silence: PARTING_DEADLINE.min(self.patience.silence),
            stop: Stop::default(),
        };
        self.exchange_with((method, url, headers), None, &patience)
    }

    /// Sends a request with `size` bytes of `content`, which are read here meanwhile. `Err` inside is the content's.
    pub(super) fn stream(
        &self,
        (method, url, headers): (Method, Url, HeaderMap),
        size: u64,
        content: &mut (dyn Read + Send),
    ) -> Result<io::Result<Result<Answer, TransportError>>, RegistryError> {
        let taken = Taken::default();
        let (sender, pieces) = mpsc::channel(1);
        let body = Body::wrap(Payload::of_pieces(pieces, size, taken.clone()));
        let (mover, answered) = (&self.mover, &Notify::new());
        thread::scope(|scope| {
            let pump = thread::Builder::new()
                .name("content".to_owned())
                .spawn_scoped(scope, move || {
                    let pumped = pump(content, &sender, mover, answered);
                    // What is missing then breaks the request.
                    drop(sender);
                    pumped
                })
                .map_err(|source| RegistryError::NoThread { source })?;
            let body = Some((body, taken));
            let answer = self.exchange_with((method, url, headers), body, &self.patience);
            // Whatever the server answered: it wants no more.
            answered.notify_one();
            let pumped = pump.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()));
            Ok(match pumped {
                Ok(()) => Ok(answer?),
                Err(error) => Err(error),
            })
        })
    }

    fn exchange_with(
        &self,
        (method, url, headers): (Method, Url, HeaderMap),
        body: Option<(Body, Taken)>,
        patience: &Patience,
    ) -> Result<Result<Answer, TransportError>, RegistryError> {
        if patience.stop.is_set() {
            return Ok(Err(TransportError::stopped()));
        }
        let client = self.client(&url)?;
        let reads = matches!(method, Method::GET | Method::HEAD);
        let mut request = Request::new(method, url);
        *request.headers_mut() = headers;
        let mut taken = (!reads).then(Taken::default);
        if let Some((body, of_body)) = body {
            *request.body_mut() = Some(body);
            taken = Some(of_body);
        }
        let answered = within(&self.mover, patience, taken.as_ref(), client.execute(request));
        Ok(answered.map(|response| Answer {
            status: response.status(),
            url: response.url().clone(),
            headers: response.headers().clone(),
            content: Content {
                response,
                piece: Bytes::new(),
                mover: self.mover.clone(),
                patience: patience.clone(),
            },
        }))
    }
}

/// Reads `content` into `pieces` until nobody takes them, or there is an answer.
fn pump(
    content: &mut (dyn Read + Send),
    pieces: &mpsc::Sender<Bytes>,
    mover: &Handle,
    answered: &Notify,
) -> io::Result<()> {
    loop {
        let mut piece = Vec::new();
        content.take(PIECE_BYTES as u64).read_to_end(&mut piece)?;
        if piece.is_empty() {
            return Ok(());
        }
        let is_taken = mover.block_on(async {
            tokio::select! {
                sent = pieces.send(piece.into()) => sent.is_ok(),
                () = answered.notified() => false,
            }
        });
        if !is_taken {
            return Ok(());
        }
    }
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transport")
            .field("trust", &self.trust)
            .finish_non_exhaustive()
    }
}

/// Waits for `future` until it is silent for too long: until nothing more of a request's content is `taken`, which is
/// counted for those that change something.
fn within<T>(
    mover: &Handle,
    patience: &Patience,
    taken: Option<&Taken>,
    future: impl Future<Output = reqwest::Result<T>>,
) -> Result<T, TransportError> {
    let silence = patience.silence;
    let done = async {
        let mut future = pin!(future);
        let taken_bytes = || taken.map_or(0, Taken::bytes);
        let mut before = taken_bytes();
        loop {
            match tokio::time::timeout(silence, &mut future).await {
                Ok(done) => return done.map_err(TransportError::from),
                Err(_) if taken_bytes() == before => return Err(TransportError::silent(silence)),
                Err(_) => before = taken_bytes(),
            }
        }
    };
    mover.block_on(async {
        tokio::select! {
            biased;
            () = patience.stopped(taken.is_some()) => Err(TransportError::stopped()),
            done = done => done,
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
    patience: Patience,
}

impl Read for Content {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match within(&self.mover, &self.patience, None, self.response.chunk())
                .map_err(io::Error::other)?
            {
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
