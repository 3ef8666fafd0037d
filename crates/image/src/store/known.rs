//! All layers that were ever converted into the store, as one image: what a conversion looks for those in that it
//! need not convert again.

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
    /// The layers of `images`; none if there are no images.
    pub(super) fn of(content: &'a Content, images: impl IntoIterator<Item = SourceImage>) -> Option<Self> {
        let mut images = images.into_iter();
        let mut image = images.next()?;
        let mut layers: Vec<Descriptor> = image.layers().to_vec();
        for other in images {
            for layer in other.layers() {
                if !layers.contains(layer) {
                    layers.push(layer.clone());
                }
            }
        }
        image.manifest.set_layers(layers);
        Some(Self { content, image })
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
