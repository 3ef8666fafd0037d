//! What a bootstrap says of a blob: where its chunks, their table and its table of contents are.
//!
//! Plain data, made by whoever wrote the blob or read from a bootstrap. Read `tail.rs` for the file's layout.

use nydus_builder::{BlobContext, ChunkSource};
use nydus_storage::device::{BlobFeatures, BlobInfo};
use nydus_utils::digest::RafsDigest;
use nydus_utils::{compress, crypt, digest};

/// A blob, as a bootstrap has it in its table.
#[derive(Debug, Clone)]
pub(crate) struct Blob {
    /// SHA-256 of the blob as a file, in hexadecimal; of the original layer where that has the data.
    pub(crate) id: String,
    pub(crate) features: BlobFeatures,
    pub(crate) compressor: compress::Algorithm,
    /// By which its chunks are named.
    pub(crate) digester: digest::Algorithm,
    pub(crate) chunk_bytes: u32,
    pub(crate) chunks: u32,
    /// The blob as a file.
    pub(crate) compressed_bytes: u64,
    /// In a cache that has all of it.
    pub(crate) uncompressed_bytes: u64,
    /// The table of chunks; RAFS v5 has none.
    pub(crate) chunk_table: Option<ChunkTable>,
    pub(crate) toc_digest: [u8; 32],
    pub(crate) toc_bytes: u32,
    /// Of the file that has the table of chunks, where that isn't the blob.
    pub(crate) meta_digest: [u8; 32],
    pub(crate) meta_bytes: u64,
    /// How much of its beginning is to be fetched before anybody asks.
    pub(crate) prefetch_bytes: u32,
}

/// Where a blob's table of chunks is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ChunkTable {
    pub(crate) compressor: compress::Algorithm,
    pub(crate) offset: u64,
    pub(crate) compressed_bytes: u64,
    pub(crate) uncompressed_bytes: u64,
}

/// Chunks are named by BLAKE3: the faster of the two there are.
pub(crate) const DIGESTER: digest::Algorithm = digest::Algorithm::Blake3;

/// The digest that `hex` writes out, if it is one of 32 bytes.
pub(crate) fn digest_from_hex(hex: &str) -> Option<[u8; 32]> {
    let mut digest = [0; 32];
    if hex.len() != 2 * digest.len() || !hex.is_ascii() {
        return None;
    }
    for (at, byte) in digest.iter_mut().enumerate() {
        *byte = u8::from_str_radix(hex.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(digest)
}

impl Blob {
    /// One that has nothing said of it yet.
    pub(crate) fn unknown() -> Self {
        Self::of(&BlobInfo::new(
            0,
            String::new(),
            0,
            0,
            0,
            0,
            BlobFeatures::empty(),
        ))
    }

    pub(crate) fn of(info: &BlobInfo) -> Self {
        Self {
            id: info.raw_blob_id().trim_end_matches('\0').to_owned(),
            features: info.features(),
            compressor: info.compressor(),
            digester: info.digester(),
            chunk_bytes: info.chunk_size(),
            chunks: info.chunk_count(),
            compressed_bytes: info.compressed_size(),
            uncompressed_bytes: info.uncompressed_size(),
            chunk_table: info.meta_ci_is_valid().then(|| ChunkTable {
                compressor: info.meta_ci_compressor(),
                offset: info.meta_ci_offset(),
                compressed_bytes: info.meta_ci_compressed_size(),
                uncompressed_bytes: info.meta_ci_uncompressed_size(),
            }),
            toc_digest: *info.blob_toc_digest(),
            toc_bytes: info.blob_toc_size(),
            meta_digest: *info.blob_meta_digest(),
            meta_bytes: info.blob_meta_size(),
            prefetch_bytes: u32::try_from(info.prefetch_size()).unwrap_or_default(),
        }
    }

    /// Whether it is the blob that the bootstrap is in.
    pub(crate) fn is_own(&self) -> bool {
        self.features.contains(BlobFeatures::INLINED_FS_META)
    }

    /// Whether the data is in an original layer, and a file of its own has the table of chunks.
    pub(crate) fn is_original(&self) -> bool {
        self.features.contains(BlobFeatures::SEPARATE)
    }

    /// SHA-256 in hexadecimal, and length, of the file that was made of the layer: the blob itself, or the index.
    pub(crate) fn made(&self) -> (String, u64) {
        if self.is_original() {
            let digest = RafsDigest {
                data: self.meta_digest,
            };
            (digest.to_string(), self.meta_bytes)
        } else {
            (self.id.clone(), self.compressed_bytes)
        }
    }

    /// The same for nydus' builder.
    pub(super) fn context(&self) -> BlobContext {
        let mut context = BlobContext::new(
            self.id.clone(),
            0,
            self.features,
            self.compressor,
            self.digester,
            crypt::Algorithm::None,
            std::sync::Arc::default(),
            None,
            false,
        );
        context.chunk_source = ChunkSource::Parent;
        context.chunk_size = self.chunk_bytes;
        context.chunk_count = self.chunks;
        context.compressed_blob_size = self.compressed_bytes;
        context.uncompressed_blob_size = self.uncompressed_bytes;
        context.blob_toc_digest = self.toc_digest;
        context.blob_toc_size = self.toc_bytes;
        context.blob_meta_digest = self.meta_digest;
        context.blob_meta_size = self.meta_bytes;
        context.blob_prefetch_size = u64::from(self.prefetch_bytes);
        if let Some(table) = self.chunk_table {
            let header = &mut context.blob_meta_header;
            header.set_ci_compressor(table.compressor);
            header.set_ci_entries(self.chunks);
            header.set_ci_compressed_offset(table.offset);
            header.set_ci_compressed_size(table.compressed_bytes);
            header.set_ci_uncompressed_size(table.uncompressed_bytes);
            context.blob_meta_info_enabled = true;
        }
        context
    }
}
