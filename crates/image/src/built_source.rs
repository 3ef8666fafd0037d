//! What `image build` made, as an image that other places take: a manifest, a configuration that says no more than the
//! platform, the blobs, and the bootstrap as the last layer.
//!
//! The same directory gives the same image. How such documents look is in `convert/manifest.rs`.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;

use tempfile::TempDir;

use crate::convert::ConvertError;
use crate::convert::manifest::{self, BootstrapLayer, Written};
use crate::image_dir::ImageDir;
use crate::source::{Descriptor, ImageSource, MediaType, Platform, SourceError, SourceImage, document};

/// An image directory as a place with an image in it.
#[derive(Debug)]
pub struct BuiltSource {
    blob_dir: PathBuf,
    blobs: Vec<Descriptor>,
    bootstrap: BootstrapLayer,
    written: Written,
    /// Has the bootstrap's layer.
    _work: TempDir,
}

impl BuiltSource {
    /// The image in `dir`, said to be for `platform`.
    ///
    /// # Errors
    /// If the bootstrap can't be made a layer in the system's temporary directory.
    pub fn new(dir: &ImageDir, platform: &Platform) -> Result<Self, ConvertError> {
        let parent = std::env::temp_dir();
        let work = tempfile::Builder::new()
            .prefix("nydusbox-copy-")
            .tempdir_in(&parent)
            .map_err(|source| ConvertError::work(&parent, source))?;
        let blobs = dir.summary().blobs.iter();
        let blobs = blobs.map(|blob| manifest::blob_descriptor(&blob.id, blob.compressed_bytes));
        let blobs: Vec<_> = blobs.collect::<Result<_, _>>()?;
        let (bootstrap, diff_id) =
            manifest::bootstrap_layer(&dir.bootstrap(), dir.fs_version(), work.path())?;
        let written = Written::of_built(platform, &blobs, &bootstrap.descriptor, &diff_id)?;
        Ok(Self {
            blob_dir: dir.blob_dir(),
            blobs,
            bootstrap,
            written,
            _work: work,
        })
    }
}

impl ImageSource for BuiltSource {
    fn image(&self, platform: &Platform) -> Result<SourceImage, SourceError> {
        let root = document::Document::named(
            self.written.manifest_bytes.clone(),
            Some(MediaType::ImageManifest),
        );
        document::resolve(root, platform, &|descriptor| self.blob(descriptor))
    }

    fn blob(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send>, SourceError> {
        let digest = descriptor.digest();
        if digest == self.written.config.digest() {
            let config = std::io::Cursor::new(self.written.config_bytes.clone());
            return document::verified(config, descriptor);
        }
        let path = if digest == self.bootstrap.descriptor.digest() {
            self.bootstrap.path.clone()
        } else if self.blobs.iter().any(|blob| blob.digest() == digest) {
            self.blob_dir.join(digest.digest())
        } else {
            return Err(SourceError::MissingBlob {
                digest: digest.clone(),
            });
        };
        let file = File::open(path).map_err(|source| SourceError::Blob {
            digest: digest.clone(),
            source,
        })?;
        document::verified(file, descriptor)
    }
}
