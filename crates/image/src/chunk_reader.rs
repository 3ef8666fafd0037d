//! Reads chunks of an image's blobs, each blob once and from its beginning, and compares them with their digests.
//!
//! Where the chunks are is the bootstrap's word, which is not trusted. Chunks in original layers are in
//! `chunk_reader/original.rs`.

mod original;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::Path;

use nydus_storage::device::BlobFeatures;
use nydus_utils::compress;
use nydus_utils::digest::RafsDigest;

use crate::nydus_image::NydusImage;
use crate::progress::Progress;
use crate::rafs::blob::Blob;
use crate::tree::Chunk;

pub(crate) use original::unpack_by_index;

/// RAFS has no larger chunks.
const MAX_CHUNK_BYTES: u32 = 16 << 20;

/// Chunks of a blob with a file that uses each, in the order in which they are in the blob.
pub(crate) type Wanted<'a> = BTreeMap<(u64, u32), (&'a Chunk, &'a Path)>;

/// A chunk that is what its digest says.
pub(crate) struct Found<'a> {
    /// As it is in the blob, compressed or not; none where chunks are not apart there.
    pub(crate) stored: Option<&'a [u8]>,
    pub(crate) content: &'a [u8],
}

/// Is shown every chunk, or that there is none with its digest.
pub(crate) type Visitor<'v> = &'v mut dyn FnMut(&Chunk, &Path, Option<Found<'_>>) -> io::Result<()>;

/// Whether nothing in a blob is looked into: it is encrypted, or an uncompressed layer.
pub(crate) fn is_opaque(blob: &Blob) -> bool {
    let opaque = BlobFeatures::SEPARATE | BlobFeatures::ENCRYPTED;
    !has_contexts(blob) && blob.features.intersects(opaque)
}

/// Whether a chunk is of a form that is looked into: those that were compressed in batches aren't.
pub(crate) fn is_readable(blob: &Blob, chunk: &Chunk) -> bool {
    !is_opaque(blob) && (has_contexts(blob) || !chunk.is_batch)
}

/// Whether there can be a chunk like this.
pub(crate) fn is_possible(chunk: &Chunk) -> bool {
    let sizes = [chunk.compressed_size, chunk.uncompressed_size];
    sizes.iter().all(|size| *size <= MAX_CHUNK_BYTES)
        && chunk
            .compressed_offset
            .checked_add(u64::from(chunk.compressed_size))
            .is_some()
}

fn has_contexts(blob: &Blob) -> bool {
    blob.features
        .contains(BlobFeatures::SEPARATE | BlobFeatures::ZRAN)
}

impl NydusImage {
    /// Reads chunks that are readable. What was read of the blob is told as `before` and more; where that says to
    /// stop, the rest is not read.
    ///
    /// # Errors
    /// What the blob's source says, or `visit`.
    pub(crate) fn read_chunks(
        &self,
        blob: &Blob,
        wanted: &Wanted<'_>,
        before: u64,
        progress: &dyn Progress,
        visit: Visitor<'_>,
    ) -> io::Result<()> {
        if has_contexts(blob) {
            return self.read_original(blob, wanted, before, progress, visit);
        }
        let mut stream = io::BufReader::with_capacity(1 << 20, self.blob(blob)?);
        let (mut position, mut stored) = (0, Vec::new());
        for (chunk, file) in wanted.values() {
            if progress.is_cancelled() {
                return Ok(());
            }
            let content = match chunk.compressed_offset.checked_sub(position) {
                Some(gap) => {
                    skip(&mut stream, gap)?;
                    stored.resize(chunk.compressed_size as usize, 0);
                    stream.read_exact(&mut stored)?;
                    position = chunk.compressed_offset + u64::from(chunk.compressed_size);
                    unpacked(blob, chunk, &stored)
                }
                // It begins inside the one before.
                None => None,
            };
            let found = content.as_deref().map(|content| Found {
                stored: Some(&stored),
                content,
            });
            visit(chunk, file, found)?;
            progress.position(before + position);
        }
        // To the end, where a source that knows its digest compares it.
        io::copy(&mut stream, &mut io::sink()).map(drop)
    }
}

fn digest_of(blob: &Blob, content: &[u8]) -> [u8; 32] {
    RafsDigest::from_buf(content, blob.digester).data
}

/// The content of a chunk, if it is the one.
fn unpacked<'s>(blob: &Blob, chunk: &Chunk, stored: &'s [u8]) -> Option<Cow<'s, [u8]>> {
    let size = chunk.uncompressed_size as usize;
    let content = if chunk.is_compressed {
        let mut plain = vec![0; size];
        let got = decompress(stored, &mut plain, blob.compressor).ok()?;
        (got == size).then_some(Cow::Owned(plain))?
    } else {
        Cow::Borrowed(stored)
    };
    (content.len() == size && digest_of(blob, &content) == chunk.id).then_some(content)
}

/// As nydus does it, which takes "compressed" with nothing for a mistake of the caller.
fn decompress(stored: &[u8], plain: &mut [u8], with: compress::Algorithm) -> io::Result<usize> {
    if with == compress::Algorithm::None && stored.len() != plain.len() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    compress::decompress(stored, plain, with)
}

fn skip(stream: &mut impl Read, bytes: u64) -> io::Result<()> {
    if io::copy(&mut stream.take(bytes), &mut io::sink())? < bytes {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}
