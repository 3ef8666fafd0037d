//! Reads chunks that are in an original layer, by the index that unpacks them.
//!
//! The layer is read once, from its beginning; each stretch that has a context is unpacked as a daemon would do it.
//! Read `rafs/reference.rs` for how an index is made.

use std::collections::BTreeMap;
use std::io::{self, Read};

use nydus_storage::RAFS_MAX_CHUNK_SIZE;
use nydus_utils::compress::Algorithm;
use nydus_utils::compress::zlib_random::{ZranContext, ZranDecoder};
use sha2::{Digest, Sha256};

use super::{Found, Visitor, Wanted, digest_of};
use crate::nydus_image::NydusImage;
use crate::progress::Progress;
use crate::rafs::blob::Blob;
use crate::rafs::contexts::Context;
use crate::rafs::with_nydus;
use crate::tree::Chunk;

/// A table of chunks of more is none of any layer there is.
const MAX_TABLE_BYTES: u64 = 1 << 30;
/// More cannot be compressed to what a context may unpack to.
const MAX_STRETCH_BYTES: u32 = 256 << 20;
/// An entry of the table of chunks.
const CHUNK_BYTES: usize = 24;
/// What follows the table in the file, and where in it the number of contexts is.
const HEADER_BYTES: usize = 4096;
const HEADER_CONTEXTS: usize = 56;

/// The table of an index, uncompressed.
struct Table {
    bytes: Vec<u8>,
    chunks: u32,
    contexts: u32,
}

impl Table {
    /// Reads it from the index in `file`, all of which is read.
    fn read(blob: &Blob, file: &mut dyn Read) -> io::Result<Self> {
        let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        let placed = blob
            .chunk_table
            .ok_or_else(|| bad("there is no table of chunks"))?;
        if placed.uncompressed_bytes.max(placed.compressed_bytes) > MAX_TABLE_BYTES {
            return Err(bad("the table of chunks is larger than 1 GiB"));
        }
        let mut file = Hashing::new(file);
        super::skip(&mut file, placed.offset)?;
        let stored = read(&mut file, placed.compressed_bytes)?;
        let header = read(&mut file, HEADER_BYTES as u64)?;
        io::copy(&mut file, &mut io::sink())?;
        if file.digest() != blob.meta_digest {
            return Err(bad("the index has another digest"));
        }
        let mut bytes = stored;
        if placed.compressor != Algorithm::None {
            let mut plain = vec![0; usize::try_from(placed.uncompressed_bytes).unwrap_or_default()];
            let got = super::decompress(&bytes, &mut plain, placed.compressor)?;
            plain.truncate(got);
            bytes = plain;
        }
        let contexts = header
            .get(HEADER_CONTEXTS..HEADER_CONTEXTS + 4)
            .and_then(|count| count.try_into().ok())
            .map_or(0, u32::from_le_bytes);
        Ok(Self {
            bytes,
            chunks: blob.chunks,
            contexts,
        })
    }

    /// The number of the chunk's context, and where in that it is.
    fn place(&self, chunk: &Chunk) -> Option<(u32, u32)> {
        let begin = (chunk.index as usize).checked_mul(CHUNK_BYTES)?;
        let entry = self.bytes.get(begin..begin + CHUNK_BYTES)?;
        let data = u64::from_le_bytes(entry[16..].try_into().ok()?);
        let (context, offset) = (data >> 32, data & u64::from(u32::MAX));
        (chunk.index < self.chunks).then_some((u32::try_from(context).ok()?, u32::try_from(offset).ok()?))
    }

    fn context(&self, number: u32) -> Option<(Context, &[u8])> {
        let contexts = self.bytes.get(self.chunks as usize * CHUNK_BYTES..)?;
        let dictionaries = contexts.get((self.contexts as usize).checked_mul(Context::BYTES)?..)?;
        let context = (number < self.contexts).then(|| Context::at(contexts, number))??;
        let begin = usize::try_from(context.dictionary_offset).ok()?;
        let end = begin.checked_add(context.dictionary_bytes as usize)?;
        let possible = u64::from(context.out_bytes) <= RAFS_MAX_CHUNK_SIZE
            && context.in_bytes <= MAX_STRETCH_BYTES
            && context
                .in_offset
                .checked_add(u64::from(context.in_bytes))
                .is_some();
        possible.then_some((context, dictionaries.get(begin..end)?))
    }
}

impl NydusImage {
    /// Reads chunks of an original layer.
    pub(super) fn read_original(
        &self,
        blob: &Blob,
        wanted: &Wanted<'_>,
        before: u64,
        progress: &dyn Progress,
        visit: Visitor<'_>,
    ) -> io::Result<()> {
        let table = Table::read(blob, &mut *self.index(blob)?)?;
        let mut by_context = BTreeMap::<u32, Vec<_>>::new();
        for (chunk, file) in wanted.values().copied() {
            match table.place(chunk) {
                Some((context, offset)) => by_context.entry(context).or_default().push((offset, chunk, file)),
                None => visit(chunk, file, None)?,
            }
        }
        let mut layer = Window::new(self.blob(blob)?);
        for (number, chunks) in by_context {
            if progress.is_cancelled() {
                return Ok(());
            }
            // A context that can't be, or that lies before the one before it, unpacks to nothing.
            let unpacked = match table.context(number) {
                Some((context, dictionary)) => match layer.slice(context.in_offset, context.in_bytes)? {
                    Some(stretch) => unpack(&context, dictionary, stretch),
                    None => None,
                },
                None => None,
            };
            for (offset, chunk, file) in chunks {
                let begin = offset as usize;
                let content = unpacked.as_deref().and_then(|unpacked| {
                    unpacked.get(begin..begin.checked_add(chunk.uncompressed_size as usize)?)
                });
                let content = content.filter(|content| digest_of(blob, content) == chunk.id);
                let found = content.map(|content| Found {
                    stored: None,
                    content,
                });
                visit(chunk, file, found)?;
            }
            progress.position(before + layer.end());
        }
        // To the end, where a source that knows its digest compares it.
        layer.finish()
    }
}

/// Unpacks every chunk of a table out of `layer`, for the fuzz targets.
pub(crate) fn unpack_by_index(table: &[u8], chunks: u32, contexts: u32, layer: &[u8]) {
    let table = Table {
        bytes: table.to_vec(),
        chunks,
        contexts,
    };
    let mut window = Window::new(Box::new(io::Cursor::new(layer.to_vec())));
    for number in 0..contexts {
        let Some((context, dictionary)) = table.context(number) else {
            break;
        };
        if let Ok(Some(stretch)) = window.slice(context.in_offset, context.in_bytes) {
            unpack(&context, dictionary, stretch);
        }
    }
}

fn unpack(context: &Context, dictionary: &[u8], stretch: &[u8]) -> Option<Vec<u8>> {
    let context = ZranContext {
        in_offset: context.in_offset,
        out_offset: context.out_offset,
        in_len: context.in_bytes,
        out_len: context.out_bytes,
        ctx_byte: context.byte,
        ctx_bits: context.bits,
        dict: Vec::new(),
    };
    with_nydus(|| {
        let mut unpacked = vec![0; context.out_len as usize];
        let got = ZranDecoder::new()?.uncompress(&context, Some(dictionary), stretch, &mut unpacked)?;
        unpacked.truncate(got);
        Ok(unpacked)
    })
    .ok()
}

/// A stream that is looked at in pieces which may overlap, each beginning no earlier than the one before.
struct Window {
    stream: Box<dyn Read + Send>,
    /// Where `bytes` begin.
    begin: u64,
    bytes: Vec<u8>,
}

impl Window {
    fn new(stream: Box<dyn Read + Send>) -> Self {
        Self {
            stream,
            begin: 0,
            bytes: Vec::new(),
        }
    }

    /// What was read of the stream.
    fn end(&self) -> u64 {
        self.begin + self.bytes.len() as u64
    }

    /// The piece at `offset`; none if it begins before the one before, an error where the stream has ended.
    fn slice(&mut self, offset: u64, bytes: u32) -> io::Result<Option<&[u8]>> {
        let Some(passed) = offset.checked_sub(self.begin) else {
            return Ok(None);
        };
        let kept = self
            .bytes
            .len()
            .min(usize::try_from(passed).unwrap_or(usize::MAX));
        self.bytes.drain(..kept);
        super::skip(&mut self.stream, passed - kept as u64)?;
        self.begin = offset;
        let missing = (bytes as usize).saturating_sub(self.bytes.len());
        let more = read(&mut self.stream, missing as u64)?;
        self.bytes.extend(more);
        Ok(self.bytes.get(..bytes as usize))
    }

    fn finish(mut self) -> io::Result<()> {
        io::copy(&mut self.stream, &mut io::sink()).map(drop)
    }
}

/// Exactly so many bytes; memory is taken as they come.
fn read(stream: &mut impl Read, bytes: u64) -> io::Result<Vec<u8>> {
    let mut data = Vec::new();
    stream.take(bytes).read_to_end(&mut data)?;
    if (data.len() as u64) < bytes {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(data)
}

/// Hashes what passes.
struct Hashing<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Hashing<R> {
    fn new(inner: R) -> Self {
        Self {
            inner,
            hash: Sha256::new(),
        }
    }

    fn digest(self) -> [u8; 32] {
        self.hash.finalize().into()
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let got = self.inner.read(buf)?;
        self.hash.update(&buf[..got]);
        Ok(got)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn chunk(index: u32) -> Chunk {
        Chunk {
            blob: 0,
            index,
            id: [0; 32],
            compressed_offset: 0,
            compressed_size: 0,
            uncompressed_offset: 0,
            uncompressed_size: 0,
            is_compressed: true,
            is_batch: false,
        }
    }

    proptest! {
        /// What is found in a table is one of its contexts, with a dictionary that is in it and sizes that are taken.
        #[test]
        fn any_table_is_looked_into_within_its_bounds(
            places in vec(any::<[u8; CHUNK_BYTES]>(), 0..4),
            records in vec((any::<u64>(), 0_u64..60, any::<u32>(), any::<u32>(), 0_u32..60), 0..4),
            rest in vec(any::<u8>(), 0..100),
            contexts in prop_oneof![0_u32..8, any::<u32>()],
            index in prop_oneof![0_u32..8, any::<u32>()],
        ) {
            let chunks = u32::try_from(places.len()).unwrap();
            let mut bytes = places.concat();
            for (in_offset, dictionary, in_bytes, out_bytes, dictionary_bytes) in &records {
                bytes.extend(in_offset.to_le_bytes());
                bytes.extend([0; 8]);
                bytes.extend(dictionary.to_le_bytes());
                // Sizes of all magnitudes.
                bytes.extend((in_bytes >> (out_bytes % 32)).to_le_bytes());
                bytes.extend((out_bytes >> (in_bytes % 32)).to_le_bytes());
                bytes.extend(dictionary_bytes.to_le_bytes());
                bytes.extend([0; 4]);
            }
            bytes.extend(rest);
            let table = Table { bytes, chunks, contexts };
            let place = table.place(&chunk(index));
            prop_assert_eq!(place.is_some(), index < chunks);
            for number in [index, place.map_or(0, |(context, _)| context)] {
                if let Some((context, dictionary)) = table.context(number) {
                    prop_assert!(number < contexts);
                    prop_assert_eq!(dictionary.len(), context.dictionary_bytes as usize);
                    prop_assert!(u64::from(context.out_bytes) <= RAFS_MAX_CHUNK_SIZE);
                    prop_assert!(context.in_bytes <= MAX_STRETCH_BYTES);
                }
            }
        }

        /// Pieces are those of the stream, whether they overlap or leave gaps.
        #[test]
        fn a_window_shows_the_stream(
            length in 0_usize..300,
            steps in vec((0_u64..40, 0_u32..60), 0..12),
        ) {
            let content: Vec<u8> = (0..length).map(|at| u8::try_from(at % 251).unwrap()).collect();
            let mut window = Window::new(Box::new(io::Cursor::new(content.clone())));
            let mut offset = 0;
            for (step, bytes) in steps {
                offset += step;
                let begin = usize::try_from(offset).unwrap();
                match content.get(begin..begin + bytes as usize) {
                    Some(piece) => prop_assert_eq!(window.slice(offset, bytes).unwrap(), Some(piece)),
                    None => {
                        prop_assert!(window.slice(offset, bytes).is_err());
                        break;
                    }
                }
                if offset > 0 {
                    prop_assert_eq!(window.slice(offset - 1, bytes).unwrap(), None);
                }
            }
        }
    }
}
