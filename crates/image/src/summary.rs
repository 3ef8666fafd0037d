//! What is in an image, counted by reading the finished bootstrap back (not by trusting the source).
//!
//! Also the content of `image.json`, whose reading and writing is in `image_dir.rs`.

use std::collections::HashSet;
use std::error::Error as StdError;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use nydus_api::ConfigV2;
use nydus_rafs::metadata::RafsSuper;
use serde::{Deserialize, Serialize};

use crate::config::{BuildConfig, ChunkSize, Compressor, FsVersion};
use crate::error::BuildError;
use crate::staging::Staging;

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

    /// Reads back what was built into `staging`.
    pub(crate) fn of(config: &BuildConfig, staging: &Staging) -> Result<Self, BuildError> {
        let unusable = |source| BuildError::Unusable {
            path: config.source.path().to_owned(),
            source,
        };
        let bootstrap = staging.work_bootstrap();
        let mut summary = Self {
            fs_version: config.fs_version,
            compressor: config.compressor,
            chunk_size: config.chunk_size,
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
        let (rafs, _) = RafsSuper::load_from_file(&bootstrap, Arc::new(ConfigV2::default()), false)
            .map_err(|error| unusable(error.into()))?;
        summary.count_inodes(&rafs).map_err(unusable)?;
        for blob in rafs.superblock.get_blob_infos() {
            let id = blob.blob_id();
            let compressed_bytes = file_size(&staging.work_blobs().join(&id))?;
            let chunks = u64::from(blob.chunk_count());
            summary.chunks += chunks;
            summary.compressed_bytes += compressed_bytes;
            let uncompressed_bytes = blob.uncompressed_size();
            summary.blobs.push(BlobSummary {
                id,
                compressed_bytes,
                uncompressed_bytes,
                chunks,
            });
        }
        Ok(summary)
    }

    fn count_inodes(&mut self, rafs: &RafsSuper) -> Result<(), Box<dyn StdError + Send + Sync>> {
        let mut linked = HashSet::new();
        rafs.walk_directory(rafs.superblock.root_ino(), None::<&Path>, &mut |inode, _path| {
            if inode.is_dir() {
                self.directories += 1;
            } else if inode.is_symlink() {
                self.symlinks += 1;
            } else if !inode.is_reg() {
                self.others += 1;
            } else if inode.is_hardlink() && !linked.insert(inode.ino()) {
                self.hard_links += 1;
            } else {
                self.regular_files += 1;
                self.uncompressed_bytes += inode.size();
            }
            Ok(())
        })?;
        Ok(())
    }
}

fn file_size(path: &Path) -> Result<u64, BuildError> {
    match fs::metadata(path) {
        Ok(meta) => Ok(meta.len()),
        Err(source) => Err(BuildError::output(path, source)),
    }
}
