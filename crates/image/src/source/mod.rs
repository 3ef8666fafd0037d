//! Images of others: where one is read from, and where one is written to.
//!
//! [`ImageRef`] names a place as skopeo does. [`open_source`] gives its [`ImageSource`], [`open_sink`] its
//! [`ImageSink`]. Everything here blocks; call it from a thread that may.
//!
//! What a place says is never trusted: digest and length of every blob are checked while it streams, and
//! documents have a limit. Nothing here unpacks a layer. Which manifest of several is taken is decided in
//! `document.rs` and `platform.rs`; read `oci_layout.rs` next for the simplest place, `registry/mod.rs` for the
//! one that is far away.

mod access;
pub(crate) mod blob_content;
pub(crate) mod blob_dir;
mod digest;
mod dir;
mod docker_archive;
pub(crate) mod document;
mod error;
mod files;
mod oci_layout;
mod oci_sink;
mod platform;
mod reference;
pub(crate) mod registry;
mod tar_index;
mod verify;

use std::fmt;
use std::io::Read;
use std::ops::Range;

pub use oci_spec::image::{Descriptor, Digest, ImageConfiguration, ImageManifest, MediaType};

pub use access::AccessOptions;
pub use blob_content::{BlobContent, BlobOf};
pub use digest::{UnsupportedDigest, sha256_of};
pub use error::{DocumentName, SinkError, SourceError};
pub use oci_sink::OciLayoutSink;
pub use platform::{Platform, PlatformError};
pub use reference::{ImageRef, ImageRefError};
pub use registry::{
    BackendError, BlobProxy, HelperProblem, HttpUrl, HttpUrlError, RegistryBackend, RegistryError,
    RegistryName, Retry, TransportError, rafs_backend, registry_ca_files,
};
pub use verify::{BlobMismatch, Verified};

/// An image as its source describes it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SourceImage {
    /// The manifest as it was signed and named: these bytes have [`Self::digest`].
    pub manifest_bytes: Vec<u8>,
    /// The manifest's digest.
    pub digest: Digest,
    /// The manifest's media type, OCI's or Docker's.
    pub media_type: MediaType,
    /// The manifest.
    pub manifest: ImageManifest,
    /// The image's configuration, as it is named by the manifest.
    pub config_bytes: Vec<u8>,
    /// The image's configuration. It has as many `diff_ids` as there are layers.
    pub config: ImageConfiguration,
}

impl SourceImage {
    /// The layers, the lowest first. Their media types may be OCI's or Docker's, or unknown.
    #[must_use]
    pub fn layers(&self) -> &[Descriptor] {
        self.manifest.layers()
    }
}

/// A place with an image in it. Readers of several blobs may be used at once, from different threads.
pub trait ImageSource: fmt::Debug + Send + Sync {
    /// The image for `platform`. A place that has one image only, and no list of platforms, gives that one:
    /// its configuration says which platform it is for.
    ///
    /// # Errors
    /// See [`SourceError`].
    fn image(&self, platform: &Platform) -> Result<SourceImage, SourceError>;

    /// The content of a blob, from its beginning. The reader verifies it: instead of the last bytes of
    /// content with another digest or length comes an [`std::io::Error`] around a [`BlobMismatch`].
    ///
    /// # Errors
    /// See [`SourceError`]. What goes wrong later is an error of the reader.
    fn blob(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send>, SourceError>;

    /// The bytes of a blob in `range`, which cannot be verified by its digest; `None` where a blob can be read from its
    /// beginning only.
    ///
    /// # Errors
    /// See [`SourceError`].
    fn part(&self, descriptor: &Descriptor, range: Range<u64>) -> Result<Option<Vec<u8>>, SourceError> {
        let _ = (descriptor, range);
        Ok(None)
    }
}

/// What it took to have a blob where it is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Put {
    /// It was written.
    Written,
    /// It was there.
    Present,
    /// The registry took it over from another repository.
    Mounted,
}

/// A place that takes an image: blobs first, then the manifests that name them, the root last.
///
/// Nothing half-written can be seen under its name; what was put before a failure is kept for the next try.
pub trait ImageSink: fmt::Debug + Send + Sync {
    /// Whether the blob is there already.
    ///
    /// # Errors
    /// See [`SinkError`].
    fn has(&self, descriptor: &Descriptor) -> Result<bool, SinkError>;

    /// Takes a blob, and checks its digest and length on the way. One that is there already is not written
    /// again; `content` is then not opened. Several may be put at once, from different threads.
    ///
    /// # Errors
    /// See [`SinkError`].
    fn put(&self, descriptor: &Descriptor, content: &dyn BlobContent) -> Result<Put, SinkError>;

    /// Takes a manifest that an index will name, by its digest only: a blob, unless the place has another kind of thing
    /// for manifests.
    ///
    /// # Errors
    /// See [`SinkError`].
    fn put_manifest(&self, bytes: &[u8], media_type: &MediaType) -> Result<Digest, SinkError> {
        let digest = sha256_of(bytes);
        let descriptor = Descriptor::new(media_type.clone(), bytes.len() as u64, digest.clone());
        self.put(&descriptor, &bytes)?;
        Ok(digest)
    }

    /// Takes the manifest or index that is the image, and gives it the name this sink was opened with.
    ///
    /// # Errors
    /// See [`SinkError`].
    fn publish(&self, bytes: &[u8], media_type: &MediaType) -> Result<Digest, SinkError>;
}

/// Opens the place that `reference` names, to read from it.
///
/// # Errors
/// See [`SourceError`]; a root file system is none of an image, and is made one by [`build`](crate::build()).
pub fn open_source(
    reference: &ImageRef,
    options: &AccessOptions,
) -> Result<Box<dyn ImageSource>, SourceError> {
    Ok(match reference {
        ImageRef::Docker { name } => Box::new(registry::open_source(name, options)?),
        ImageRef::Oci { path, tag } => Box::new(oci_layout::OciLayout::open(
            path,
            files::Directory::new(path),
            tag.clone(),
        )?),
        ImageRef::OciArchive { path, tag } => Box::new(oci_layout::OciLayout::open(
            path,
            tar_index::TarIndex::open(path, options)?,
            tag.clone(),
        )?),
        ImageRef::DockerArchive { path, name } => Box::new(docker_archive::DockerArchive::open(
            path,
            tar_index::TarIndex::open(path, options)?,
            name.as_deref(),
        )?),
        ImageRef::Dir { path } => Box::new(dir::Dir::open(path)?),
        ImageRef::RootDir { path } => return Err(SourceError::RootFileSystem { path: path.clone() }),
    })
}

/// Opens the place that `reference` names, to write to it. An OCI layout is made if it isn't there.
///
/// # Errors
/// See [`SinkError`]; images are written to OCI layouts and registries only.
pub fn open_sink(reference: &ImageRef, options: &AccessOptions) -> Result<Box<dyn ImageSink>, SinkError> {
    match reference {
        ImageRef::Docker { name } => Ok(Box::new(registry::open_sink(name, options)?)),
        ImageRef::Oci { path, tag } => Ok(Box::new(OciLayoutSink::open(path, tag.as_deref())?)),
        ImageRef::OciArchive { .. }
        | ImageRef::DockerArchive { .. }
        | ImageRef::Dir { .. }
        | ImageRef::RootDir { .. } => Err(SinkError::ReadOnly {
            reference: reference.to_string(),
        }),
    }
}
