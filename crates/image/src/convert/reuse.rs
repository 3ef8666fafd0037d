//! Layers that were converted before: their blobs are where the image goes, and have their own bootstraps.
//!
//! A blob is taken for a layer if its descriptor says that it was made of it, and if its bootstrap says that it
//! was made as is asked now. A place that can give the end of a blob alone is asked for no more; the bootstrap in it is
//! verified by the blob's table of contents. That goes as far as the manifest is to be trusted, which is from the same
//! place. Everywhere else blobs are verified by their digest.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use thiserror::Error;

use super::manifest::{BLOB, BLOB_TYPE, BlobLayer, REFERENCE, SOURCE_DIGEST};
use super::{ConvertConfig, Mode, copy_to};
use crate::merge::MergeLayer;
use crate::rafs::blob::digest_from_hex;
use crate::rafs::blob_bytes::{BlobBytes, EndOfBlob};
use crate::rafs::load::load;
use crate::rafs::reference::Unindexed;
use crate::rafs::tail::{self, BlobFormat};
use crate::rafs::{NydusError, with_nydus};
use crate::source::{Descriptor, ImageSource, SourceError, SourceImage};

/// The image that was there before.
#[derive(Debug)]
pub(super) struct Previous<'a> {
    place: &'a dyn ImageSource,
    image: SourceImage,
    mode: Mode,
}

/// Why a blob can't be used again.
#[derive(Debug, Error)]
pub(super) enum ReuseError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("its bootstrap cannot be read: {0}")]
    Bootstrap(NydusError),
    #[error("it has no descriptor")]
    Descriptor,
}

impl<'a> Previous<'a> {
    /// Looks at the image; without one, or if it can't be read, there is nothing to use again.
    pub(super) fn open(place: &'a dyn ImageSource, config: &ConvertConfig) -> Option<Self> {
        let image = place.image(&config.platform).ok()?;
        Some(Self {
            place,
            image,
            mode: config.mode,
        })
    }

    /// The layer that `source` became; none if it wasn't converted like this. Files are made beside `path`, and go.
    pub(super) fn layer(
        &self,
        source: &Descriptor,
        format: BlobFormat,
        path: &Path,
    ) -> Result<Option<(MergeLayer, BlobLayer)>, ReuseError> {
        // A layer that can't be indexed though it is gzip is not told apart from one that was not to be.
        let indexed = self.mode == Mode::Reference && is_gzip(source);
        let wanted = |layer: &&Descriptor| made_of(layer, source) && is_index(layer) == indexed;
        let Some(blob) = self.image.layers().iter().find(wanted) else {
            return Ok(None);
        };
        if let Some(end) = EndOfBlob::fetch(self.place, blob)?
            && let Some(bootstrap) = tail::listed_bootstrap_in(&end)?
        {
            return self.made(source, blob, &bootstrap, &end, (indexed, format, path));
        }
        copy_to(&mut *self.place.blob(blob)?, path)?;
        let file = File::open(path)?;
        fs::remove_file(path)?;
        let bootstrap = tail::bootstrap_in(&file)?;
        self.made(source, blob, &bootstrap, &file, (indexed, format, path))
    }

    /// What `blob` with this bootstrap is, made of `source`.
    fn made(
        &self,
        source: &Descriptor,
        blob: &Descriptor,
        bootstrap: &[u8],
        bytes: &dyn BlobBytes,
        (indexed, format, path): (bool, BlobFormat, &Path),
    ) -> Result<Option<(MergeLayer, BlobLayer)>, ReuseError> {
        let boot_path = path.with_extension("boot");
        fs::write(&boot_path, bootstrap)?;
        let loaded = with_nydus(|| load(&boot_path)).map_err(ReuseError::Bootstrap)?;
        fs::remove_file(&boot_path)?;
        if !loaded.is_of(format) || loaded.is_ambiguous() {
            return Ok(None);
        }
        let id = blob.digest().digest();
        let digest = digest_from_hex(id).ok_or(ReuseError::Descriptor)?;
        let mut blobs = loaded.blobs.clone();
        for own in blobs.iter_mut().filter(|blob| blob.is_own()) {
            tail::complete(own, digest, bytes)?;
            let of_source = own.id == source.digest().digest() && own.compressed_bytes == source.size();
            if own.is_original() != indexed || indexed && !of_source {
                return Ok(None);
            }
        }
        let merge = MergeLayer {
            blobs,
            layer: loaded.into_layer(),
        };
        let layer = BlobLayer::new(source, id, blob.size(), indexed).map_err(|_| ReuseError::Descriptor)?;
        let layer = BlobLayer {
            unindexed: (self.mode == Mode::Reference && !indexed).then_some(Unindexed::NotGzip),
            reused: true,
            ..layer
        };
        Ok(Some((merge, layer)))
    }
}

/// Whether a layer says that it is packed with gzip.
pub(crate) fn is_gzip(source: &Descriptor) -> bool {
    let media_type = source.media_type().to_string();
    media_type.ends_with("+gzip") || media_type.ends_with(".gzip")
}

fn is_index(layer: &Descriptor) -> bool {
    layer
        .annotations()
        .as_ref()
        .is_some_and(|all| all.contains_key(REFERENCE))
}

fn made_of(layer: &Descriptor, source: &Descriptor) -> bool {
    let annotation = |name: &str| layer.annotations().as_ref().and_then(|all| all.get(name));
    annotation(BLOB).is_some()
        && layer.media_type().to_string() == BLOB_TYPE
        && annotation(SOURCE_DIGEST).is_some_and(|digest| *digest == source.digest().to_string())
}
