//! What a daemon needs to fetch an image's blobs from a registry itself: nydus' `registry` backend.
//!
//! Only a value. Who serializes it has to keep it where only the daemon reads it: it has the password in it.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use thiserror::Error;

use super::client::{credentials_for, servers};
use super::endpoint::authority;
use super::error::RegistryError;
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
    /// The repository.
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
}

impl RegistryBackend {
    /// Whether the configuration has a password in it.
    #[must_use]
    pub fn has_credentials(&self) -> bool {
        self.auth.is_some()
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
    /// The daemon trusts the system's certificates only.
    #[error(
        "a daemon cannot be given the certificates that registry {host} needs: add them to the system's, or have \
         the daemon started with SSL_CERT_FILE"
    )]
    Certificates {
        /// The registry.
        host: String,
    },
    /// The daemon takes a password only.
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
    /// The daemon asks for `/v2/` only.
    #[error("a daemon cannot ask registry {host} below the path {path}")]
    Path {
        /// The registry.
        host: String,
        /// Where its API is.
        path: String,
    },
}

/// What a daemon needs to fetch blobs of `name` from its registry. Mirrors are left out: nydus' backend knows
/// one server. `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY` are the daemon's own, from its environment.
///
/// # Errors
/// When the daemon's backend can't do what is needed: see [`BackendError`].
pub fn rafs_backend(name: &RegistryName, options: &AccessOptions) -> Result<RegistryBackend, BackendError> {
    let Some(server) = servers(name, options).map_err(Box::new)?.pop() else {
        return Err(Box::new(RegistryError::NoServer).into());
    };
    let host = authority(&server.base);
    let is_https = server.base.scheme() == "https";
    if is_https && !server.skip_verify && !server.ca_files.is_empty() {
        return Err(BackendError::Certificates { host });
    }
    if !server.headers.is_empty() {
        return Err(BackendError::Headers { host });
    }
    if server.base.path() != "/v2/" {
        return Err(BackendError::Path {
            host,
            path: server.base.path().to_owned(),
        });
    }
    let credentials = credentials_for(&server, &name.repository, options).map_err(Box::new)?;
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
        repo: name.repository.clone(),
        auth,
        skip_verify: server.skip_verify,
        timeout: TIMEOUT_SECS,
        connect_timeout: CONNECT_TIMEOUT_SECS,
        retry_limit: RETRY_LIMIT,
    })
}

#[cfg(test)]
#[path = "backend_tests.rs"]
mod tests;
