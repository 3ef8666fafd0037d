//! An image goes from one place to another as it is: its manifest keeps its digest, and so do its blobs.
//!
//! Of an image by reference the original layers go along, which its manifest does not name but its bootstrap does.
//! What `image build` made becomes an image as a registry has one: see `built_source.rs`.

use std::io::{self, Read};

use serde::Serialize;
use thiserror::Error;

use crate::nydus_image::{NydusImage, NydusImageError, refers};
use crate::progress::Progress;
use crate::source::{BlobContent, Descriptor, ImageSink, ImageSource, Platform, SinkError, SourceError};
use crate::transfer::{Job, TransferSummary, Transfers};

/// What was copied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct CopySummary {
    /// Digest of the manifest.
    pub digest: String,
    /// The blobs: layers, original layers that are referred to, and the configuration.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What it took to have them there.
    pub transfer: TransferSummary,
}

/// Why [`copy`] copied no image. Nothing names what was written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CopyError {
    /// The image can't be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// It is by reference, and its bootstrap can't be read.
    #[error(transparent)]
    Nydus(#[from] NydusImageError),
    /// It is by reference, and its bootstrap names no layers that there can be.
    #[error("the image refers to a layer that cannot be")]
    Original {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It can't be written.
    #[error(transparent)]
    Sink(#[from] SinkError),
    /// The caller's [`Progress`] said so.
    #[error("cancelled")]
    Cancelled,
}

/// Copies the image for `platform` from `source` to `sink`, several blobs at once and its manifest last. Blobs that are
/// there already aren't written again.
///
/// # Errors
/// See [`CopyError`].
pub fn copy(
    source: Box<dyn ImageSource>,
    sink: &dyn ImageSink,
    platform: &Platform,
    progress: &dyn Progress,
) -> Result<CopySummary, CopyError> {
    copy_to_end(source, sink, platform, progress).map_err(|error| {
        // Whatever the places make of being stopped.
        if progress.is_cancelled() {
            CopyError::Cancelled
        } else {
            error
        }
    })
}

fn copy_to_end(
    source: Box<dyn ImageSource>,
    sink: &dyn ImageSink,
    platform: &Platform,
    progress: &dyn Progress,
) -> Result<CopySummary, CopyError> {
    let image = source.image(platform)?;
    let mut blobs: Vec<Descriptor> = Vec::new();
    let add = |blobs: &mut Vec<Descriptor>, blob: &Descriptor| {
        // A layer may be there twice.
        if blobs.iter().all(|other| other.digest() != blob.digest()) {
            blobs.push(blob.clone());
        }
    };
    for blob in image.layers() {
        add(&mut blobs, blob);
    }
    let place = if refers(&image) {
        let nydus = NydusImage::open_image(source, &image)?;
        for original in nydus
            .originals()
            .map_err(|source| CopyError::Original { source })?
        {
            add(&mut blobs, &original);
        }
        Place::Nydus(Box::new(nydus))
    } else {
        Place::Plain(source)
    };
    add(&mut blobs, image.manifest.config());

    let transfers = Transfers::new(sink);
    let ((), transfer) = transfers.beside(progress, || {
        for blob in &blobs {
            let content = Blob {
                place: &place,
                blob: blob.clone(),
            };
            transfers.add(Job::new(blob.clone(), content));
        }
        Ok::<_, CopyError>(())
    })?;
    if progress.is_cancelled() {
        return Err(CopyError::Cancelled);
    }
    sink.publish(&image.manifest_bytes, &image.media_type)?;
    Ok(CopySummary {
        digest: image.digest.to_string(),
        blobs: blobs.len() as u64,
        bytes: blobs.iter().map(Descriptor::size).sum(),
        transfer,
    })
}

/// Where the blobs are.
enum Place {
    Plain(Box<dyn ImageSource>),
    Nydus(Box<NydusImage>),
}

struct Blob<'a> {
    place: &'a Place,
    blob: Descriptor,
}

impl BlobContent for Blob<'_> {
    fn open(&self) -> io::Result<Box<dyn Read + Send + '_>> {
        match self.place {
            Place::Plain(source) => source.blob(&self.blob).map_err(io::Error::other),
            Place::Nydus(image) => image.layer(&self.blob),
        }
    }
}
