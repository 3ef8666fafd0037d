//! A registry and its mirrors as one: a request goes to the first that can answer it.
//!
//! Decides which server is asked; how is in `endpoint.rs`, what for in `source.rs` and `sink.rs`.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use reqwest::header::{ACCEPT, HeaderMap, HeaderValue};
use reqwest::{Method, StatusCode};

use super::auth::{Authorizer, Scope};
use super::clock::{Clock, Stop};
use super::credentials;
use super::endpoint::{Ask, Endpoint};
use super::error::RegistryError;
use super::hosts::{self, Capabilities, Server};
use super::name::RegistryName;
use super::retry::Retry;
use super::secret::Credentials;
use super::transport::{Answer, Mover, Patience, Transport, Trust};
use crate::source::AccessOptions;

/// containerd's directory, then docker's; the first that says something of a host is heard.
const HOSTS_DIRS: [&str; 2] = ["/etc/containerd/certs.d", "/etc/docker/certs.d"];

/// Every kind that is understood: a registry may convert an image for who doesn't take what it is.
pub(super) const MANIFEST_TYPES: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.docker.distribution.manifest.v2+json";

/// The servers that stand for one registry.
#[derive(Debug)]
pub(super) struct Client {
    /// In the order in which they are asked; the last is the registry itself.
    servers: Vec<Candidate>,
    retry: Retry,
    clock: Arc<dyn Clock>,
    _mover: Mover,
}

#[derive(Debug)]
struct Candidate {
    endpoint: Endpoint,
    /// Could not be talked to. It is not tried again for each blob.
    lost: AtomicBool,
}

/// Where `name`'s registry is, by `options` and the configuration of this machine.
pub(super) fn servers(name: &RegistryName, options: &AccessOptions) -> Result<Vec<Server>, RegistryError> {
    let dirs: Vec<PathBuf> = match &options.hosts_dir {
        Some(dir) => vec![dir.clone()],
        None => HOSTS_DIRS.iter().map(PathBuf::from).collect(),
    };
    hosts::servers(&dirs, &name.host, hosts::Given::of(options))
}

/// The credentials for a server by `options`.
pub(super) fn credentials_for(
    server: &Server,
    repository: &str,
    options: &AccessOptions,
) -> Result<Option<Credentials>, RegistryError> {
    let key = server.credentials_key();
    match &options.auth_file {
        Some(file) => credentials::find(file, credentials::Presence::Required, &key, repository),
        None => match credentials::default_file() {
            Some(file) => credentials::find(&file, credentials::Presence::Optional, &key, repository),
            None => Ok(None),
        },
    }
}

impl Client {
    /// To read.
    pub(super) fn open(
        name: &RegistryName,
        options: &AccessOptions,
        clock: &Arc<dyn Clock>,
    ) -> Result<Self, RegistryError> {
        Self::of(servers(name, options)?, name, options, clock)
    }

    /// To write: the first server that takes what is pushed, and nobody else, for what one has got the others lack.
    pub(super) fn open_to_push(
        name: &RegistryName,
        options: &AccessOptions,
        clock: &Arc<dyn Clock>,
    ) -> Result<Self, RegistryError> {
        let able = |server: &Server| server.capabilities.push;
        let server = servers(name, options)?.into_iter().find(able);
        let server = server.ok_or_else(|| RegistryError::NotPushedTo {
            host: name.host.clone(),
        })?;
        Self::of(vec![server], name, options, clock)
    }

    fn of(
        servers: Vec<Server>,
        name: &RegistryName,
        options: &AccessOptions,
        clock: &Arc<dyn Clock>,
    ) -> Result<Self, RegistryError> {
        let mover = Mover::start()?;
        let patience = Patience {
            silence: options.silence,
            stop: Stop::new(options.stop.clone()),
        };
        let alone = servers.len() == 1;
        let mut candidates = Vec::new();
        for server in servers {
            let credentials = credentials_for(&server, &name.repository, options)?;
            let trust = Trust {
                ca_files: server.ca_files.clone(),
                skip_verify: server.skip_verify,
            };
            let transport = Transport::new(&mover, trust, patience.clone());
            // Beside a mirror there is somebody else to ask.
            let retry = match server.mirror_of {
                Some(_) if !alone => Retry {
                    attempts: 1,
                    ..options.retry
                },
                _ => options.retry,
            };
            let auth = Authorizer::new(credentials);
            candidates.push(Candidate {
                endpoint: Endpoint::new(server, transport, auth, retry, Arc::clone(clock)),
                lost: AtomicBool::new(false),
            });
        }
        Ok(Self {
            servers: candidates,
            retry: options.retry,
            clock: Arc::clone(clock),
            _mover: mover,
        })
    }

    pub(super) fn endpoint(&self, server: usize) -> &Endpoint {
        &self.servers[server].endpoint
    }

    /// The first answer of a wanted status, and the number of who gave it. If nobody does, what the registry
    /// itself says is told.
    pub(super) fn call(
        &self,
        able: fn(&Capabilities) -> bool,
        ask: impl Fn(&Endpoint) -> Ask,
        wanted: &[StatusCode],
    ) -> Result<(usize, Answer), RegistryError> {
        let mut refusal = RegistryError::NoServer;
        for (number, candidate) in self.servers.iter().enumerate() {
            let endpoint = &candidate.endpoint;
            let is_mirror = endpoint.server.mirror_of.is_some();
            if is_mirror && (candidate.is_lost() || !able(&endpoint.server.capabilities)) {
                continue;
            }
            match endpoint.call(&ask(endpoint), wanted) {
                Ok(answer) => return Ok((number, answer)),
                Err(error) => {
                    if is_mirror {
                        candidate.give_up(&error);
                    }
                    refusal = error;
                }
            }
        }
        Err(refusal)
    }

    /// Whether `mirror` has the manifest that `name` names, asked as a daemon asks for blobs: without the name of the
    /// registry for which it is one.
    pub(super) fn mirror_has(&self, mirror: &Server, name: &RegistryName) -> bool {
        let Some(candidate) = self.servers.iter().find(|c| c.endpoint.server == *mirror) else {
            return false;
        };
        let mut url = mirror.base.clone();
        url.set_path(&format!(
            "{}{}/manifests/{}",
            mirror.base.path(),
            name.repository,
            name.manifest()
        ));
        let ask = Ask {
            method: Method::HEAD,
            url,
            headers: HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(MANIFEST_TYPES))]),
            body: None,
            scope: Scope::pull(&name.repository),
            what: format!("manifest {} of {}", name.manifest(), name.repository),
        };
        let answer = candidate.endpoint.call(&ask, &[StatusCode::OK]);
        if let Err(error) = &answer {
            candidate.give_up(error);
        }
        answer.is_ok()
    }

    /// After `server` broke off an answer for the time of this number in a row: waits, or gives up (`false`).
    pub(super) fn wait_after(&self, server: usize, failures: u32) -> bool {
        let candidate = &self.servers[server];
        if candidate.endpoint.server.mirror_of.is_some() {
            candidate.lose();
        }
        match self.retry.delay(failures, None, self.clock.scatter()) {
            Some(delay) => {
                self.clock.wait(delay);
                true
            }
            None => false,
        }
    }
}

impl Candidate {
    fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    fn lose(&self) {
        self.lost.store(true, Ordering::Relaxed);
    }

    /// Goes on without this mirror: for good if it can't be talked to, for now if it only lacks something.
    fn give_up(&self, error: &RegistryError) {
        let host = self.endpoint.host();
        match error {
            RegistryError::Unreachable { source, .. } => {
                self.lose();
                tracing::warn!(host, %source, "mirror cannot be reached and is left out");
            }
            _ => tracing::debug!(host, %error, "mirror does not help"),
        }
    }
}
