//! Why a build failed: each variant a sentence a person can act on, with the path it is about.
//!
//! Why an image directory can't be opened is in `image_dir.rs`.

use std::error::Error as StdError;
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use thiserror::Error;

use crate::layers::{EntryProblem, LayerError};

/// Why [`build`](crate::build()) made no image. Nothing was left behind.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BuildError {
    /// There is no such file or directory.
    #[error("source {} does not exist", path.display())]
    SourceMissing {
        /// The path that was given.
        path: PathBuf,
    },
    /// A device, socket or FIFO.
    #[error("source {} is neither a directory nor a regular file", path.display())]
    SourceUnsupported {
        /// The path that was given.
        path: PathBuf,
    },
    /// The source, or something in it, can't be read.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// What can't be read.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file's content isn't that of a tar archive, compressed or not.
    #[error("{} is not a tar archive, plain or compressed with gzip or Zstandard", path.display())]
    NotATar {
        /// The file.
        path: PathBuf,
    },
    /// The archive begins well but can't be read to its end.
    #[error("tar archive {} is damaged or incomplete", path.display())]
    DamagedTar {
        /// The archive.
        path: PathBuf,
        /// What was met.
        #[source]
        source: io::Error,
    },
    /// The archive holds an entry that can't be put in an image.
    #[error("tar archive {} has an entry that cannot be used: {}: {problem}", path.display(), entry.display())]
    TarEntry {
        /// The archive.
        path: PathBuf,
        /// The entry's path in it.
        entry: PathBuf,
        /// What is wrong with it.
        problem: EntryProblem,
    },
    /// There is an image already, and replacing it wasn't asked for.
    #[error("there is an image at {} already", path.display())]
    OutputExists {
        /// The output directory.
        path: PathBuf,
    },
    /// Something that is no image is in the way; it is never replaced.
    #[error("{} exists and is not an image directory", path.display())]
    OutputNotImage {
        /// The output directory.
        path: PathBuf,
    },
    /// The image would contain itself.
    #[error("output directory {} lies inside the source {}", path.display(), source_dir.display())]
    OutputInsideSource {
        /// The output directory.
        path: PathBuf,
        /// The source directory.
        source_dir: PathBuf,
    },
    /// The output can't be written.
    #[error("cannot write {}", path.display())]
    Output {
        /// What can't be written.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file system of the output is full.
    #[error("no space left for the image at {}", path.display())]
    OutOfSpace {
        /// The output directory.
        path: PathBuf,
    },
    /// The builder refused the source, or the source changed while it was read.
    #[error("cannot build an image of {}", path.display())]
    Builder {
        /// The source.
        path: PathBuf,
        /// The builder's own account.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
    /// The builder panicked on this source; its message is on standard error.
    #[error("the image builder panicked on {}", path.display())]
    BuilderPanicked {
        /// The source.
        path: PathBuf,
    },
    /// What was built can't be read back.
    #[error("the image built of {} cannot be read back", path.display())]
    Unusable {
        /// The source.
        path: PathBuf,
        /// What the reader met.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
    /// A layer can't be converted.
    #[error("cannot convert the layer {}", path.display())]
    Layer {
        /// Its archive.
        path: PathBuf,
        /// Why.
        #[source]
        source: LayerError,
    },
    /// The caller's [`Progress`](crate::Progress) said so.
    #[error("cancelled")]
    Cancelled,
}

impl BuildError {
    /// An I/O error on the output side: a full file system gets its own sentence.
    pub(crate) fn output(path: &Path, source: io::Error) -> Self {
        if is_out_of_space(&source) {
            Self::OutOfSpace {
                path: path.to_owned(),
            }
        } else {
            Self::Output {
                path: path.to_owned(),
                source,
            }
        }
    }
}

/// Whether `error` or anything below it is an I/O error for want of space.
pub(crate) fn out_of_space_below(error: &(dyn StdError + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.downcast_ref::<io::Error>().is_some_and(is_out_of_space) {
            return true;
        }
        next = error.source();
    }
    false
}

pub(crate) fn is_out_of_space(error: &io::Error) -> bool {
    [Errno::NOSPC, Errno::DQUOT]
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}
