//! From a manifest or index to the image of one platform.
//!
//! Decides only: where bytes come from is the caller's. Every limit on documents is here.

use std::io::Read;

use oci_spec::image::{Descriptor, Digest, ImageConfiguration, ImageIndex, ImageManifest, MediaType};
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};

use super::digest::sha256_of;
use super::error::DocumentName;
use super::{Platform, SourceError, SourceImage, Verified};

/// The largest manifest, index or configuration that is read; what registries accept, too.
pub(super) const DOCUMENT_LIMIT_BYTES: u64 = 4 << 20;
/// An index may name indexes; a chain of them is nobody's.
const MAX_DEPTH: usize = 4;
/// Of all indexes without a platform that are within one, as many are looked into.
const MAX_GUESSES: usize = 32;

/// Docker's media types, which mean the same as OCI's.
pub(super) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(super) const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// Gives the content that a descriptor names, verified.
pub(crate) type Blobs<'a> = dyn Fn(&Descriptor) -> Result<Box<dyn Read + Send>, SourceError> + 'a;

/// A manifest or index as it came.
#[derive(Debug, Clone)]
pub(crate) struct Document {
    pub(crate) bytes: Vec<u8>,
    /// What its descriptor or its transport calls it; `None` where nobody says.
    pub(crate) media_type: Option<MediaType>,
    pub(crate) digest: Digest,
}

impl Document {
    /// One that was found by name; its digest is its own.
    pub(crate) fn named(bytes: Vec<u8>, media_type: Option<MediaType>) -> Self {
        let digest = sha256_of(&bytes);
        Self {
            bytes,
            media_type,
            digest,
        }
    }
}

/// What `root` is, or names, for `platform`; `blob` gives what descriptors name.
pub(crate) fn resolve(
    root: Document,
    platform: &Platform,
    blob: &Blobs<'_>,
) -> Result<SourceImage, SourceError> {
    Search::new(platform, blob).within(root, MAX_DEPTH)
}

/// What one of `manifests` is, or names, for `platform`.
pub(super) fn resolve_among(
    manifests: &[Descriptor],
    platform: &Platform,
    blob: &Blobs<'_>,
) -> Result<SourceImage, SourceError> {
    Search::new(platform, blob).among(manifests, MAX_DEPTH)
}

struct Search<'a> {
    platform: &'a Platform,
    blob: &'a Blobs<'a>,
    /// Indexes that may yet be looked into without knowing what for.
    guesses: usize,
}

impl<'a> Search<'a> {
    fn new(platform: &'a Platform, blob: &'a Blobs<'a>) -> Self {
        Self {
            platform,
            blob,
            guesses: MAX_GUESSES,
        }
    }

    /// `depth` is of how many documents in a chain this may be the first.
    fn within(&mut self, document: Document, depth: usize) -> Result<SourceImage, SourceError> {
        let name = DocumentName::Manifest(document.digest.clone());
        let Some(depth) = depth.checked_sub(1) else {
            return Err(SourceError::TooDeep { what: name });
        };
        match kind(&document, &name)? {
            Kind::Manifest(media_type) => image(document, media_type, self.blob),
            Kind::Index => {
                let index: ImageIndex = parse(&document.bytes, &name)?;
                self.among(index.manifests(), depth)
            }
        }
    }

    fn among(&mut self, manifests: &[Descriptor], depth: usize) -> Result<SourceImage, SourceError> {
        let mut offered = match choose(manifests, self.platform) {
            Ok(chosen) => return self.within(fetch(chosen, self.blob)?, depth),
            Err(offered) => offered,
        };
        // Any of those that say nothing of platforms may have it.
        for index in manifests.iter().filter(|manifest| is_unsaid_index(manifest)) {
            let Some(guesses) = self.guesses.checked_sub(1) else {
                break;
            };
            self.guesses = guesses;
            match self.within(fetch(index, self.blob)?, depth) {
                Err(SourceError::NoSuchPlatform { found, .. }) => offered.extend(found),
                found => return found,
            }
        }
        Err(SourceError::NoSuchPlatform {
            platform: self.platform.clone(),
            found: offered,
        })
    }
}

/// Whether it is an index of which nobody says what it is for.
fn is_unsaid_index(manifest: &Descriptor) -> bool {
    let media_type = manifest.media_type();
    let is_index = *media_type == MediaType::ImageIndex || media_type.to_string() == DOCKER_INDEX;
    is_index && manifest.platform().is_none()
}

/// The manifest for `platform`, or the platforms that there are manifests for.
fn choose<'m>(manifests: &'m [Descriptor], platform: &Platform) -> Result<&'m Descriptor, Vec<String>> {
    if let Some(chosen) = platform.choose(manifests) {
        return Ok(chosen);
    }
    // A list of one that says nothing of platforms leaves no choice.
    if let [only] = manifests
        && only.platform().is_none()
    {
        return Ok(only);
    }
    let offered = |manifest: &Descriptor| {
        let offered = manifest.platform().as_ref()?;
        let arch = offered.architecture().to_string();
        // What BuildKit calls the platform of things that aren't images.
        (arch != "unknown").then(|| {
            Platform::new(&offered.os().to_string(), &arch, offered.variant().as_deref()).to_string()
        })
    };
    Err(manifests.iter().filter_map(offered).collect())
}

/// The document a descriptor names.
pub(crate) fn fetch(descriptor: &Descriptor, blob: &Blobs<'_>) -> Result<Document, SourceError> {
    let name = DocumentName::Manifest(descriptor.digest().clone());
    Ok(Document {
        bytes: read(descriptor, name, blob)?,
        media_type: Some(descriptor.media_type().clone()),
        digest: descriptor.digest().clone(),
    })
}

fn read(descriptor: &Descriptor, what: DocumentName, blob: &Blobs<'_>) -> Result<Vec<u8>, SourceError> {
    let size_bytes = descriptor.size();
    if size_bytes > DOCUMENT_LIMIT_BYTES {
        return Err(SourceError::TooLarge {
            what,
            size_bytes,
            limit_bytes: DOCUMENT_LIMIT_BYTES,
        });
    }
    let mut bytes = Vec::new();
    blob(descriptor)?
        .read_to_end(&mut bytes)
        .map_err(|source| SourceError::Blob {
            digest: descriptor.digest().clone(),
            source,
        })?;
    Ok(bytes)
}

fn image(document: Document, media_type: MediaType, blob: &Blobs<'_>) -> Result<SourceImage, SourceError> {
    let manifest: ImageManifest = parse(&document.bytes, &DocumentName::Manifest(document.digest.clone()))?;
    let config_name = DocumentName::Config(manifest.config().digest().clone());
    let config_bytes = read(manifest.config(), config_name.clone(), blob)?;
    let config: ImageConfiguration = parse(&config_bytes, &config_name)?;
    let (layers, diff_ids) = (manifest.layers().len(), config.rootfs().diff_ids().len());
    if layers != diff_ids {
        return Err(SourceError::LayerCount { layers, diff_ids });
    }
    Ok(SourceImage {
        manifest_bytes: document.bytes,
        digest: document.digest,
        media_type,
        manifest,
        config_bytes,
        config,
    })
}

enum Kind {
    Manifest(MediaType),
    Index,
}

/// What tells a manifest from an index.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Probe {
    media_type: Option<String>,
    manifests: Option<IgnoredAny>,
    config: Option<IgnoredAny>,
    layers: Option<IgnoredAny>,
}

fn kind(document: &Document, name: &DocumentName) -> Result<Kind, SourceError> {
    let probe: Probe = parse(&document.bytes, name)?;
    let is_manifest = probe.config.is_some() || probe.layers.is_some();
    let is_index = probe.manifests.is_some();
    // One reader would see an image where another sees a list (CVE-2021-41190).
    if is_manifest && is_index {
        return Err(SourceError::TwoFaced { what: name.clone() });
    }
    let outer = document.media_type.as_ref().map(ToString::to_string);
    // A registry may call anything JSON; then the document's own word counts.
    let outer = outer.filter(|media_type| !matches!(&**media_type, "application/json" | "text/plain"));
    let media_type = match outer.or(probe.media_type) {
        Some(media_type) => media_type,
        None if is_index => MediaType::ImageIndex.to_string(),
        None => MediaType::ImageManifest.to_string(),
    };
    match &*media_type {
        DOCKER_INDEX if !is_manifest => Ok(Kind::Index),
        DOCKER_MANIFEST if !is_index => Ok(Kind::Manifest(MediaType::Other(media_type))),
        other => match MediaType::from(other) {
            MediaType::ImageIndex if !is_manifest => Ok(Kind::Index),
            MediaType::ImageManifest if !is_index => Ok(Kind::Manifest(MediaType::ImageManifest)),
            _ => Err(SourceError::UnsupportedMediaType {
                what: name.clone(),
                media_type,
            }),
        },
    }
}

pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8], name: &DocumentName) -> Result<T, SourceError> {
    serde_json::from_slice(bytes).map_err(|source| SourceError::Malformed {
        what: name.clone(),
        source,
    })
}

/// `content` as that of `descriptor`, verified.
pub(crate) fn verified(
    content: impl Read + Send + 'static,
    descriptor: &Descriptor,
) -> Result<Box<dyn Read + Send>, SourceError> {
    Ok(Box::new(Verified::new(content, descriptor)?))
}

#[cfg(test)]
#[path = "document_tests.rs"]
mod tests;
