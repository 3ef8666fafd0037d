//! What is in the store under its digest: documents and data, to be read and to be added to.
//!
//! Never says what is needed: that is `record.rs`.

use std::fs;
use std::io::Read;
use std::path::PathBuf;

use tempfile::NamedTempFile;

use crate::source::blob_dir::BlobDir;
use crate::source::{
    BlobContent, Descriptor, Digest, ImageSink, MediaType, Platform, Put, SinkError, SourceError,
    SourceImage, document,
};

/// The blobs of the store.
#[derive(Debug)]
pub(super) struct Content {
    path: PathBuf,
    blobs: BlobDir,
}

impl Content {
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            blobs: BlobDir::new(path.clone()),
            path,
        }
    }

    /// Where data blobs are, under their ids.
    pub(super) fn data_dir(&self) -> PathBuf {
        self.path.join("sha256")
    }

    pub(super) fn path_of(&self, digest: &Digest) -> PathBuf {
        self.blobs.path_of(digest)
    }

    /// The image whose manifest has this digest.
    ///
    /// # Errors
    /// See [`SourceError`].
    pub(super) fn image(&self, digest: &Digest, media_type: &MediaType) -> Result<SourceImage, SourceError> {
        let missing = |_| SourceError::MissingBlob {
            digest: digest.clone(),
        };
        let meta = fs::metadata(self.path_of(digest)).map_err(missing)?;
        let descriptor = Descriptor::new(media_type.clone(), meta.len(), digest.clone());
        let blob = |descriptor: &Descriptor| self.blob(descriptor);
        // Of one platform: a manifest that isn't an index.
        document::resolve(document::fetch(&descriptor, &blob)?, &Platform::default(), &blob)
    }

    /// Adds a blob that is not there, verified while it is read.
    ///
    /// # Errors
    /// See [`SinkError`].
    pub(super) fn take(&self, descriptor: &Descriptor, content: &mut dyn Read) -> Result<(), SinkError> {
        self.blobs.write(descriptor, content)
    }

    /// Whether the blob is here, as far as that can be said.
    pub(super) fn has_blob(&self, descriptor: &Descriptor) -> bool {
        self.blobs.has(descriptor).unwrap_or(false)
    }

    /// What `content` has, verified while it is read; `done` gets a file of it when all of it was.
    pub(super) fn keeping(
        &self,
        descriptor: &Descriptor,
        content: Box<dyn Read + Send>,
        done: impl FnOnce(NamedTempFile) + Send + 'static,
    ) -> Box<dyn Read + Send> {
        self.blobs.keeping(descriptor, content, done)
    }

    /// Adds a blob of such a file.
    ///
    /// # Errors
    /// See [`SinkError`].
    pub(super) fn take_file(&self, descriptor: &Descriptor, file: NamedTempFile) -> Result<(), SinkError> {
        self.blobs.take(descriptor, file)
    }

    /// A blob's content, verified while it is read.
    ///
    /// # Errors
    /// See [`SourceError`].
    pub(super) fn blob(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send>, SourceError> {
        let digest = descriptor.digest();
        let file = fs::File::open(self.path_of(digest)).map_err(|source| SourceError::Blob {
            digest: digest.clone(),
            source,
        })?;
        document::verified(file, descriptor)
    }
}

impl ImageSink for Content {
    fn has(&self, descriptor: &Descriptor) -> Result<bool, SinkError> {
        self.blobs.has(descriptor)
    }

    fn put(&self, descriptor: &Descriptor, content: &dyn BlobContent) -> Result<Put, SinkError> {
        self.blobs.put(descriptor, content)
    }

    /// Gives it no name: a record does.
    fn publish(&self, bytes: &[u8], media_type: &MediaType) -> Result<Digest, SinkError> {
        self.put_manifest(bytes, media_type)
    }
}
