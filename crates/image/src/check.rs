//! Whether an image in nydus' form is right: every chunk that any file uses is read, decompressed, and compared
//! with its digest.
//!
//! Each blob is read once, from its beginning, wherever it is. What is wrong is collected, not stopped at: one
//! look tells all of it. Chunks in original layers are `check/original.rs`'s.

mod original;

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use nydus_storage::device::BlobFeatures;
use nydus_utils::compress;
use nydus_utils::digest::RafsDigest;
use serde::Serialize;

use crate::nydus_image::NydusImage;
use crate::progress::{Phase, Progress};
use crate::rafs::blob::Blob;
use crate::tree::{Action, Chunk, Kind};

/// RAFS has no larger chunks.
const MAX_CHUNK_BYTES: u32 = 16 << 20;

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
        file: PathBuf,
    },
    /// The bootstrap has a chunk where none can be.
    #[error("the bootstrap has a chunk of {} where none can be", file.display())]
    Bootstrap {
        /// The file.
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

/// The chunks of a blob with a file that uses each, in the order in which they are in the blob.
type Wanted<'a> = BTreeMap<(u64, u32), (&'a Chunk, &'a Path)>;

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
        for (blob, wanted) in self.loaded.blobs.iter().zip(wanted) {
            let opaque = BlobFeatures::SEPARATE | BlobFeatures::ENCRYPTED;
            let result = if wanted.is_empty() {
                Ok(())
            } else if blob
                .features
                .contains(BlobFeatures::SEPARATE | BlobFeatures::ZRAN)
            {
                self.check_original(blob, &wanted, before, progress, &mut report)
            } else if blob.features.intersects(opaque) {
                report.unchecked_chunks += wanted.len() as u64;
                Ok(())
            } else {
                self.check_blob(blob, &wanted, before, progress, &mut report)
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

    fn check_blob(
        &self,
        blob: &Blob,
        wanted: &Wanted<'_>,
        before: u64,
        progress: &dyn Progress,
        report: &mut CheckReport,
    ) -> io::Result<()> {
        let mut stream = io::BufReader::with_capacity(1 << 20, self.blob(blob)?);
        let (mut position, mut stored) = (0, Vec::new());
        for (chunk, file) in wanted.values() {
            if progress.is_cancelled() {
                return Ok(());
            }
            if chunk.is_batch {
                report.unchecked_chunks += 1;
                continue;
            }
            let good = match chunk.compressed_offset.checked_sub(position) {
                Some(gap) => {
                    skip(&mut stream, gap)?;
                    stored.resize(chunk.compressed_size as usize, 0);
                    stream.read_exact(&mut stored)?;
                    position = chunk.compressed_offset + u64::from(chunk.compressed_size);
                    is_good(blob, chunk, &stored)
                }
                // It begins inside the one before.
                None => false,
            };
            if good {
                report.good_chunks += 1;
            } else {
                report.problems.push(CheckProblem::of_chunk(blob, chunk, file));
            }
            progress.position(before + position);
        }
        // To the end, where a source that knows its digest compares it.
        io::copy(&mut stream, &mut io::sink()).map(drop)
    }
}

fn is_possible(chunk: &Chunk) -> bool {
    let sizes = [chunk.compressed_size, chunk.uncompressed_size];
    sizes.iter().all(|size| *size <= MAX_CHUNK_BYTES)
        && chunk
            .compressed_offset
            .checked_add(u64::from(chunk.compressed_size))
            .is_some()
}

fn digest_of(blob: &Blob, content: &[u8]) -> [u8; 32] {
    RafsDigest::from_buf(content, blob.digester).data
}

fn is_good(blob: &Blob, chunk: &Chunk, stored: &[u8]) -> bool {
    let size = chunk.uncompressed_size as usize;
    if !chunk.is_compressed {
        return stored.len() == size && digest_of(blob, stored) == chunk.id;
    }
    let mut plain = vec![0; size];
    compress::decompress(stored, &mut plain, blob.compressor).is_ok_and(|got| got == size)
        && digest_of(blob, &plain) == chunk.id
}

fn skip(stream: &mut impl Read, bytes: u64) -> io::Result<()> {
    if io::copy(&mut stream.take(bytes), &mut io::sink())? < bytes {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}
