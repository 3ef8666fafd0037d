//! All layers in the store that were converted in one way, as one image: what a conversion looks for those in that
//! it need not convert again.

use std::io::Read;

use super::content::Content;
use crate::source::{Descriptor, ImageSource, Platform, SourceError, SourceImage};

/// Layers of several images of the store.
#[derive(Debug)]
pub(super) struct KnownLayers<'a> {
    content: &'a Content,
    image: SourceImage,
}

impl<'a> KnownLayers<'a> {
    /// These layers, in what is otherwise `image`.
    pub(super) fn new(content: &'a Content, mut image: SourceImage, layers: Vec<Descriptor>) -> Self {
        image.manifest.set_layers(layers);
        Self { content, image }
    }
}

impl ImageSource for KnownLayers<'_> {
    fn image(&self, _platform: &Platform) -> Result<SourceImage, SourceError> {
        Ok(self.image.clone())
    }

    fn blob(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send>, SourceError> {
        self.content.blob(descriptor)
    }
}
