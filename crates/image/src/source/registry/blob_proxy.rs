//! A proxy through which a daemon fetches blobs: Dragonfly's, or any that speaks HTTP.
//!
//! Only a value, in the words of nydus' configuration. It may have the proxy's password in it.

use std::fmt;
use std::str::FromStr;

use reqwest::Url;
use serde::{Serialize, Serializer};
use thiserror::Error;

/// The `proxy` of a registry in a daemon's configuration (ConfigV2). How often it is pinged is left to nydus.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct BlobProxy {
    /// Requests go to it in the form that proxies take.
    pub url: HttpUrl,
    /// What answers with success while the proxy is of use; without it, each request tries the proxy first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ping_url: Option<HttpUrl>,
    /// Whether the registry is asked when the proxy fails.
    pub fallback: bool,
    /// Whether the proxy is asked for `http` where the registry has `https`.
    pub use_http: bool,
}

impl BlobProxy {
    /// The proxy at `url`. The registry is asked when it fails.
    #[must_use]
    pub fn new(url: HttpUrl) -> Self {
        Self {
            url,
            ping_url: None,
            fallback: true,
            use_http: false,
        }
    }
}

/// A URL of `http` or `https`. Its `Debug` text is without user and password.
#[derive(Clone, PartialEq, Eq)]
pub struct HttpUrl(Url);

/// A text that is no such URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("it is not a URL of http or https, such as http://127.0.0.1:4001")]
pub struct HttpUrlError;

impl FromStr for HttpUrl {
    type Err = HttpUrlError;

    fn from_str(text: &str) -> Result<Self, HttpUrlError> {
        let url: Url = text.parse().map_err(|_| HttpUrlError)?;
        match url.scheme() {
            "http" | "https" => Ok(Self(url)),
            _ => Err(HttpUrlError),
        }
    }
}

impl Serialize for HttpUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.as_str())
    }
}

impl fmt::Debug for HttpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = self.0.clone();
        // Neither fails for a URL that has a host, which those of http have.
        let _ = shown.set_username("");
        let _ = shown.set_password(None);
        f.write_str(shown.as_str())
    }
}
