//! What a daemon needs to fetch an image's blobs from a registry itself: nydus' `registry` backend.
//!
//! Decides which of a registry's servers it is given; the rest is a value. Who serializes it has to keep it where only
//! the daemon reads it: it has the password in it. What a proxy before it is like is in `blob_proxy.rs`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use thiserror::Error;

use super::blob_proxy::BlobProxy;
use super::client::{Client, credentials_for, servers};
use super::clock::{Clock, Stop, SystemClock};
use super::endpoint::authority;
use super::error::RegistryError;
use super::hosts::Server;
use super::name::RegistryName;
use super::secret::Credentials;
use crate::source::AccessOptions;

/// How long the daemon waits for an answer, and for a connection. nydus has 5 s for both, in which a chunk of a
/// large blob has to arrive in whole.
const TIMEOUT_SECS: u32 = 30;
const CONNECT_TIMEOUT_SECS: u32 = 5;
/// How often nydus asks again by itself, at once.
const RETRY_LIMIT: u8 = 2;

/// The `registry` of the `backend` in a daemon's configuration (ConfigV2). It serializes with the credentials
/// in it; its `Debug` text doesn't show them.
#[derive(Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RegistryBackend {
    /// `http` or `https`.
    pub scheme: String,
    /// The server, with its port if it isn't the scheme's.
    pub host: String,
    /// The repository, as the server has it: a mirror may stand for a registry below a path of its own.
    pub repo: String,
    /// `user:password` in base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    auth: Option<String>,
    /// Whether any certificate is taken.
    pub skip_verify: bool,
    /// Seconds for an answer.
    pub timeout: u32,
    /// Seconds for a connection.
    pub connect_timeout: u32,
    /// How often a request is made again at once.
    pub retry_limit: u8,
    /// Through which proxy blobs come.
    #[serde(skip_serializing_if = "Option::is_none")]
    proxy: Option<BlobProxy>,
    #[serde(skip)]
    ca_files: Vec<PathBuf>,
}

impl RegistryBackend {
    /// Whether the configuration has a password in it.
    #[must_use]
    pub fn has_credentials(&self) -> bool {
        self.auth.is_some()
    }

    /// Has blobs come through a proxy.
    #[must_use]
    pub fn with_proxy(mut self, proxy: Option<BlobProxy>) -> Self {
        self.proxy = proxy;
        self
    }

    /// Certificates (PEM) of authorities that the server needs beside the system's. nydus' configuration has no place
    /// for them: a daemon has to be started with `SSL_CERT_FILE` naming a file that has these, too.
    pub fn ca_files(&self) -> impl Iterator<Item = &Path> {
        self.ca_files.iter().map(PathBuf::as_path)
    }
}

impl fmt::Debug for RegistryBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistryBackend")
            .field("scheme", &self.scheme)
            .field("host", &self.host)
            .field("repo", &self.repo)
            .field("auth", &self.auth.as_ref().map(|_| "[redacted]"))
            .field("skip_verify", &self.skip_verify)
            .field("proxy", &self.proxy)
            .finish_non_exhaustive()
    }
}

/// Why a daemon can't fetch from a registry.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BackendError {
    /// The configuration of this machine can't be used.
    #[error(transparent)]
    Registry(#[from] Box<RegistryError>),
    /// The daemon takes a password only. What a token could be exchanged for is good for minutes, and nydus would ask
    /// for the next one as nobody.
    #[error("a daemon cannot use the identity token for registry {host}; it needs a user and a password")]
    IdentityToken {
        /// The registry.
        host: String,
    },
    /// The daemon sends no headers of others.
    #[error("a daemon cannot send the headers that hosts.toml has for registry {host}")]
    Headers {
        /// The registry.
        host: String,
    },
    /// The daemon asks below `/v2/` only.
    #[error("a daemon cannot ask registry {host} below the path {path}, which does not begin with /v2/")]
    Path {
        /// The registry.
        host: String,
        /// Where its API is.
        path: String,
    },
}

/// What a daemon needs to fetch blobs of `name` from its registry, or from the first of its mirrors that has the
/// manifest which `name` names: nydus' backend knows one server, so that a mirror is chosen now, and for good.
/// `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY` are the daemon's own, from its environment.
///
/// # Errors
/// When the daemon's backend can't do what is needed for the registry itself: see [`BackendError`]. A mirror for
/// which it can't is left out, which the log says.
pub fn rafs_backend(name: &RegistryName, options: &AccessOptions) -> Result<RegistryBackend, BackendError> {
    let mut servers = servers(name, options).map_err(Box::new)?;
    let Some(own) = servers.pop() else {
        return Err(Box::new(RegistryError::NoServer).into());
    };
    servers.retain(|server| server.capabilities.pull);
    let mirrors = servers.iter().filter_map(|server| {
        let backend = backend(server, name, options);
        let left_out = |error: &BackendError| tracing::warn!(%error, "mirror is left out");
        backend
            .inspect_err(left_out)
            .map(|backend| (server, backend))
            .ok()
    });
    let mut mirrors = mirrors.peekable();
    if mirrors.peek().is_some() {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock {
            stop: Stop::new(options.stop.clone()),
        });
        let client = Client::open(name, options, &clock).map_err(Box::new)?;
        if let Some((_, chosen)) = mirrors.find(|(server, _)| client.mirror_has(server, name)) {
            return Ok(chosen);
        }
    }
    backend(&own, name, options)
}

/// Certificates (PEM) of authorities that some server of `name`'s registry needs beside the system's.
///
/// # Errors
/// When the configuration of this machine can't be used.
pub fn registry_ca_files(
    name: &RegistryName,
    options: &AccessOptions,
) -> Result<Vec<PathBuf>, Box<RegistryError>> {
    let mut files = Vec::new();
    for server in servers(name, options)? {
        files.extend(authorities(&server).iter().cloned());
    }
    files.sort();
    files.dedup();
    Ok(files)
}

/// Those whose certificates are looked at.
fn authorities(server: &Server) -> &[PathBuf] {
    match server.base.scheme() == "https" && !server.skip_verify {
        true => &server.ca_files,
        false => &[],
    }
}

fn backend(
    server: &Server,
    name: &RegistryName,
    options: &AccessOptions,
) -> Result<RegistryBackend, BackendError> {
    let host = authority(&server.base);
    if !server.headers.is_empty() {
        return Err(BackendError::Headers { host });
    }
    // As far as the daemon knows, what is between `/v2/` and the repository is a part of its name.
    let path = server.base.path();
    let Some(below) = path.strip_prefix("/v2/") else {
        let path = path.to_owned();
        return Err(BackendError::Path { host, path });
    };
    let credentials = credentials_for(server, &name.repository, options).map_err(Box::new)?;
    let auth = match credentials {
        Some(Credentials::Basic { user, password }) => {
            Some(STANDARD.encode(format!("{user}:{}", password.reveal())))
        }
        Some(Credentials::IdentityToken(_)) => return Err(BackendError::IdentityToken { host }),
        None => None,
    };
    Ok(RegistryBackend {
        scheme: server.base.scheme().to_owned(),
        host,
        repo: format!("{below}{}", name.repository),
        auth,
        skip_verify: server.skip_verify,
        timeout: TIMEOUT_SECS,
        connect_timeout: CONNECT_TIMEOUT_SECS,
        retry_limit: RETRY_LIMIT,
        proxy: None,
        ca_files: authorities(server).to_vec(),
    })
}

#[cfg(test)]
#[path = "backend_tests.rs"]
mod tests;
