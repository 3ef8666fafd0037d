//! An image in a registry, to read.
//!
//! Owns how documents and blobs are asked for. How a blob goes on after its connection broke is in
//! `download.rs`, which server answers in `client.rs`.

use std::io::{self, Read};
use std::ops::Range;
use std::sync::Arc;

use oci_spec::image::{Descriptor, MediaType};
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, StatusCode};

use super::auth::Scope;
use super::client::{Client, MANIFEST_TYPES};
use super::clock::Clock;
use super::download::{self, Download, Wanted};
use super::endpoint::{Ask, Endpoint};
use super::error::RegistryError;
use super::hosts::Capabilities;
use super::name::RegistryName;
use crate::source::digest::Hasher;
use crate::source::document::{
    self, DOCKER_INDEX, DOCKER_MANIFEST, DOCUMENT_LIMIT_BYTES, Document, verified,
};
use crate::source::verify::BlobMismatch;
use crate::source::{AccessOptions, ImageSource, Platform, SourceError, SourceImage};

#[derive(Debug)]
pub(crate) struct RegistrySource {
    client: Arc<Client>,
    name: RegistryName,
}

impl RegistrySource {
    /// Nothing is asked for yet.
    pub(super) fn open(
        name: &RegistryName,
        options: &AccessOptions,
        clock: &Arc<dyn Clock>,
    ) -> Result<Self, RegistryError> {
        Ok(Self {
            client: Arc::new(Client::open(name, options, clock)?),
            name: name.clone(),
        })
    }

    fn root(&self) -> Result<Document, RegistryError> {
        let manifest = self.name.manifest();
        let what = format!("manifest {manifest} of {}", self.name.repository);
        // What is asked for by digest can come from anybody.
        let able: fn(&Capabilities) -> bool = match self.name.digest {
            Some(_) => |able| able.pull,
            None => |able| able.resolve,
        };
        let path = format!("{}/manifests/{manifest}", self.name.repository);
        let mut failures = 0;
        loop {
            let (server, answer) = self.client.call(
                able,
                |endpoint| self.get(endpoint, &path, &what),
                &[StatusCode::OK],
            )?;
            let host = self.client.endpoint(server).host();
            let media_type = answer
                .header(CONTENT_TYPE.as_str())
                .map(essence)
                .map(|text| MediaType::from(&*text));
            let mut bytes = Vec::new();
            match answer
                .content
                .take(DOCUMENT_LIMIT_BYTES + 1)
                .read_to_end(&mut bytes)
            {
                Ok(_) if bytes.len() as u64 > DOCUMENT_LIMIT_BYTES => {
                    return Err(RegistryError::TooLarge {
                        host,
                        what,
                        limit_bytes: DOCUMENT_LIMIT_BYTES,
                    });
                }
                Ok(_) => return self.checked(Document::named(bytes, media_type), host),
                Err(source) => {
                    failures += 1;
                    if !self.client.wait_after(server, failures) {
                        return Err(RegistryError::Interrupted {
                            host,
                            what,
                            at_bytes: bytes.len() as u64,
                            source,
                        });
                    }
                }
            }
        }
    }

    /// The document, if it is the one that was asked for.
    fn checked(&self, mut document: Document, host: String) -> Result<Document, RegistryError> {
        let Some(expected) = &self.name.digest else {
            return Ok(document);
        };
        let found = match Hasher::like(expected) {
            Ok(mut hasher) => {
                hasher.update(&document.bytes);
                hasher.finish()
            }
            Err(source) => return Err(RegistryError::UnsupportedDigest { source }),
        };
        if found != *expected {
            let mismatch = BlobMismatch::Digest {
                expected: expected.clone(),
                found,
            };
            return Err(RegistryError::WrongManifest {
                host,
                source: Box::new(mismatch),
            });
        }
        document.digest = found;
        Ok(document)
    }

    fn get(&self, endpoint: &Endpoint, path: &str, what: &str) -> Ask {
        Ask {
            method: Method::GET,
            url: endpoint.url(path),
            headers: HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(MANIFEST_TYPES))]),
            body: None,
            scope: Scope::pull(&self.name.repository),
            what: what.to_owned(),
        }
    }
}

/// A media type without its parameters.
fn essence(content_type: &str) -> String {
    content_type
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase()
}

fn is_manifest(media_type: &MediaType) -> bool {
    matches!(media_type, MediaType::ImageManifest | MediaType::ImageIndex)
        || matches!(&*media_type.to_string(), DOCKER_MANIFEST | DOCKER_INDEX)
}

impl ImageSource for RegistrySource {
    fn image(&self, platform: &Platform) -> Result<SourceImage, SourceError> {
        document::resolve(self.root()?, platform, &|descriptor| self.blob(descriptor))
    }

    fn blob(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send>, SourceError> {
        let digest = descriptor.digest();
        Hasher::like(digest)?;
        let (kind, what) = if is_manifest(descriptor.media_type()) {
            (
                "manifests",
                format!("manifest {digest} of {}", self.name.repository),
            )
        } else {
            ("blobs", format!("blob {digest} of {}", self.name.repository))
        };
        let wanted = Wanted {
            repository: self.name.repository.clone(),
            path: format!("{}/{kind}/{digest}", self.name.repository),
            accept: MANIFEST_TYPES,
            what,
        };
        verified(Download::start(Arc::clone(&self.client), wanted)?, descriptor)
    }

    fn part(&self, descriptor: &Descriptor, range: Range<u64>) -> Result<Option<Vec<u8>>, SourceError> {
        let digest = descriptor.digest();
        let wanted = Wanted {
            repository: self.name.repository.clone(),
            path: format!("{}/blobs/{digest}", self.name.repository),
            accept: MANIFEST_TYPES,
            what: format!("blob {digest} of {}", self.name.repository),
        };
        Ok(download::part(&self.client, &wanted, range)?)
    }
}

impl From<RegistryError> for io::Error {
    fn from(error: RegistryError) -> Self {
        Self::other(error)
    }
}
