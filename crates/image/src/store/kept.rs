//! Layers of conversions that are not done, so that the next try need not convert them again.
//!
//! The descriptor of each is written down when its blob is complete, and goes when the image is, or with
//! [`Store::gc`](super::Store::gc). Only a hint: without its blob, it is no layer.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::StoreError;
use super::arriving::Arrived;
use super::content::Content;
use super::leftovers::{entries, is_partial, remove};
use crate::config::RafsFormat;
use crate::convert::SOURCE_DIGEST;
use crate::source::blob_dir::{replace, write_error};
use crate::source::{BlobContent, Descriptor, Digest, ImageSink, MediaType, Put, SinkError};

/// The blobs of the store, and the layers that were converted in one way.
#[derive(Debug)]
pub(super) struct KeptLayers<'a> {
    content: &'a Content,
    /// What need not be read again.
    arrived: &'a Arrived,
    dir: PathBuf,
}

impl<'a> KeptLayers<'a> {
    /// Those in `layers`, the directory for all.
    pub(super) fn new(content: &'a Content, arrived: &'a Arrived, layers: &Path, format: RafsFormat) -> Self {
        let name = format!(
            "v{}-{}-{}",
            format.fs_version, format.compressor, format.chunk_size
        );
        Self {
            content,
            arrived,
            dir: layers.join(name),
        }
    }

    /// The layers. One that can't be understood is none.
    pub(super) fn layers(&self) -> Result<Vec<Descriptor>, StoreError> {
        let mut layers = Vec::new();
        for entry in entries(&self.dir)? {
            if is_partial(&entry.file_name()) {
                continue;
            }
            // It may be forgotten just now.
            let text = fs::read(entry.path()).unwrap_or_default();
            match serde_json::from_slice(&text) {
                Ok(layer) => layers.push(layer),
                Err(error) => tracing::debug!(path = %entry.path().display(), %error, "no layer"),
            }
        }
        Ok(layers)
    }

    /// Forgets these layers: an image has them.
    pub(super) fn forget(&self, layers: &[Descriptor]) -> Result<(), StoreError> {
        layers
            .iter()
            .try_for_each(|layer| remove(&self.path_of(layer.digest())))
    }

    fn path_of(&self, blob: &Digest) -> PathBuf {
        self.dir.join(format!("{}.json", blob.digest()))
    }
}

impl ImageSink for KeptLayers<'_> {
    fn has(&self, descriptor: &Descriptor) -> Result<bool, SinkError> {
        self.content.has(descriptor)
    }

    fn put(&self, descriptor: &Descriptor, content: &dyn BlobContent) -> Result<Put, SinkError> {
        let put = match self.arrived.take(descriptor.digest()) {
            Some(file) => {
                self.content.take_file(descriptor, file)?;
                Put::Written
            }
            None => self.content.put(descriptor, content)?,
        };
        let annotations = descriptor.annotations().as_ref();
        if annotations.is_some_and(|all| all.contains_key(SOURCE_DIGEST)) {
            let path = self.path_of(descriptor.digest());
            let failed = |source| write_error(&path, source);
            let text = serde_json::to_vec(descriptor).map_err(|error| failed(error.into()))?;
            replace(&path, |file| file.write_all(&text)).map_err(failed)?;
        }
        Ok(put)
    }

    fn publish(&self, bytes: &[u8], media_type: &MediaType) -> Result<Digest, SinkError> {
        self.content.publish(bytes, media_type)
    }
}
