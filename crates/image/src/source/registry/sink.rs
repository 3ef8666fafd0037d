//! An image in a registry, to write.
//!
//! Owns what is there already and the manifests; how a blob is sent is in `upload.rs`. A tag is given last, so that
//! what is under it is whole. Never removes a blob: what was sent before a failure need not be sent again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use oci_spec::image::{Descriptor, Digest, MediaType};
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, StatusCode};

use super::auth::Scope;
use super::client::Client;
use super::clock::Clock;
use super::endpoint::{Ask, Endpoint};
use super::error::RegistryError;
use super::name::RegistryName;
use super::transport::Answer;
use super::upload::Upload;
use crate::source::digest::Hasher;
use crate::source::{AccessOptions, BlobContent, ImageSink, Put, SinkError, sha256_of};

/// What a registry calls what it has.
const DIGEST: &str = "docker-content-digest";

#[derive(Debug)]
pub(crate) struct RegistrySink {
    client: Client,
    name: RegistryName,
    /// Another repository of the same registry.
    mount_from: Option<String>,
    /// Nothing is taken over from there: it was asked once.
    mounts_refused: AtomicBool,
    /// It takes blobs in one piece only.
    wants_whole: AtomicBool,
}

impl RegistrySink {
    /// Nothing is asked for yet.
    pub(super) fn open(
        name: &RegistryName,
        options: &AccessOptions,
        clock: &Arc<dyn Clock>,
    ) -> Result<Self, RegistryError> {
        if name.digest.is_some() {
            return Err(RegistryError::DigestToPush {
                name: name.to_string(),
            });
        }
        let other = options
            .mount_from
            .as_ref()
            .filter(|from| from.host == name.host && from.repository != name.repository);
        Ok(Self {
            client: Client::open_to_push(name, options, clock)?,
            name: name.clone(),
            mount_from: other.map(|from| from.repository.clone()),
            mounts_refused: AtomicBool::new(false),
            wants_whole: AtomicBool::new(false),
        })
    }

    pub(super) fn endpoint(&self) -> &Endpoint {
        self.client.endpoint(0)
    }

    pub(super) fn repository(&self) -> &str {
        &self.name.repository
    }

    /// From where a blob may be taken over.
    pub(super) fn mount_from(&self) -> Option<&str> {
        let refused = self.mounts_refused.load(Ordering::Relaxed);
        self.mount_from.as_deref().filter(|_| !refused)
    }

    pub(super) fn refuse_mounts(&self) {
        self.mounts_refused.store(true, Ordering::Relaxed);
    }

    pub(super) fn wants_whole(&self) -> bool {
        self.wants_whole.load(Ordering::Relaxed)
    }

    pub(super) fn send_whole(&self) {
        self.wants_whole.store(true, Ordering::Relaxed);
    }

    pub(super) fn blob_name(&self, blob: &Descriptor) -> String {
        format!("blob {} of {}", blob.digest(), self.name.repository)
    }

    pub(super) fn scope(&self) -> Scope {
        Scope::push(&self.name.repository)
    }

    /// Whether the registry has the blob.
    pub(super) fn has_blob(&self, blob: &Descriptor) -> Result<bool, RegistryError> {
        let ask = Ask {
            method: Method::HEAD,
            url: self
                .endpoint()
                .url(&format!("{}/blobs/{}", self.name.repository, blob.digest())),
            headers: HeaderMap::new(),
            body: None,
            scope: self.scope(),
            what: self.blob_name(blob),
        };
        // One that can't be asked gets it.
        let statuses = [
            StatusCode::OK,
            StatusCode::NOT_FOUND,
            StatusCode::METHOD_NOT_ALLOWED,
        ];
        let answer = self
            .endpoint()
            .call(&ask, &statuses)
            .map_err(|error| self.refused(error))?;
        let size = answer
            .header(CONTENT_LENGTH.as_str())
            .and_then(|size| size.parse().ok());
        Ok(answer.status == StatusCode::OK && size.is_none_or(|size: u64| size == blob.size()))
    }

    /// An error of a push: who may not push wants to hear where.
    pub(super) fn refused(&self, error: RegistryError) -> RegistryError {
        match error {
            RegistryError::Denied { host, .. } => RegistryError::PushDenied {
                host,
                repository: self.name.repository.clone(),
            },
            error => error,
        }
    }

    /// Whether what was stored is what was sent, as far as the registry says.
    pub(super) fn check_stored(
        &self,
        answer: &Answer,
        digest: &Digest,
        what: &str,
    ) -> Result<(), RegistryError> {
        match answer.header(DIGEST) {
            // Another algorithm can't be compared.
            Some(found)
                if found != digest.as_ref() && algorithm_of(found) == algorithm_of(digest.as_ref()) =>
            {
                Err(RegistryError::StoredOther {
                    host: self.endpoint().host(),
                    what: what.to_owned(),
                    found: found.to_owned(),
                })
            }
            _ => Ok(()),
        }
    }

    fn manifest(&self, name: &str, bytes: &[u8], media_type: &MediaType) -> Result<Digest, SinkError> {
        let digest = sha256_of(bytes);
        let mut headers = HeaderMap::new();
        if let Ok(media_type) = HeaderValue::from_str(media_type.as_ref()) {
            headers.insert(CONTENT_TYPE, media_type);
        }
        let ask = Ask {
            method: Method::PUT,
            url: self
                .endpoint()
                .url(&format!("{}/manifests/{name}", self.name.repository)),
            headers,
            body: Some(bytes.to_vec().into()),
            scope: self.scope(),
            what: format!("manifest {name} of {}", self.name.repository),
        };
        let statuses = [StatusCode::CREATED, StatusCode::OK, StatusCode::ACCEPTED];
        let mut attempt = 1;
        let answer = loop {
            match self.endpoint().call(&ask, &statuses) {
                Err(error) if is_of_two_at_once(&error) && self.endpoint().wait(attempt, None) => {
                    attempt += 1;
                }
                answer => break answer.map_err(|error| self.refused(error))?,
            }
        };
        self.check_stored(&answer, &digest, &ask.what)?;
        Ok(digest)
    }
}

/// Docker's registry says that a manifest is not what was sent while another one puts the same.
fn is_of_two_at_once(error: &RegistryError) -> bool {
    let words = "provided digest did not match uploaded content";
    matches!(error, RegistryError::Status { status: 400, message, .. } if message.starts_with(words))
}

fn algorithm_of(digest: &str) -> Option<&str> {
    digest.split_once(':').map(|(algorithm, _)| algorithm)
}

impl ImageSink for RegistrySink {
    fn has(&self, descriptor: &Descriptor) -> Result<bool, SinkError> {
        Hasher::like(descriptor.digest())?;
        Ok(self.has_blob(descriptor)?)
    }

    fn put(&self, descriptor: &Descriptor, content: &dyn BlobContent) -> Result<Put, SinkError> {
        if self.has(descriptor)? {
            return Ok(Put::Present);
        }
        Upload::new(self, descriptor, content).run()
    }

    fn put_manifest(&self, bytes: &[u8], media_type: &MediaType) -> Result<Digest, SinkError> {
        self.manifest(sha256_of(bytes).as_ref(), bytes, media_type)
    }

    fn publish(&self, bytes: &[u8], media_type: &MediaType) -> Result<Digest, SinkError> {
        self.manifest(self.name.manifest(), bytes, media_type)
    }
}
