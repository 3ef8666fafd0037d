//! A chunk as this module needs it: where it is in the blob, where in the cache, what it is compared with.
//!
//! Copied out of nydus' tables once. Those are mapped files, some of them in the cache directory, where anybody may
//! truncate them; what is copied stays. Next: `origin.rs` makes content of it.

use nydus_storage::device::BlobChunkInfo;
use nydus_storage::utils::{check_crc, check_hash};
use nydus_utils::digest::{Algorithm, RafsDigest};

/// No chunk is larger, in bytes: twice nydus' limit, for content that grew when it was compressed.
const LARGEST: u64 = 2 * nydus_storage::RAFS_MAX_CHUNK_SIZE;

/// What a chunk's content is compared with, besides its length and what the bootstrap of RAFS v6 lists (`digests.rs`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Checksum {
    /// Nothing that is said where the chunk is described.
    None,
    /// A CRC-32C.
    Crc32(u32),
    /// A digest.
    Digest(Algorithm, Box<RafsDigest>),
}

/// One chunk of a blob. Offsets and sizes are in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chunk {
    /// Its number within the blob, its bit in the chunk map.
    pub(super) id: u32,
    /// Where it is in the blob.
    pub(super) blob_offset: u64,
    /// How long it is in the blob.
    pub(super) blob_size: u32,
    /// Where its content is in the cache file.
    pub(super) offset: u64,
    /// How long its content is.
    pub(super) size: u32,
    pub(super) compressed: bool,
    pub(super) encrypted: bool,
    /// Whether a file of the image is known to have it. Others are not fetched because they are near: there may be
    /// nothing to compare them with.
    pub(super) is_listed: bool,
    pub(super) checksum: Checksum,
}

impl Chunk {
    /// Copies what `info` says; `None` if it cannot be. `digester` is given where `info` has a digest of the content.
    pub(super) fn copy(info: &dyn BlobChunkInfo, digester: Option<Algorithm>) -> Option<Self> {
        // Whoever gives other content chooses it so that a CRC stays what it was.
        let checksum = if let Some(algorithm) = digester {
            Checksum::Digest(algorithm, Box::new(*info.chunk_id()))
        } else if info.has_crc32() {
            Checksum::Crc32(info.crc32())
        } else {
            Checksum::None
        };
        let chunk = Self {
            id: info.id(),
            blob_offset: info.compressed_offset(),
            blob_size: info.compressed_size(),
            offset: info.uncompressed_offset(),
            size: info.uncompressed_size(),
            compressed: info.is_compressed(),
            encrypted: info.is_encrypted(),
            is_listed: true,
            checksum,
        };
        let fits = |offset: u64, size: u32| u64::from(size) <= LARGEST && offset <= u64::MAX - LARGEST;
        (fits(chunk.offset, chunk.size) && fits(chunk.blob_offset, chunk.blob_size)).then_some(chunk)
    }

    /// The first byte in the blob after it.
    pub(super) fn blob_end(&self) -> u64 {
        self.blob_offset + u64::from(self.blob_size)
    }

    /// The first byte in the cache file after it.
    pub(super) fn end(&self) -> u64 {
        self.offset + u64::from(self.size)
    }

    /// Whether `content` is what the image was built with, as far as it is said here.
    pub(super) fn verify(&self, content: &[u8]) -> bool {
        content.len() as u64 == u64::from(self.size)
            && match &self.checksum {
                Checksum::None => true,
                Checksum::Crc32(crc) => check_crc(content, *crc),
                Checksum::Digest(algorithm, digest) => check_hash(content, digest, *algorithm),
            }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    /// A chunk that has a CRC and a digest, as nydus' builder makes them.
    struct Both(RafsDigest);

    const CRC: u32 = 0x1234_5678;

    impl BlobChunkInfo for Both {
        fn chunk_id(&self) -> &RafsDigest {
            &self.0
        }

        fn has_crc32(&self) -> bool {
            true
        }

        fn crc32(&self) -> u32 {
            CRC
        }

        fn id(&self) -> u32 {
            7
        }

        fn blob_index(&self) -> u32 {
            0
        }

        fn compressed_offset(&self) -> u64 {
            0
        }

        fn compressed_size(&self) -> u32 {
            4
        }

        fn uncompressed_offset(&self) -> u64 {
            0
        }

        fn uncompressed_size(&self) -> u32 {
            4
        }

        fn is_batch(&self) -> bool {
            false
        }

        fn is_compressed(&self) -> bool {
            false
        }

        fn is_encrypted(&self) -> bool {
            false
        }

        fn as_any(&self) -> &dyn std::any::Any {
            self
        }
    }

    #[test]
    fn what_has_a_digest_is_compared_with_that_whatever_else_it_has() {
        let digest = RafsDigest::from_buf(b"what", Algorithm::Sha256);
        let chunk = Chunk::copy(&Both(digest), Some(Algorithm::Sha256)).unwrap();
        assert!(chunk.verify(b"what") && !chunk.verify(b"else"));
        let chunk = Chunk::copy(&Both(digest), None).unwrap();
        assert_eq!(chunk.checksum, Checksum::Crc32(CRC));
    }
}
