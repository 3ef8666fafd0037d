//! Why an image can't be read from a place, or written to one: each a sentence, with what it is about.
//!
//! What is wrong with a reference itself is in `reference.rs`, with content on its way in `verify.rs`.

use std::io;
use std::path::PathBuf;

use oci_spec::image::Digest;
use thiserror::Error;

use super::digest::UnsupportedDigest;
use super::platform::Platform;
use super::registry::RegistryError;

/// Why an image can't be read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SourceError {
    /// A file can't be read.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is nothing of the kind the reference says.
    #[error("{} is not {expected}: it has no {missing}", path.display())]
    NotAnImage {
        /// The place.
        path: PathBuf,
        /// What it should be.
        expected: &'static str,
        /// The file that would have shown it.
        missing: &'static str,
    },
    /// The archive can't be read to its end.
    #[error("archive {} is damaged or incomplete", path.display())]
    DamagedArchive {
        /// The archive.
        path: PathBuf,
        /// What was met.
        #[source]
        source: io::Error,
    },
    /// A compressed archive has to be unpacked, and there is no room for it.
    #[error("no space left in {} to unpack archive {}", dir.display(), path.display())]
    NoRoomToUnpack {
        /// The archive.
        path: PathBuf,
        /// Where it would have been unpacked.
        dir: PathBuf,
    },
    /// More entries in an archive than an image can have.
    #[error("archive {} has more than {limit} entries", path.display())]
    TooManyEntries {
        /// The archive.
        path: PathBuf,
        /// How many are read.
        limit: usize,
    },
    /// A layout of a later version.
    #[error("OCI layout {} is of version {version:?}, which is not known here", path.display())]
    LayoutVersion {
        /// The layout.
        path: PathBuf,
        /// Its version.
        version: String,
    },
    /// The place has images, but not this one.
    #[error("{} has no image {name:?}; it has {}", path.display(), listed(found))]
    NoSuchName {
        /// The place.
        path: PathBuf,
        /// What was asked for.
        name: String,
        /// What there is.
        found: Vec<String>,
    },
    /// The place has several images, and none was named.
    #[error("{} has several images; name one of {}", path.display(), listed(found))]
    Ambiguous {
        /// The place.
        path: PathBuf,
        /// What there is.
        found: Vec<String>,
    },
    /// The image isn't made for this platform.
    #[error("there is no image for {platform}; there is one for {}", listed(found))]
    NoSuchPlatform {
        /// What was asked for.
        platform: Platform,
        /// What there is.
        found: Vec<String>,
    },
    /// A manifest, index or configuration isn't one.
    #[error("{what} is malformed")]
    Malformed {
        /// The document.
        what: DocumentName,
        /// Where it goes wrong.
        #[source]
        source: serde_json::Error,
    },
    /// A document that could be taken for either of two things.
    #[error("{what} is both a manifest and an index")]
    TwoFaced {
        /// The document.
        what: DocumentName,
    },
    /// Neither a manifest nor an index of a kind that is known here.
    #[error("{what} has the media type {media_type:?}, which is not supported")]
    UnsupportedMediaType {
        /// The document.
        what: DocumentName,
        /// Its type.
        media_type: String,
    },
    /// Indexes within indexes.
    #[error("{what} is nested too deeply")]
    TooDeep {
        /// The document that was not read.
        what: DocumentName,
    },
    /// A document that is larger than any real one.
    #[error("{what} has {size_bytes} bytes; more than {limit_bytes} are not read")]
    TooLarge {
        /// The document.
        what: DocumentName,
        /// Its size.
        size_bytes: u64,
        /// The limit.
        limit_bytes: u64,
    },
    /// Configuration and manifest contradict each other.
    #[error("the manifest has {layers} layers, its configuration {diff_ids}")]
    LayerCount {
        /// Layers of the manifest.
        layers: usize,
        /// `diff_ids` of the configuration.
        diff_ids: usize,
    },
    /// Something the image names isn't there.
    #[error("blob {digest} is missing")]
    MissingBlob {
        /// Its digest.
        digest: Digest,
    },
    /// A file that an archive's manifest names isn't there.
    #[error("archive {} names {name:?}, but has no such file", path.display())]
    MissingFile {
        /// The archive.
        path: PathBuf,
        /// The file.
        name: String,
    },
    /// A document or layer can't be read, or isn't what its descriptor says.
    #[error("cannot read blob {digest}")]
    Blob {
        /// Its digest.
        digest: Digest,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A digest that can't be checked.
    #[error(transparent)]
    UnsupportedDigest(#[from] UnsupportedDigest),
    /// The registry doesn't give it.
    #[error(transparent)]
    Registry(Box<RegistryError>),
    /// There are files, but no image.
    #[error("{} is a root file system, not an image", path.display())]
    RootFileSystem {
        /// The directory or archive.
        path: PathBuf,
    },
}

impl From<RegistryError> for SinkError {
    fn from(error: RegistryError) -> Self {
        Self::Registry(Box::new(error))
    }
}

impl From<RegistryError> for SourceError {
    fn from(error: RegistryError) -> Self {
        Self::Registry(Box::new(error))
    }
}

/// What a document is called in an error.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DocumentName {
    /// A manifest or index, by digest.
    #[error("manifest {0}")]
    Manifest(Digest),
    /// A configuration, by digest.
    #[error("image configuration {0}")]
    Config(Digest),
    /// A file.
    #[error("{}", .0.display())]
    File(PathBuf),
}

/// Why an image can't be written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SinkError {
    /// No images are written in this form.
    #[error("{reference} cannot be written to; images go to oci: and docker: only")]
    ReadOnly {
        /// The reference.
        reference: String,
    },
    /// Something else is in the way.
    #[error("{} exists and is not an OCI layout", path.display())]
    Occupied {
        /// The place.
        path: PathBuf,
    },
    /// Can't be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Where a blob comes from failed, or gave something that is not the blob.
    #[error("cannot read blob {digest}")]
    Content {
        /// Its digest.
        digest: Digest,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The registry doesn't take it.
    #[error(transparent)]
    Registry(Box<RegistryError>),
    /// The threads that write can't be made.
    #[error("cannot start a thread for writing blobs")]
    NoThread {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The layout's index isn't one.
    #[error("{} is malformed", path.display())]
    MalformedIndex {
        /// The file.
        path: PathBuf,
        /// Where it goes wrong.
        #[source]
        source: serde_json::Error,
    },
    /// A digest that can't be checked.
    #[error(transparent)]
    UnsupportedDigest(#[from] UnsupportedDigest),
}

fn listed(names: &[String]) -> String {
    /// How many names are worth reading.
    const SHOWN: usize = 12;
    if names.is_empty() {
        return "none".to_owned();
    }
    let shown = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
