//! What is in an image, counted by reading the finished bootstrap back (not by trusting the source).
//!
//! Also the content of `image.json`, whose reading and writing is in `image_dir.rs`.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::config::{ChunkSize, Compressor, FsVersion};
use crate::error::BuildError;
use crate::rafs::load::load;
use crate::rafs::with_nydus;
use crate::staging::Staging;
use crate::tree::{Action, Kind};

/// What an image holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct BuildSummary {
    /// Version of the RAFS format.
    pub fs_version: FsVersion,
    /// How the chunks are compressed.
    pub compressor: Compressor,
    /// Size of a chunk in bytes.
    pub chunk_size: ChunkSize,
    /// Regular files, each counted once however many names it has.
    pub regular_files: u64,
    /// Directories, the root included.
    pub directories: u64,
    /// Symbolic links.
    pub symlinks: u64,
    /// Devices, FIFOs and sockets.
    pub others: u64,
    /// Further names of regular files.
    pub hard_links: u64,
    /// Chunks stored; equal chunks are stored once.
    pub chunks: u64,
    /// Content of all regular files, each counted once, in bytes.
    pub uncompressed_bytes: u64,
    /// All blobs as files, in bytes: the compressed chunks and the tables that find them.
    pub compressed_bytes: u64,
    /// The bootstrap as a file, in bytes.
    pub bootstrap_bytes: u64,
    /// The blobs; none when no file has any content.
    pub blobs: Vec<BlobSummary>,
}

/// One blob of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct BlobSummary {
    /// SHA-256 of the blob in lower-case hexadecimal: its name in the blob directory.
    pub id: String,
    /// The blob as a file, in bytes.
    pub compressed_bytes: u64,
    /// What it amounts to in the cache when all of it was read, in bytes.
    pub uncompressed_bytes: u64,
    /// Chunks stored in it.
    pub chunks: u64,
}

impl BuildSummary {
    /// Everything in the image (bootstrap and blobs) as files, in bytes.
    #[must_use]
    pub fn image_bytes(&self) -> u64 {
        self.bootstrap_bytes + self.compressed_bytes
    }

    /// Reads back what was built into `staging` for `built`, the source or the place.
    pub(crate) fn of(built: &Path, compressor: Compressor, staging: &Staging) -> Result<Self, BuildError> {
        let unusable = |source| BuildError::Unusable {
            path: built.to_owned(),
            source,
        };
        let bootstrap = staging.work_bootstrap();
        let loaded = with_nydus(|| load(&bootstrap)).map_err(unusable)?;
        let mut summary = Self {
            fs_version: loaded.fs_version,
            compressor,
            chunk_size: loaded.chunk_size,
            regular_files: 0,
            directories: 0,
            symlinks: 0,
            others: 0,
            hard_links: 0,
            chunks: 0,
            uncompressed_bytes: 0,
            compressed_bytes: 0,
            bootstrap_bytes: file_size(&bootstrap)?,
            blobs: Vec::new(),
        };
        for entry in &loaded.entries {
            summary.count(&entry.action);
        }
        for blob in loaded.blobs {
            let compressed_bytes = file_size(&staging.work_blobs().join(&blob.id))?;
            let chunks = u64::from(blob.chunks);
            summary.chunks += chunks;
            summary.compressed_bytes += compressed_bytes;
            summary.blobs.push(BlobSummary {
                id: blob.id,
                compressed_bytes,
                uncompressed_bytes: blob.uncompressed_bytes,
                chunks,
            });
        }
        Ok(summary)
    }

    fn count(&mut self, action: &Action) {
        let Action::Put(inode) = action else {
            self.hard_links += 1;
            return;
        };
        match &inode.kind {
            Kind::Directory => self.directories += 1,
            Kind::File(content) => {
                self.regular_files += 1;
                self.uncompressed_bytes += content.size;
            }
            Kind::Symlink(_) => self.symlinks += 1,
            Kind::CharDevice(_) | Kind::BlockDevice(_) | Kind::Fifo | Kind::Socket => self.others += 1,
        }
    }
}

fn file_size(path: &Path) -> Result<u64, BuildError> {
    match fs::metadata(path) {
        Ok(meta) => Ok(meta.len()),
        Err(source) => Err(BuildError::output(path, source)),
    }
}
