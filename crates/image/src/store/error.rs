//! Why the store can't do what it was asked: each variant a sentence a person can act on.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::convert::ConvertError;
use crate::error::{is_out_of_space, out_of_space_below};
use crate::image_dir::OpenError;
use crate::source::{Digest, SinkError, SourceError};

/// Why an image can't be had from the store, or removed from it.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A file of the store, or of the blob cache, can't be read or written.
    #[error("cannot use {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Made by a version of this program that doesn't exist yet.
    #[error("image store {} is of version {version:?}, which is not known here", path.display())]
    Version {
        /// The store.
        path: PathBuf,
        /// Its version.
        version: String,
    },
    /// The same of the record of an image: what that needs can't be told, so nothing is removed.
    #[error("the record {} of an image is of version {version}, which is not known here", path.display())]
    RecordVersion {
        /// The record.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// The store's file system is full. What was complete is kept for the next try.
    #[error("no space left in the image store {}", path.display())]
    OutOfSpace {
        /// The store.
        path: PathBuf,
    },
    /// It isn't here, and may not be fetched.
    #[error("{reference} for {platform} is not in the image store")]
    NotHere {
        /// The image.
        reference: String,
        /// The platform.
        platform: String,
    },
    /// The image is in nydus' form, and its data is not where it says.
    #[error("{reference} lacks data: there is no whole blob {blob} in {}", dir.display())]
    MissingData {
        /// The image.
        reference: String,
        /// The blob's digest.
        blob: Digest,
        /// Where it should be.
        dir: PathBuf,
    },
    /// The image has data in a layer that its manifest does not name, and the place it is from lacks that layer.
    #[error("{reference} has its data in the layer {layer}, which is not whole in {}", place.display())]
    MissingOriginal {
        /// The image.
        reference: String,
        /// The layer's digest.
        layer: Digest,
        /// Where it should be.
        place: PathBuf,
    },
    /// No image of the store has this name.
    #[error("there is no {reference} in the image store")]
    NoSuchImage {
        /// The name.
        reference: String,
    },
    /// Somebody uses it.
    #[error("{reference} is in use by {by}")]
    InUse {
        /// The image.
        reference: String,
        /// Who uses it.
        by: String,
    },
    /// It can't be said what is in use, so nothing is removed.
    #[error("cannot tell which images are in use")]
    UseUnknown {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The place can't be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A directory made by [`build`](crate::build()) can't be used.
    #[error(transparent)]
    ImageDir(#[from] OpenError),
    /// The image can't be kept.
    #[error(transparent)]
    Sink(SinkError),
    /// It can't be made one in nydus' form.
    #[error("cannot convert the image")]
    Convert(#[source] ConvertError),
    /// The layer with the bootstrap can't be read, or has none.
    #[error("cannot read the bootstrap of {reference}")]
    Bootstrap {
        /// The image.
        reference: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The caller's [`Progress`](crate::Progress) said so.
    #[error("cancelled")]
    Cancelled,
}

impl StoreError {
    pub(super) fn io(path: &Path, source: io::Error) -> Self {
        if is_out_of_space(&source) {
            return Self::OutOfSpace {
                path: path.to_owned(),
            };
        }
        Self::Io {
            path: path.to_owned(),
            source,
        }
    }

    pub(super) fn sink(store: &Path, error: SinkError) -> Self {
        // What is read can't run out of space.
        if matches!(error, SinkError::Write { .. }) && out_of_space_below(&error) {
            return Self::OutOfSpace {
                path: store.to_owned(),
            };
        }
        Self::Sink(error)
    }

    pub(super) fn convert(store: &Path, error: ConvertError) -> Self {
        match error {
            ConvertError::Cancelled => Self::Cancelled,
            ConvertError::Source(error) => Self::Source(error),
            ConvertError::Sink(error) => Self::sink(store, error),
            ConvertError::OutOfSpace { .. } => Self::OutOfSpace {
                path: store.to_owned(),
            },
            error => Self::Convert(error),
        }
    }
}
