//! The layers of an image that is being converted by reference: read once, and kept if they are needed as they are.
//!
//! That is known only when a layer was read: one that can't be indexed becomes a blob.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::{Arc, Mutex, PoisonError};

use tempfile::NamedTempFile;

use super::StoreError;
use super::content::Content;
use crate::convert::is_gzip;
use crate::source::{Descriptor, Digest, ImageSource, Platform, SinkError, SourceError, SourceImage};

/// Layers that were read, as files that go with this value.
#[derive(Debug, Default)]
pub(super) struct Arrived(Mutex<BTreeMap<String, (Descriptor, NamedTempFile)>>);

impl Arrived {
    fn add(&self, layer: Descriptor, file: NamedTempFile) {
        let mut layers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        layers.insert(layer.digest().to_string(), (layer, file));
    }

    /// The file of a layer, which is the caller's then.
    pub(super) fn take(&self, layer: &Digest) -> Option<NamedTempFile> {
        let mut layers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        layers.remove(&layer.to_string()).map(|(_, file)| file)
    }

    /// Has all of them stay in the store, for the next try.
    pub(super) fn keep(&self, content: &Content) -> Result<(), SinkError> {
        let layers = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        layers
            .into_values()
            .try_for_each(|(layer, file)| content.take_file(&layer, file))
    }
}

/// A place of which each layer that can be needed as it is, is kept as it is read.
#[derive(Debug)]
pub(super) struct Arriving<'a> {
    source: &'a dyn ImageSource,
    content: &'a Content,
    arrived: Arc<Arrived>,
}

impl<'a> Arriving<'a> {
    pub(super) fn new(source: &'a dyn ImageSource, content: &'a Content, arrived: &Arc<Arrived>) -> Self {
        Self {
            source,
            content,
            arrived: Arc::clone(arrived),
        }
    }
}

impl ImageSource for Arriving<'_> {
    fn image(&self, platform: &Platform) -> Result<SourceImage, SourceError> {
        self.source.image(platform)
    }

    fn blob(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send>, SourceError> {
        if !is_gzip(descriptor) {
            return self.source.blob(descriptor);
        }
        if self.content.has_blob(descriptor) {
            return self.content.blob(descriptor);
        }
        let (arrived, layer) = (Arc::clone(&self.arrived), descriptor.clone());
        let done = move |file| arrived.add(layer, file);
        Ok(self
            .content
            .keeping(descriptor, self.source.blob(descriptor)?, done))
    }
}

/// What was complete stays, if there is room for it; the conversion's own failure is the one to be told.
pub(super) fn keep_for_next_try(arrived: &Arrived, content: &Content, failed: StoreError) -> StoreError {
    if let Err(error) = arrived.keep(content) {
        tracing::debug!(%error, "layers that were read are not kept");
    }
    failed
}
