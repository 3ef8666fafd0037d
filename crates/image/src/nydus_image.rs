//! An image in nydus' form that is looked at: its bootstrap's content, and a way to its blobs.
//!
//! Ours, nydus-image's and nydus-snapshotter's alike. Never writes. What is found in it is in `inspect.rs`,
//! whether it is right in `check.rs`, how two differ in `diff.rs`.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use thiserror::Error;

use crate::bootstrap_layer::{bootstrap_layer, unpack_bootstrap};
use crate::convert::REFERENCE;
use crate::rafs::blob::Blob;
use crate::rafs::load::{Loaded, blobs_of, load};
use crate::rafs::{NydusError, with_nydus};
use crate::source::{Descriptor, Digest, ImageSource, MediaType, Platform, SourceError, SourceImage};
use crate::trace;

/// An image in nydus' form.
#[derive(Debug)]
pub struct NydusImage {
    pub(crate) loaded: Loaded,
    pub(crate) bootstrap_bytes: u64,
    /// SHA-256 of the bootstrap, as traces have it.
    pub(crate) bootstrap_digest: String,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Directory(PathBuf),
    Source {
        source: Box<dyn ImageSource>,
        layers: Vec<Descriptor>,
    },
}

/// Why an image can't be looked at.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum NydusImageError {
    /// The place can't be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// There is an image, but not in nydus' form.
    #[error("the image has no nydus bootstrap; it has to be converted first")]
    NotNydus,
    /// The layer with the bootstrap can't be read, or has none that can be.
    #[error("the layer with the bootstrap cannot be read")]
    BootstrapLayer {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The bootstrap can't be read.
    #[error("cannot read the bootstrap {}", path.display())]
    Bootstrap {
        /// The file.
        path: PathBuf,
        /// What nydus met.
        #[source]
        source: NydusError,
    },
}

impl NydusImage {
    /// The image of a bootstrap, with its blobs in `blob_dir` under their ids.
    ///
    /// # Errors
    /// See [`NydusImageError`]. The blobs aren't looked at.
    pub fn open(bootstrap: &Path, blob_dir: &Path) -> Result<Self, NydusImageError> {
        let place = Place::Directory(blob_dir.to_owned());
        Self::load(bootstrap, place).map_err(|source| NydusImageError::Bootstrap {
            path: bootstrap.to_owned(),
            source,
        })
    }

    /// The image for `platform` in `source`.
    ///
    /// # Errors
    /// See [`NydusImageError`]. The blobs aren't looked at.
    pub fn open_source(source: Box<dyn ImageSource>, platform: &Platform) -> Result<Self, NydusImageError> {
        let image = source.image(platform)?;
        Self::open_image(source, &image)
    }

    /// The same of an image that `source` has told: asked again by its name, it might tell of another one.
    pub(crate) fn open_image(
        source: Box<dyn ImageSource>,
        image: &SourceImage,
    ) -> Result<Self, NydusImageError> {
        let layers = image.layers().to_vec();
        let layer = bootstrap_layer(&layers).ok_or(NydusImageError::NotNydus)?;
        let failed = |source| NydusImageError::BootstrapLayer { source };
        // Without a name: a signal that ends us leaves nothing. nydus wants one, though.
        let file = tempfile::tempfile().map_err(failed)?;
        unpack_bootstrap(source.blob(layer)?, &file).map_err(failed)?;
        let path = Path::new("/proc/self/fd").join(file.as_raw_fd().to_string());
        Self::load(&path, Place::Source { source, layers }).map_err(|error| failed(io::Error::other(error)))
    }

    fn load(bootstrap: &Path, place: Place) -> Result<Self, NydusError> {
        Ok(Self {
            loaded: with_nydus(|| load(bootstrap))?,
            bootstrap_bytes: fs::metadata(bootstrap)?.len(),
            bootstrap_digest: trace::digest_of(bootstrap)?,
            place,
        })
    }

    /// A blob's bytes from its beginning.
    pub(crate) fn blob(&self, blob: &Blob) -> io::Result<Box<dyn Read + Send>> {
        match &self.place {
            // No layer of this image; the place has it all the same.
            Place::Source { source, .. } if blob.is_original() => {
                source.blob(&original(blob)?).map_err(io::Error::other)
            }
            Place::Directory(_) | Place::Source { .. } => self.file(&blob.id),
        }
    }

    /// The bytes of the index of a blob that is an original layer.
    pub(crate) fn index(&self, blob: &Blob) -> io::Result<Box<dyn Read + Send>> {
        self.file(&blob.made().0)
    }

    /// The original layers that the data is in.
    pub(crate) fn originals(&self) -> io::Result<Vec<Descriptor>> {
        originals(&self.loaded.blobs)
    }

    /// The content of a layer of the image's place.
    pub(crate) fn layer(&self, layer: &Descriptor) -> io::Result<Box<dyn Read + Send>> {
        match &self.place {
            Place::Directory(_) => self.file(layer.digest().digest()),
            Place::Source { source, .. } => source.blob(layer).map_err(io::Error::other),
        }
    }

    fn file(&self, id: &str) -> io::Result<Box<dyn Read + Send>> {
        match &self.place {
            Place::Directory(dir) => Ok(Box::new(File::open(dir.join(id))?)),
            Place::Source { source, layers } => {
                let layer = layers.iter().find(|layer| layer.digest().digest() == id);
                let layer = layer.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
                source.blob(layer).map_err(io::Error::other)
            }
        }
    }
}

/// Whether data of an image is in layers that its manifest doesn't have.
pub(crate) fn refers(image: &SourceImage) -> bool {
    image.layers().iter().any(|layer| {
        let annotations = layer.annotations().as_ref();
        annotations.is_some_and(|all| all.contains_key(REFERENCE))
    })
}

/// The original layers that the data of the image with this bootstrap is in.
pub(crate) fn originals_of(bootstrap: &Path) -> io::Result<Vec<Descriptor>> {
    let blobs = with_nydus(|| blobs_of(bootstrap)).map_err(io::Error::other)?;
    originals(&blobs)
}

fn originals(blobs: &[Blob]) -> io::Result<Vec<Descriptor>> {
    blobs
        .iter()
        .filter(|blob| blob.is_original())
        .map(original)
        .collect()
}

/// The original layer that is a blob.
fn original(blob: &Blob) -> io::Result<Descriptor> {
    let digest = Digest::from_str(&format!("sha256:{}", blob.id)).map_err(io::Error::other)?;
    Ok(Descriptor::new(
        MediaType::ImageLayerGzip,
        blob.compressed_bytes,
        digest,
    ))
}
