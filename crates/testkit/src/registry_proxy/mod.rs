//! A registry that is slow, picky or wrong: an HTTP/1.1 server in front of a genuine one.
//!
//! ```no_run
//! # use std::time::Duration;
//! # use nydusbox_testkit::registry::{Registry, RegistryOptions};
//! use nydusbox_testkit::registry_proxy::{Conditions, Fault, Part, RegistryProxy, TokenRules};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let Ok(registry) = Registry::start(RegistryOptions::default()) else { return Ok(()) };
//! let proxy = RegistryProxy::start(registry.address())?;
//! let reference = format!("docker://{}/library/debian:12", proxy.host());
//! // Every request takes 20 ms longer, and all answers share 10 MB a second.
//! proxy.set_conditions(Conditions { latency: Duration::from_millis(20), bandwidth: Some(10_000_000) });
//! // The next two GETs of blobs break off after 1000 bytes; the next manifest is asked for too often.
//! proxy.fail_next(Part::Blob, Fault::CloseAfter(1000), 2);
//! proxy.fail_next(Part::Manifest, Fault::Status { status: 429, retry_after_seconds: Some(1) }, 1);
//! // Who comes without a bearer token is sent to /token for one, which is good for five requests.
//! proxy.demand_tokens(Some(TokenRules { requests_per_token: 5, credentials: None }));
//! // GETs of blobs are sent to another origin.
//! proxy.redirect_blobs(true);
//! # Ok(()) }
//! ```
//! What was asked, with which `Authorization`, is in [`RegistryProxy::asked`]; what blobs cost, in
//! [`RegistryProxy::blobs`] and [`RegistryProxy::bytes`]. Latency is the request's alone: connecting costs
//! nothing. The registry behind it has to be open, and to speak plain HTTP. Pushes go through it as well.
//!
//! This file owns what it is told and what it counts; `serve.rs` answers, `body.rs` sends, `tokens.rs` is the
//! token service.

mod body;
mod serve;
mod tokens;

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use tokens::Tokens;

/// What every request meets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Conditions {
    /// Its answer begins this much later.
    pub latency: Duration,
    /// Bytes a second that all answers share.
    pub bandwidth: Option<u64>,
}

/// What a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// `/v2/`.
    Ping,
    /// GET or HEAD of a manifest.
    Manifest,
    /// PUT of a manifest.
    PutManifest,
    /// GET or HEAD of a blob.
    Blob,
    /// POST: a blob is to be uploaded, or mounted.
    BeginUpload,
    /// PATCH: a piece of it.
    UploadPiece,
    /// PUT: its end.
    EndUpload,
    /// GET or DELETE of an upload.
    Upload,
    /// A token, from the token service.
    Token,
    /// Anything else.
    Other,
}

/// What goes wrong. The last five concern answers, of which some have content, so that they never meet a HEAD.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Answered with this status, and an error of a registry's form.
    Status {
        /// For example 500.
        status: u16,
        /// And this header.
        retry_after_seconds: Option<u64>,
    },
    /// Never answered.
    Silence,
    /// The connection is closed after this many bytes of the request's content; the registry gets those.
    CutRequest(u64),
    /// The registry does it, and the connection is closed instead of an answer.
    Unheard,
    /// The connection is closed after this many bytes of content.
    CloseAfter(u64),
    /// The content's first byte is another one.
    WrongContent,
    /// `Docker-Content-Digest` says another one.
    WrongDigest,
    /// The content's last byte is missing, and the length says so.
    TooShort,
    /// The content has one byte more, and the length says so.
    TooLong,
}

impl Fault {
    /// An error without more.
    pub fn status(status: u16) -> Self {
        Self::Status {
            status,
            retry_after_seconds: None,
        }
    }

    fn concerns_the_answer(self) -> bool {
        !matches!(
            self,
            Self::Status { .. } | Self::Silence | Self::CutRequest(_) | Self::Unheard
        )
    }
}

/// How tokens are given and taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRules {
    /// After as many requests it has expired.
    pub requests_per_token: u64,
    /// User and password, or the service gives a token to anybody.
    pub credentials: Option<(String, String)>,
}

/// Who was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The registry and its token service.
    Registry,
    /// Where blobs are redirected to.
    Storage,
}

/// A request, and how it was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// Whom.
    pub origin: Origin,
    /// What for.
    pub part: Part,
    /// GET and so on.
    pub method: String,
    /// With its query.
    pub path: String,
    /// The header's value.
    pub range: Option<String>,
    /// The header's value.
    pub authorization: Option<String>,
    /// `None` if it never was.
    pub status: Option<u16>,
}

/// What was asked of one blob.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BlobCounters {
    /// GETs, wherever they were answered.
    pub gets: u64,
    /// Bytes of content sent.
    pub bytes: u64,
}

#[derive(Debug, Default)]
struct State {
    conditions: Conditions,
    faults: Vec<(Part, Fault, u64)>,
    tokens: Option<Tokens>,
    redirects: bool,
    /// The number of the request that is never answered.
    held: Option<usize>,
    asked: Vec<Asked>,
    blobs: BTreeMap<String, BlobCounters>,
    bytes: u64,
    /// When the line is free again.
    line_free: Option<Instant>,
}

impl State {
    /// The fault that meets a request, used up by one.
    fn take_fault(&mut self, part: Part, is_head: bool) -> Option<Fault> {
        let next = self
            .faults
            .iter_mut()
            .find(|(at, _, left)| *at == part && *left > 0);
        // A HEAD does not use up what is meant for a GET.
        let (_, fault, left) = next.filter(|(_, fault, _)| !is_head || !fault.concerns_the_answer())?;
        *left -= 1;
        Some(*fault)
    }
}

#[derive(Debug)]
struct Shared {
    upstream: SocketAddr,
    registry: SocketAddr,
    storage: SocketAddr,
    state: Mutex<State>,
    /// Something was asked or answered.
    changed: Condvar,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The server; stops, with all its connections, when dropped.
#[derive(Debug)]
pub struct RegistryProxy {
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    server: Option<JoinHandle<()>>,
}

impl RegistryProxy {
    /// Listens on free ports of 127.0.0.1, and passes on what it is asked to `upstream`.
    ///
    /// # Errors
    /// What the sockets said.
    pub fn start(upstream: SocketAddr) -> io::Result<Self> {
        let listen = || -> io::Result<_> {
            let listener = TcpListener::bind(("127.0.0.1", 0))?;
            listener.set_nonblocking(true)?;
            Ok((listener.local_addr()?, listener))
        };
        let ((registry, listener), (storage, storage_listener)) = (listen()?, listen()?);
        let shared = Arc::new(Shared {
            upstream,
            registry,
            storage,
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        // On one thread, nothing is sent before what was sent earlier has been written: `body.rs` relies on it.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (stop, stopped) = oneshot::channel();
        let server = thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                runtime.block_on(async move {
                    tokio::select! {
                        () = serve::accept(listener, Origin::Registry, &shared) => {}
                        () = serve::accept(storage_listener, Origin::Storage, &shared) => {}
                        _ = stopped => {}
                    }
                });
            }
        });
        Ok(Self {
            shared,
            stop: Some(stop),
            server: Some(server),
        })
    }

    /// `127.0.0.1:PORT`: what an image's name begins with.
    pub fn host(&self) -> String {
        self.shared.registry.to_string()
    }

    /// From now on, every request meets these.
    pub fn set_conditions(&self, conditions: Conditions) {
        self.shared.state().conditions = conditions;
    }

    /// The next `count` requests of a kind go wrong, after those of earlier calls; 0 forgets what is left of them.
    pub fn fail_next(&self, part: Part, fault: Fault, count: u64) {
        let mut state = self.shared.state();
        state
            .faults
            .retain(|(at, _, left)| *left > 0 && (count > 0 || *at != part));
        state.faults.push((part, fault, count));
    }

    /// Whether bearer tokens are demanded. Those that were given before are no longer good.
    pub fn demand_tokens(&self, rules: Option<TokenRules>) {
        self.shared.state().tokens = rules.map(Tokens::new);
    }

    /// Whether GETs of blobs are sent to another origin.
    pub fn redirect_blobs(&self, to_storage: bool) {
        self.shared.state().redirects = to_storage;
    }

    /// The request of this number, counted from 1 since the last [`Self::forget`], is never answered, nor done.
    pub fn hold(&self, number: Option<usize>) {
        self.shared.state().held = number;
    }

    /// Waits until `condition` holds of what was asked; `false` if it doesn't until the deadline.
    pub fn wait_until(&self, deadline: Duration, condition: impl Fn(&[Asked]) -> bool) -> bool {
        let state = self.shared.state();
        let waited = self
            .shared
            .changed
            .wait_timeout_while(state, deadline, |state| !condition(&state.asked));
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        condition(&state.asked)
    }

    /// Everything that was asked, in order.
    pub fn asked(&self) -> Vec<Asked> {
        self.shared.state().asked.clone()
    }

    /// Forgets what was asked and sent so far.
    pub fn forget(&self) {
        let mut state = self.shared.state();
        state.asked.clear();
        state.blobs.clear();
        state.bytes = 0;
    }

    /// What was asked of each blob, by digest.
    pub fn blobs(&self) -> BTreeMap<String, BlobCounters> {
        self.shared.state().blobs.clone()
    }

    /// Bytes of content of all answers, manifests too.
    pub fn bytes(&self) -> u64 {
        self.shared.state().bytes
    }
}

impl Drop for RegistryProxy {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(server) = self.server.take() {
            let _joined = server.join();
        }
    }
}

#[cfg(test)]
mod tests;
