//! Registries, by OCI's distribution specification.
//!
//! [`RegistryName`] names an image in one. Which servers stand for it is in `hosts.rs`, who asks in
//! `credentials.rs`, how the server is told in `auth.rs`; `endpoint.rs` talks to one server, `client.rs` to the
//! registry and its mirrors. Never follows what a server says further than a digest: see `verify.rs` above.
//! Read `source.rs` next, and `sink.rs` for
//! what is written.

mod auth;
mod backend;
mod blob_proxy;
mod challenge;
mod client;
mod clock;
mod credentials;
mod download;
mod endpoint;
mod error;
mod hosts;
mod name;
mod payload;
mod retry;
mod secret;
mod sink;
mod source;
mod transport;
mod upload;
mod upload_answer;

use std::sync::Arc;

use super::AccessOptions;

pub use backend::{BackendError, RegistryBackend, rafs_backend, registry_ca_files};
pub use blob_proxy::{BlobProxy, HttpUrl, HttpUrlError};
pub use error::{HelperProblem, RegistryError, TransportError};
pub use name::RegistryName;
pub use retry::Retry;
pub(super) use sink::RegistrySink;
pub(super) use source::RegistrySource;

/// An image in a registry, to read.
pub(super) fn open_source(
    name: &RegistryName,
    options: &AccessOptions,
) -> Result<RegistrySource, RegistryError> {
    RegistrySource::open(name, options, &system_clock(options))
}

/// Reads `bytes` as everything that comes from a registry or says something of one, for the fuzz targets.
pub(crate) fn fuzzing(bytes: &[u8], dir: &std::path::Path) {
    credentials::without_helpers(bytes, "127.0.0.1:5000", "library/debian");
    let Ok(text) = str::from_utf8(bytes) else { return };
    challenge::parse([text]);
    hosts::from_text(text, dir);
    let _ = text.parse::<super::ImageRef>();
}

/// An image in a registry, to write.
pub(super) fn open_sink(name: &RegistryName, options: &AccessOptions) -> Result<RegistrySink, RegistryError> {
    RegistrySink::open(name, options, &system_clock(options))
}

fn system_clock(options: &AccessOptions) -> Arc<dyn clock::Clock> {
    Arc::new(clock::SystemClock {
        stop: clock::Stop::new(options.stop.clone()),
    })
}

#[cfg(test)]
mod sink_tests;
#[cfg(test)]
mod test_server;
#[cfg(test)]
mod test_support;
#[cfg(test)]
mod test_taker;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod upload_tests;
