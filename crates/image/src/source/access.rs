//! How places are reached: what a caller can say about it, and what is meant if nothing is said.
//!
//! Only values; what they mean for a registry is in `registry/hosts.rs`, `credentials.rs` and `retry.rs`.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::registry::{RegistryName, Retry};

/// How places are reached. The default is what a user of docker and containerd on this machine expects.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct AccessOptions {
    /// Where a compressed archive is unpacked while it is read; the system's temporary directory if `None`.
    pub temp_dir: Option<PathBuf>,
    /// The file with credentials, in the form of docker's `config.json`, which has to be there. If `None`, it
    /// is `config.json` in `$DOCKER_CONFIG` or in `~/.docker`, and may be missing.
    pub auth_file: Option<PathBuf>,
    /// The directory with a directory for each registry's host, in the form of containerd's `certs.d`. If
    /// `None`, `/etc/containerd/certs.d` and `/etc/docker/certs.d`.
    pub hosts_dir: Option<PathBuf>,
    /// Certificates (PEM) of authorities that are trusted beside the system's.
    pub ca_files: Vec<PathBuf>,
    /// Talks to registries without TLS. Otherwise only those of this machine (`localhost`, `127.0.0.1`) are
    /// talked to like that, and they not if there are [`Self::ca_files`] or [`Self::skip_verify`].
    pub plain_http: bool,
    /// Takes any certificate for a registry's.
    pub skip_verify: bool,
    /// How often, and when, a request that failed for the moment is made again.
    pub retry: Retry,
    /// How long a registry may say nothing at all before it counts as one that doesn't answer.
    pub silence: Duration,
    /// An image of the registry that is written to. Blobs it has too need not be sent, where the registry can
    /// take them over from there.
    pub mount_from: Option<RegistryName>,
    /// Who waits for a registry stops once this is set, and fails.
    pub stop: Option<Arc<AtomicBool>>,
}

impl Default for AccessOptions {
    fn default() -> Self {
        Self {
            temp_dir: None,
            auth_file: None,
            hosts_dir: None,
            ca_files: Vec::new(),
            plain_http: false,
            skip_verify: false,
            retry: Retry::default(),
            silence: Duration::from_secs(30),
            mount_from: None,
            stop: None,
        }
    }
}
