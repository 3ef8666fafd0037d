//! Where chunks come from: one attempt at a ranged request, and what it takes to make content of the answer.
//!
//! The backends, their authentication and their decompression are nydus-storage's. Retries are `blob.rs`' business.

use std::sync::Arc;

use nydus_storage::cache::BlobCache;
use nydus_utils::compress;
use nydus_utils::crypt::decrypt_with_context;

use super::chunk::Chunk;
use super::digests::BlobDigests;
use super::error::FetchError;
use super::storage::agree;

/// A source of chunks.
pub(super) trait Origin: Send + Sync {
    /// Makes one request for chunks that follow each other, and gives the content of each, in order, verified, or what is
    /// wrong with it alone.
    ///
    /// # Errors
    /// [`FetchError`] if there is nothing of any.
    fn fetch(&self, chunks: &[Chunk]) -> Result<Vec<Content>, FetchError>;
}

/// What came of one chunk.
pub(super) type Content = Result<Vec<u8>, FetchError>;

/// A blob behind one of nydus' backends.
pub(super) struct NydusOrigin {
    cache: Arc<dyn BlobCache>,
    digests: Option<BlobDigests>,
}

impl NydusOrigin {
    pub(super) fn new(cache: Arc<dyn BlobCache>, digests: Option<BlobDigests>) -> Self {
        Self { cache, digests }
    }

    fn backend_error(&self, offset: u64, why: &dyn std::fmt::Display) -> FetchError {
        FetchError::Backend {
            blob: self.cache.blob_id().to_owned(),
            offset,
            why: why.to_string(),
        }
    }

    fn short(&self, offset: u64, wanted: u64, got: u64) -> FetchError {
        FetchError::Short {
            blob: self.cache.blob_id().to_owned(),
            offset,
            wanted,
            got,
        }
    }

    /// Makes one request for a part of the blob as it is.
    ///
    /// # Errors
    /// [`FetchError`].
    pub(super) fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), FetchError> {
        let reader = self.cache.reader();
        let begin = reader.metrics().begin();
        let result = reader.try_read(into, offset);
        reader.metrics().end(&begin, into.len(), result.is_err());
        let got = result.map_err(|e| self.backend_error(offset, &e))?;
        if got == into.len() {
            Ok(())
        } else {
            Err(self.short(offset, into.len() as u64, got as u64))
        }
    }

    fn unpack(&self, chunk: &Chunk, raw: &[u8]) -> Result<Vec<u8>, FetchError> {
        let damaged = |source| FetchError::Damaged {
            blob: self.cache.blob_id().to_owned(),
            chunk: chunk.id,
            source,
        };
        let raw = decrypt_with_context(
            raw,
            &self.cache.blob_cipher_object(),
            &self.cache.blob_cipher_context(),
            chunk.encrypted,
        )
        .map_err(damaged)?;
        let compressor = self.cache.blob_compressor();
        // nydus takes "compressed" with nothing for a mistake of the caller where the sizes differ.
        let content = if chunk.compressed && compressor != compress::Algorithm::None {
            let mut content = vec![0; to_usize(u64::from(chunk.size))];
            let size = compress::decompress(&raw, &mut content, compressor).map_err(damaged)?;
            content.truncate(size);
            content
        } else {
            raw.into_owned()
        };
        // A chunk without checksum still has its length.
        if content.len() as u64 != u64::from(chunk.size) {
            return Err(damaged(std::io::ErrorKind::UnexpectedEof.into()));
        }
        if agree(self.cache.blob_id(), self.digests.as_ref(), chunk, &content)? {
            Ok(content)
        } else {
            Err(FetchError::Digest {
                blob: self.cache.blob_id().to_owned(),
                chunk: chunk.id,
            })
        }
    }
}

impl Origin for NydusOrigin {
    fn fetch(&self, chunks: &[Chunk]) -> Result<Vec<Content>, FetchError> {
        let (Some(first), Some(last)) = (chunks.first(), chunks.last()) else {
            return Ok(Vec::new());
        };
        let mut raw = vec![0; to_usize(last.blob_end() - first.blob_offset)];
        let got = match self.read(first.blob_offset, &mut raw) {
            Ok(()) => raw.len(),
            // What came before the end is there.
            Err(FetchError::Short { got, .. }) => to_usize(got),
            Err(error) => return Err(error),
        };
        let contents = chunks.iter().map(|chunk| {
            let from = to_usize(chunk.blob_offset - first.blob_offset);
            let to = to_usize(chunk.blob_end() - first.blob_offset);
            if to <= got {
                self.unpack(chunk, &raw[from..to])
            } else {
                Err(self.short(
                    chunk.blob_offset,
                    chunk.blob_size.into(),
                    got.saturating_sub(from) as u64,
                ))
            }
        });
        let contents: Vec<Content> = contents.collect();
        if let Some(digests) = &self.digests
            && contents.iter().any(is_about_content)
        {
            digests.suspect(chunks, false);
        }
        Ok(contents)
    }
}

/// Whether something came that is not what was asked for.
pub(super) fn is_about_content(content: &Content) -> bool {
    content.as_ref().is_err_and(FetchError::is_about_content)
}

/// Sizes within a request, which has a limit far below this.
fn to_usize(size: u64) -> usize {
    usize::try_from(size).unwrap_or(usize::MAX)
}
