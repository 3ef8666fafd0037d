//! Why an image can't be optimized: each variant a sentence a person can act on.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::convert::ConvertError;
use crate::error::{BuildError, is_out_of_space, out_of_space_below};
use crate::layers::LayerError;
use crate::nydus_image::NydusImageError;
use crate::source::{SinkError, SourceError};

/// Why [`optimize`](crate::optimize()) or [`optimize_dir`](crate::optimize_dir()) made no image.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OptimizeError {
    /// The image can't be read.
    #[error(transparent)]
    Image(#[from] NydusImageError),
    /// Nor its place.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// Nor a layer.
    #[error("cannot read the image's layers")]
    Place {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The result can't be written.
    #[error(transparent)]
    Sink(#[from] SinkError),
    /// The directory can't be written.
    #[error(transparent)]
    Output(#[from] BuildError),
    /// No chunk of the image is in the trace.
    #[error("nothing that the trace names is in the image, or can be moved")]
    Nothing,
    /// The image was made with `--digester sha256`.
    #[error("the chunks of the image are named by SHA-256; only those named by BLAKE3 can be moved")]
    Digester,
    /// The bootstrap has chunks where none can be.
    #[error("the image's bootstrap has a chunk where none can be")]
    Bootstrap,
    /// A chunk isn't what it was.
    #[error("chunk {chunk} of blob {blob}, which is part of {}, is damaged", file.display())]
    Chunk {
        /// The blob's id.
        blob: String,
        /// The chunk's number in it.
        chunk: u32,
        /// A file that uses it.
        file: PathBuf,
    },
    /// A blob can't be read.
    #[error("cannot read blob {blob}")]
    Blob {
        /// Its id.
        blob: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The blob or the bootstrap can't be made.
    #[error("cannot make the image")]
    Layer {
        /// Why.
        #[source]
        source: LayerError,
    },
    /// The image's documents can't be made.
    #[error(transparent)]
    Document(ConvertError),
    /// What is under way can't be written.
    #[error("cannot write {}", path.display())]
    Work {
        /// What can't be written.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file system for what is under way is full.
    #[error("no space left for what is under way in {}", path.display())]
    OutOfSpace {
        /// What can't be written.
        path: PathBuf,
    },
    /// The caller's [`Progress`](crate::Progress) said so.
    #[error("cancelled")]
    Cancelled,
}

impl OptimizeError {
    pub(super) fn work(path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        if is_out_of_space(&source) {
            Self::OutOfSpace { path }
        } else {
            Self::Work { path, source }
        }
    }

    pub(super) fn place(source: io::Error) -> Self {
        Self::Place { source }
    }

    pub(super) fn layer(path: &Path, source: LayerError) -> Self {
        if out_of_space_below(&source) {
            Self::OutOfSpace {
                path: path.to_owned(),
            }
        } else {
            Self::Layer { source }
        }
    }
}
