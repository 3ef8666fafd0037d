//! What is in an image in nydus' form, counted from its bootstrap.
//!
//! Never reads a blob; that is `check.rs`.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::config::FsVersion;
use crate::nydus_image::NydusImage;
use crate::tree::{Action, Kind};

/// What an image holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ImageReport {
    /// Version of the RAFS format.
    pub fs_version: FsVersion,
    /// Size of a chunk in bytes.
    pub chunk_bytes: u64,
    /// The bootstrap as a file, in bytes.
    pub bootstrap_bytes: u64,
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
    /// Content of all regular files, each counted once, in bytes.
    pub data_bytes: u64,
    /// Chunks that any file uses, each counted once.
    pub chunks: u64,
    /// The blobs, in the order of the bootstrap.
    pub blobs: Vec<BlobReport>,
}

/// One blob of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct BlobReport {
    /// Its id: the SHA-256 of it as a file, which is an original layer where there is an index.
    pub id: String,
    /// Where it is an original layer, the SHA-256 of the index of it.
    pub index: Option<String>,
    /// How its chunks are compressed, as nydus names it.
    pub compressor: String,
    /// The blob as a file, in bytes.
    pub compressed_bytes: u64,
    /// What it amounts to in the cache when all of it was read, in bytes.
    pub uncompressed_bytes: u64,
    /// Chunks stored in it.
    pub chunks: u64,
    /// Those of them that any file uses: a higher layer hides the others.
    pub used_chunks: u64,
}

impl NydusImage {
    /// Counts what is in it.
    #[must_use]
    pub fn inspect(&self) -> ImageReport {
        let mut used = BTreeSet::new();
        let mut report = ImageReport {
            fs_version: self.loaded.fs_version,
            chunk_bytes: self.loaded.chunk_size.into(),
            bootstrap_bytes: self.bootstrap_bytes,
            regular_files: 0,
            directories: 0,
            symlinks: 0,
            others: 0,
            hard_links: 0,
            data_bytes: 0,
            chunks: 0,
            blobs: Vec::new(),
        };
        for entry in &self.loaded.entries {
            let Action::Put(inode) = &entry.action else {
                report.hard_links += 1;
                continue;
            };
            match &inode.kind {
                Kind::Directory => report.directories += 1,
                Kind::File(content) => {
                    report.regular_files += 1;
                    report.data_bytes += content.size;
                    used.extend(content.chunks.iter().map(|chunk| (chunk.blob, chunk.index)));
                }
                Kind::Symlink(_) => report.symlinks += 1,
                Kind::CharDevice(_) | Kind::BlockDevice(_) | Kind::Fifo | Kind::Socket => report.others += 1,
            }
        }
        report.chunks = used.len() as u64;
        for (number, blob) in (0_u32..).zip(&self.loaded.blobs) {
            report.blobs.push(BlobReport {
                id: blob.id.clone(),
                index: blob.is_original().then(|| blob.made().0),
                compressor: blob.compressor.to_string(),
                compressed_bytes: blob.compressed_bytes,
                uncompressed_bytes: blob.uncompressed_bytes,
                chunks: u64::from(blob.chunks),
                used_chunks: used.range((number, 0)..=(number, u32::MAX)).count() as u64,
            });
        }
        report
    }
}
