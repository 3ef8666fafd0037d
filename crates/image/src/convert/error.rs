//! Why an image can't be converted: each variant a sentence a person can act on.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::error::{is_out_of_space, out_of_space_below};
use crate::layer_pool::FailedLayer;
use crate::layers::LayerError;
use crate::merge::MergeError;
use crate::rafs::NydusError;
use crate::source::{MediaType, SinkError, SourceError, SourceImage};

/// Why [`convert`](crate::convert()) made no image. Nothing names what was written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConvertError {
    /// The image can't be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The result can't be written.
    #[error(transparent)]
    Sink(#[from] SinkError),
    /// It is in nydus' form already.
    #[error("the image is in nydus' form already")]
    AlreadyNydus,
    /// [`Mode::Reference`](crate::Mode::Reference) with another version than RAFS v6.
    #[error("original layers can be referred to in RAFS v6 only")]
    ReferenceVersion,
    /// A layer that is no archive.
    #[error("layer {digest} is of a type that cannot be converted: {media_type}")]
    LayerType {
        /// The layer.
        digest: String,
        /// Its media type.
        media_type: MediaType,
    },
    /// A layer can't be converted.
    #[error("cannot convert layer {digest}")]
    Layer {
        /// The layer.
        digest: String,
        /// Why.
        #[source]
        source: LayerError,
    },
    /// More blobs than a bootstrap can name.
    #[error("the image needs more than 254 blobs")]
    TooManyBlobs,
    /// The bootstrap of the image can't be made.
    #[error("cannot make the image's bootstrap")]
    Bootstrap {
        /// Why.
        #[source]
        source: LayerError,
    },
    /// The chunk dictionary can't be read.
    #[error("cannot read the chunk dictionary {}", path.display())]
    Dictionary {
        /// Its bootstrap.
        path: PathBuf,
        /// Why.
        #[source]
        source: NydusError,
    },
    /// The chunk dictionary is of another version, chunk size or compression.
    #[error("the chunk dictionary {} is of another RAFS version, chunk size or compression", path.display())]
    DictionaryFormat {
        /// Its bootstrap.
        path: PathBuf,
    },
    /// A blob of the chunk dictionary isn't where the image goes.
    #[error("blob {id} of the chunk dictionary is not where the image is to be written")]
    DictionaryBlob {
        /// The blob.
        id: String,
    },
    /// What was made can't be named.
    #[error("the image's configuration or manifest cannot be written")]
    Document {
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The directory for what is under way can't be written.
    #[error("cannot write {}", path.display())]
    Work {
        /// What can't be written.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file system for what is under way is full.
    #[error("no space left for what is under way in {}; another directory can be given for it", path.display())]
    OutOfSpace {
        /// The directory.
        path: PathBuf,
    },
    /// The caller's [`Progress`](crate::Progress) said so.
    #[error("cancelled")]
    Cancelled,
}

impl ConvertError {
    pub(crate) fn work(path: &Path, source: io::Error) -> Self {
        if is_out_of_space(&source) {
            return Self::OutOfSpace {
                path: path.to_owned(),
            };
        }
        Self::Work {
            path: path.to_owned(),
            source,
        }
    }

    pub(super) fn bootstrap(path: &Path, source: LayerError) -> Self {
        if out_of_space_below(&source) {
            return Self::OutOfSpace {
                path: path.to_owned(),
            };
        }
        Self::Bootstrap { source }
    }

    pub(super) fn document(source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Document {
            source: Box::new(source),
        }
    }
}

pub(super) fn layer_error(failed: FailedLayer, image: &SourceImage, work: &Path) -> ConvertError {
    match failed.error {
        LayerError::Cancelled => ConvertError::Cancelled,
        // Reading can't run out of space.
        error @ (LayerError::Output { .. } | LayerError::Bootstrap { .. }) if out_of_space_below(&error) => {
            ConvertError::OutOfSpace {
                path: work.to_owned(),
            }
        }
        source => ConvertError::Layer {
            digest: digest_of(image, failed.layer),
            source,
        },
    }
}

pub(super) fn merge_error(error: MergeError, image: &SourceImage) -> ConvertError {
    match error {
        MergeError::TooManyBlobs => ConvertError::TooManyBlobs,
        MergeError::Entry { layer, error } => ConvertError::Layer {
            digest: digest_of(image, layer),
            source: error.into(),
        },
    }
}

fn digest_of(image: &SourceImage, layer: usize) -> String {
    let layer = image.layers().get(layer);
    layer.map_or_else(String::new, |layer| layer.digest().to_string())
}
