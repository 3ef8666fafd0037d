//! Why a registry didn't do what it was asked. No variant has a URL's query, a header or a body's secrets in it.

use std::error::Error;
use std::fmt;
use std::io;
use std::iter;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

use crate::source::digest::UnsupportedDigest;
use crate::source::verify::BlobMismatch;

/// Why a request to a registry failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// No answer.
    #[error("cannot reach registry {host}")]
    Unreachable {
        /// The server.
        host: String,
        /// Why.
        #[source]
        source: TransportError,
    },
    /// It wants to know who asks, and there are no credentials for it.
    #[error("registry {host} asks for credentials, and there are none for it in docker's config.json")]
    NoCredentials {
        /// The server.
        host: String,
    },
    /// It doesn't take the credentials.
    #[error("registry {host} does not accept the credentials")]
    Unauthorized {
        /// The server.
        host: String,
    },
    /// It knows who asks, and refuses.
    #[error("registry {host} denies access to {what}")]
    Denied {
        /// The server.
        host: String,
        /// What was asked for.
        what: String,
    },
    /// It knows who asks, and takes nothing from them.
    #[error("registry {host} gives no permission to push to {repository}")]
    PushDenied {
        /// The server.
        host: String,
        /// The repository.
        repository: String,
    },
    /// It has no such thing.
    #[error("registry {host} has no {what}")]
    NotFound {
        /// The server.
        host: String,
        /// What was asked for.
        what: String,
    },
    /// It is asked too often.
    #[error("registry {host} limits how often it is asked{}", wait_of(*retry_after_secs))]
    TooManyRequests {
        /// The server.
        host: String,
        /// How long it asks to be left alone, in seconds.
        retry_after_secs: Option<u64>,
    },
    /// Any other status.
    #[error("registry {host} answers {what} with status {status}{}", words(message))]
    Status {
        /// The server.
        host: String,
        /// What was asked for.
        what: String,
        /// The status.
        status: u16,
        /// What it says about it.
        message: String,
    },
    /// It sends elsewhere, again and again.
    #[error("registry {host} redirects {what} more than {limit} times")]
    TooManyRedirects {
        /// The server.
        host: String,
        /// What was asked for.
        what: String,
        /// How often is followed.
        limit: usize,
    },
    /// It sends somewhere that can't be followed.
    #[error("registry {host} redirects {what} to something that is not followed")]
    BadRedirect {
        /// The server.
        host: String,
        /// What was asked for.
        what: String,
    },
    /// An answer of the right status that makes no sense.
    #[error("registry {host} answers {what} without {missing}")]
    Nonsense {
        /// The server.
        host: String,
        /// What was asked for.
        what: String,
        /// What such an answer has.
        missing: &'static str,
    },
    /// It asks for credentials in a way that is not known here.
    #[error("registry {host} asks for credentials in no way that is known here")]
    UnknownChallenge {
        /// The server.
        host: String,
    },
    /// A manifest that isn't the one that was asked for.
    #[error("registry {host} gives another manifest than the one asked for")]
    WrongManifest {
        /// The server.
        host: String,
        /// How it differs.
        #[source]
        source: Box<BlobMismatch>,
    },
    /// An answer that is larger than any real one.
    #[error("registry {host} answers {what} with more than {limit_bytes} bytes")]
    TooLarge {
        /// The server.
        host: String,
        /// What was asked for.
        what: String,
        /// How much is read.
        limit_bytes: u64,
    },
    /// The answer broke off too often.
    #[error("registry {host} broke off {what} after {at_bytes} bytes")]
    Interrupted {
        /// The server.
        host: String,
        /// What was asked for.
        what: String,
        /// How much had come.
        at_bytes: u64,
        /// How it ended.
        #[source]
        source: io::Error,
    },
    /// The token server's answer has no token.
    #[error("the token server of registry {host} gives no token")]
    NoToken {
        /// The registry.
        host: String,
    },
    /// Credentials would be sent in the clear, or to nobody.
    #[error("registry {host} names a token server that is not asked")]
    BadTokenServer {
        /// The registry.
        host: String,
    },
    /// Something of the configuration can't be read.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Docker's config.json isn't one. Where it goes wrong is not told: it holds passwords.
    #[error("{} is not a configuration of docker", path.display())]
    DockerConfig {
        /// The file.
        path: PathBuf,
    },
    /// A hosts.toml isn't one.
    #[error("{} is malformed", path.display())]
    HostsFile {
        /// The file.
        path: PathBuf,
        /// Where it goes wrong.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A hosts.toml with something that isn't known, or not done, here.
    #[error("{} has {problem}", path.display())]
    HostsFileContent {
        /// The file.
        path: PathBuf,
        /// What it has.
        problem: String,
    },
    /// A digest that can't be checked.
    #[error(transparent)]
    UnsupportedDigest {
        /// Which.
        #[from]
        source: UnsupportedDigest,
    },
    /// It, or what is in front of it, takes no request of this size.
    #[error("registry {host} refuses {what}: a request of {size_bytes} bytes is too large for it")]
    RequestTooLarge {
        /// The server.
        host: String,
        /// What was sent.
        what: String,
        /// The size of the request's content.
        size_bytes: u64,
    },
    /// What it says it has stored is something else than it was sent.
    #[error("registry {host} says that it has stored {found} instead of {what}")]
    StoredOther {
        /// The server.
        host: String,
        /// What was sent.
        what: String,
        /// The digest it names.
        found: String,
    },
    /// It lost what it was sent, again and again.
    #[error("registry {host} has lost {what} while it was sent")]
    Lost {
        /// The server.
        host: String,
        /// What was sent.
        what: String,
    },
    /// A name to push to that is a digest: what is pushed has its own.
    #[error("{name} names a digest; what is pushed gets a tag")]
    DigestToPush {
        /// The name.
        name: String,
    },
    /// A hosts.toml says that nothing is pushed there.
    #[error("hosts.toml has no server for {host} that is pushed to")]
    NotPushedTo {
        /// The registry.
        host: String,
    },
    /// The configuration leaves nobody to ask.
    #[error("there is no server to ask")]
    NoServer,
    /// The thread that talks to registries can't be made.
    #[error("cannot start a thread for talking to registries")]
    NoThread {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// TLS, or the proxy's address, can't be set up.
    #[error("cannot prepare for talking to registries")]
    NoClient {
        /// Why.
        #[source]
        source: TransportError,
    },
    /// A file of certificates has none.
    #[error("{} has no certificate in PEM", path.display())]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// The program that keeps the credentials doesn't give them.
    #[error("credential helper {program} {problem}")]
    Helper {
        /// The program.
        program: String,
        /// What it did.
        problem: HelperProblem,
    },
}

/// What a credential helper did instead of its job.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum HelperProblem {
    /// It isn't there, or can't be run.
    #[error("cannot be run")]
    NotRun(#[source] io::Error),
    /// It fails.
    #[error("fails with {0}")]
    Failed(std::process::ExitStatus),
    /// It doesn't end.
    #[error("does not end within {0} s")]
    Late(u64),
    /// It says something else.
    #[error("gives no credentials")]
    Nonsense,
}

/// How talking to a server failed. It says the innermost reason only, without the address: that may carry a
/// signature or a token.
#[derive(Debug)]
pub struct TransportError(Problem);

#[derive(Debug)]
enum Problem {
    Silent(Duration),
    Stopped,
    Http(reqwest::Error),
}

impl TransportError {
    pub(super) fn silent(time: Duration) -> Self {
        Self(Problem::Silent(time))
    }

    pub(super) fn stopped() -> Self {
        Self(Problem::Stopped)
    }

    /// Whether it may be another way in a moment. What a server's certificate is, isn't.
    pub(super) fn is_for_the_moment(&self) -> bool {
        match &self.0 {
            Problem::Silent(_) => true,
            Problem::Stopped => false,
            // Refused, reset, no such host, closed early: all these come from the system. TLS doesn't.
            Problem::Http(error) => !error.is_connect() || causes(error).any(|cause| cause.is::<io::Error>()),
        }
    }
}

impl From<reqwest::Error> for TransportError {
    fn from(error: reqwest::Error) -> Self {
        Self(Problem::Http(error.without_url()))
    }
}

impl fmt::Display for TransportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Problem::Silent(time) => write!(f, "no word from it for {time:?}"),
            Problem::Stopped => f.write_str("stopped, as was asked for"),
            Problem::Http(error) => match causes(error).last() {
                Some(cause) => fmt::Display::fmt(cause, f),
                None => fmt::Display::fmt(error, f),
            },
        }
    }
}

impl Error for TransportError {}

fn causes(error: &reqwest::Error) -> impl Iterator<Item = &(dyn Error + 'static)> {
    iter::successors(error.source(), |&cause| cause.source())
}

fn wait_of(secs: Option<u64>) -> String {
    secs.map_or_else(String::new, |secs| format!(", and asks to wait {secs} s"))
}

fn words(message: &str) -> String {
    if message.is_empty() {
        String::new()
    } else {
        format!(": {message}")
    }
}
