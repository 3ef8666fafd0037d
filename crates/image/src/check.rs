//! Whether an image in nydus' form is right: every chunk that any file uses is read, decompressed, and compared
//! with its digest.
//!
//! Each blob is read once, from its beginning, wherever it is. What is wrong is collected, not stopped at: one
//! look tells all of it. How chunks are read is in `chunk_reader.rs`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::chunk_reader::{Found, Wanted, is_opaque, is_possible, is_readable};
use crate::nydus_image::NydusImage;
use crate::progress::{Phase, Progress};
use crate::rafs::blob::Blob;
use crate::shown_path;
use crate::tree::{Action, Chunk, Kind};

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct CheckReport {
    /// Chunks whose digest is right.
    pub good_chunks: u64,
    /// Chunks of a form that isn't looked into: compressed in batches, encrypted, or in an uncompressed layer.
    pub unchecked_chunks: u64,
    /// What is wrong.
    pub problems: Vec<CheckProblem>,
    /// Whether somebody stopped it before everything was looked at.
    pub is_complete: bool,
}

/// Something that is wrong with an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(tag = "problem", rename_all = "snake_case")]
#[non_exhaustive]
pub enum CheckProblem {
    /// A blob can't be read, or not to the end of its last chunk.
    #[error("blob {blob} cannot be read: {reason}")]
    Blob {
        /// Its id.
        blob: String,
        /// Why.
        reason: String,
    },
    /// A chunk isn't what it was.
    #[error("chunk {chunk} of blob {blob}, which is part of {}, is damaged", file.display())]
    Chunk {
        /// The blob's id.
        blob: String,
        /// The chunk's number in it.
        chunk: u32,
        /// A file that uses it.
        #[serde(serialize_with = "shown_path::one")]
        file: PathBuf,
    },
    /// The bootstrap has a chunk where none can be.
    #[error("the bootstrap has a chunk of {} where none can be", file.display())]
    Bootstrap {
        /// The file.
        #[serde(serialize_with = "shown_path::one")]
        file: PathBuf,
    },
}

impl CheckProblem {
    fn of_chunk(blob: &Blob, chunk: &Chunk, file: &Path) -> Self {
        Self::Chunk {
            blob: blob.id.clone(),
            chunk: chunk.index,
            file: Path::new("/").join(file),
        }
    }
}

impl NydusImage {
    /// Checks it, telling `progress` how many bytes of blobs were read.
    pub fn check(&self, progress: &dyn Progress) -> CheckReport {
        let mut report = CheckReport {
            good_chunks: 0,
            unchecked_chunks: 0,
            problems: Vec::new(),
            is_complete: true,
        };
        let mut wanted: Vec<Wanted<'_>> = self.loaded.blobs.iter().map(|_| BTreeMap::new()).collect();
        for entry in &self.loaded.entries {
            let Action::Put(inode) = &entry.action else {
                continue;
            };
            let Kind::File(content) = &inode.kind else {
                continue;
            };
            for chunk in &content.chunks {
                match wanted.get_mut(chunk.blob as usize) {
                    Some(of_blob) if is_possible(chunk) => {
                        of_blob.insert((chunk.compressed_offset, chunk.index), (chunk, &entry.path));
                    }
                    _ => report.problems.push(CheckProblem::Bootstrap {
                        file: entry.path.clone(),
                    }),
                }
            }
        }
        let total = self.loaded.blobs.iter().map(|blob| blob.compressed_bytes).sum();
        progress.begin(Phase::Data, Some(total));
        let mut before = 0;
        for (blob, mut wanted) in self.loaded.blobs.iter().zip(wanted) {
            let all = wanted.len();
            wanted.retain(|_, (chunk, _)| is_readable(blob, chunk));
            report.unchecked_chunks += (all - wanted.len()) as u64;
            let mut visit = |chunk: &Chunk, file: &Path, found: Option<Found<'_>>| {
                if found.is_some() {
                    report.good_chunks += 1;
                } else {
                    report.problems.push(CheckProblem::of_chunk(blob, chunk, file));
                }
                Ok(())
            };
            let result = if all == 0 || is_opaque(blob) {
                Ok(())
            } else {
                self.read_chunks(blob, &wanted, before, progress, &mut visit)
            };
            if let Err(error) = result {
                report.problems.push(CheckProblem::Blob {
                    blob: blob.id.clone(),
                    reason: error.to_string(),
                });
            }
            if progress.is_cancelled() {
                report.is_complete = false;
                break;
            }
            before += blob.compressed_bytes;
            progress.position(before);
        }
        report
    }
}
