//! An index of a gzipped layer that stays as it is: where its files' chunks are in it, and what is needed to begin
//! unpacking in the middle (zlib's `zran`, nydus' OCI-ref).
//!
//! ```text
//! layer -> ZranContextGenerator -> tar -> chunks, each with its place in a context; contexts -> Index
//! ```
//! The contexts are nydus' own. What nydus would read wrongly, or would not take, is refused here by
//! [`Unindexed`]; such a layer is converted like any other. Read `tail.rs` for the file the index becomes.

use std::cell::Cell;
use std::collections::HashMap;
use std::io::{self, Read};
use std::path::Path;
use std::rc::Rc;

use nydus_storage::RAFS_MAX_CHUNK_SIZE;
use nydus_storage::meta::{BlobMetaChunkArray, BlobMetaChunkInfo, ZranContextGenerator};
use nydus_utils::compress::zlib_random::ZranReader;
use nydus_utils::digest::RafsDigest;
use serde::Serialize;
use thiserror::Error;

use super::blob::{DIGESTER, digest_from_hex};
use super::chunks::{BlobFile, ChunkRef, ChunkSink, Data, MAX_CHUNKS, Oddity, failed};
use crate::layers::LayerError;
use crate::source::Digest;
use crate::tree::Chunk;

/// The table of chunks has 24 bits for the compressed size of one; some of a deflate block comes on top.
const MAX_COMPRESSED_CHUNK: u64 = 15 << 20;
/// The table of chunks has 40 bits for where one begins.
const MAX_ORIGINAL_BYTES: u64 = 1 << 40;
/// What nydus reads ahead of the position it tells of.
const READ_AHEAD: u64 = 64 << 10;

/// Why a layer can't be kept as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Unindexed {
    /// Only gzip can be begun in the middle.
    #[error("it is not compressed with gzip")]
    NotGzip,
    /// Blobs are named by SHA-256 only, and smaller than 1 TiB.
    #[error("its digest is not SHA-256, or it is too large")]
    Digest,
    /// A file's content isn't in the archive as it is in the file.
    #[error("it has sparse files")]
    Sparse,
    /// No end marker: that it is cut off would not be seen.
    #[error("its archive has no end marker")]
    NoEnd,
    /// What has to be unpacked at once is larger than the 16 MiB that nydus takes.
    #[error("it is compressed in blocks that are too large")]
    Block,
}

/// Why an index wasn't made.
#[derive(Debug)]
pub(crate) enum IndexError {
    Unindexed(Unindexed),
    Layer(LayerError),
}

impl From<LayerError> for IndexError {
    fn from(error: LayerError) -> Self {
        Self::Layer(error)
    }
}

/// The layer that an index is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Original {
    /// Its SHA-256 in hexadecimal.
    pub(crate) id: String,
    /// As it is stored, compressed.
    pub(crate) bytes: u64,
}

impl Original {
    /// One of `digest` and `bytes` of length, unless no blob can be named so.
    pub(crate) fn new(digest: &Digest, bytes: u64) -> Option<Self> {
        let fits = digest_from_hex(digest.digest()).is_some() && bytes < MAX_ORIGINAL_BYTES;
        fits.then(|| Self {
            id: digest.digest().to_owned(),
            bytes,
        })
    }
}

/// What stands in place of the data.
#[derive(Debug)]
pub(crate) struct Index {
    pub(crate) original: Original,
    /// Chunks, then contexts, then the contexts' dictionaries: as nydus maps it into memory.
    pub(crate) table: Vec<u8>,
    pub(crate) contexts_offset: u64,
    pub(crate) contexts: u32,
}

/// Makes the index of a layer while it is unpacked.
pub(crate) struct IndexWriter<R> {
    original: Original,
    generator: ZranContextGenerator<R>,
    file: BlobFile,
    table: BlobMetaChunkArray,
    chunks: Vec<Chunk>,
    /// Bootstraps have no two chunks of the same content: the table keeps a further one, nothing uses it.
    by_id: HashMap<[u8; 32], u32>,
    /// Where each chunk begins in the archive.
    positions: Vec<u64>,
    position: Rc<Cell<u64>>,
    uncompressed_end: u64,
}

/// The uncompressed archive, which an [`IndexWriter`] watches being read.
pub(crate) struct Unpacked<R> {
    inner: ZranReader<R>,
    position: Rc<Cell<u64>>,
}

impl<R: Read> Read for Unpacked<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        // It would take this for damage.
        if buf.is_empty() {
            return Ok(0);
        }
        let got = self.inner.read(buf)?;
        self.position.set(self.position.get() + got as u64);
        Ok(got)
    }
}

impl<R: Read> IndexWriter<R> {
    /// One for `gzip`, which is the content of `original`, and the archive in it. The index goes to `out`.
    pub(crate) fn new(gzip: R, original: Original, out: &Path) -> Result<(Self, Unpacked<R>), LayerError> {
        let generator = ZranContextGenerator::new(gzip).map_err(|source| failed(out, source))?;
        let position = Rc::new(Cell::new(0));
        let unpacked = Unpacked {
            inner: generator.reader(),
            position: Rc::clone(&position),
        };
        let writer = Self {
            original,
            generator,
            file: BlobFile::create(out)?,
            table: BlobMetaChunkArray::new_v2(),
            chunks: Vec::new(),
            by_id: HashMap::new(),
            positions: Vec::new(),
            position,
            uncompressed_end: 0,
        };
        Ok((writer, unpacked))
    }

    /// Compares what each chunk says with its context: nydus counts in 32 bits.
    fn is_sound(&self, contexts: &[u8]) -> bool {
        let BlobMetaChunkArray::V2(infos) = &self.table else {
            return false;
        };
        infos.iter().zip(&self.positions).all(|(info, position)| {
            let place = info.get_zran_index().ok().zip(info.get_zran_offset().ok());
            place.is_some_and(|(index, offset)| {
                Context::at(contexts, index).is_some_and(|context| {
                    context.out_offset + u64::from(offset) == *position
                        && u64::from(offset) + u64::from(info.uncompressed_size())
                            <= u64::from(context.out_bytes)
                        && u64::from(context.out_bytes) <= RAFS_MAX_CHUNK_SIZE
                })
            })
        })
    }
}

impl<R: Read> ChunkSink for IndexWriter<R> {
    type Error = IndexError;

    fn meet(&mut self, oddity: Oddity) -> Result<(), IndexError> {
        Err(IndexError::Unindexed(match oddity {
            Oddity::Sparse => Unindexed::Sparse,
            Oddity::NoEnd => Unindexed::NoEnd,
        }))
    }

    fn take(&mut self, content: &mut dyn Read, size: usize) -> Result<ChunkRef, IndexError> {
        let unreadable = |source| LayerError::Unreadable { source };
        let index = u32::try_from(self.chunks.len()).unwrap_or(MAX_CHUNKS);
        if index >= MAX_CHUNKS {
            return Err(LayerError::TooManyChunks.into());
        }
        let begin = self.position.get();
        let read_before = self.generator.reader().get_data_size();
        self.generator.start_chunk(size as u64).map_err(unreadable)?;
        let mut data = vec![0; size];
        content.read_exact(&mut data).map_err(unreadable)?;
        // Blocks without content can make a chunk as long as anybody likes.
        if self.generator.reader().get_data_size() - read_before + READ_AHEAD > MAX_COMPRESSED_CHUNK {
            return Err(IndexError::Unindexed(Unindexed::Block));
        }
        let info = self.generator.finish_chunk().map_err(unreadable)?;
        if u64::from(info.get_zran_offset().map_err(unreadable)?) > RAFS_MAX_CHUNK_SIZE {
            return Err(IndexError::Unindexed(Unindexed::Block));
        }
        self.uncompressed_end = info.uncompressed_offset() + u64::from(info.uncompressed_size());
        let id = RafsDigest::from_buf(&data, DIGESTER).data;
        self.chunks.push(Chunk {
            blob: 0,
            index,
            id,
            compressed_offset: info.compressed_offset(),
            compressed_size: info.compressed_size(),
            uncompressed_offset: info.uncompressed_offset(),
            uncompressed_size: info.uncompressed_size(),
            is_compressed: true,
            is_batch: false,
        });
        self.positions.push(begin);
        self.table.add_v2_info(info);
        Ok(ChunkRef::Own(*self.by_id.entry(id).or_insert(index)))
    }

    fn finish(self) -> Result<Data, IndexError> {
        let unreadable = |source| LayerError::Unreadable { source };
        let (contexts, count) = self.generator.to_vec().map_err(unreadable)?;
        if !self.is_sound(&contexts) {
            return Err(IndexError::Unindexed(Unindexed::Block));
        }
        // The contexts are what is large; there is a copy of them while they are written out, and none longer.
        drop(self.generator);
        let infos = self.table.as_byte_slice();
        let contexts_offset = infos.len() as u64;
        let mut table = contexts;
        table.splice(0..0, infos.iter().copied());
        Ok(Data {
            file: self.file,
            chunks: self.chunks,
            uncompressed_bytes: self.uncompressed_end.next_multiple_of(super::chunks::BLOCK_BYTES),
            index: Some(Index {
                original: self.original,
                table,
                contexts_offset,
                contexts: count,
            }),
        })
    }
}

/// What is needed to unpack a stretch of a layer, as it is in the table; nydus' `ZranInflateContext`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Context {
    /// Where the stretch is in the layer.
    pub(crate) in_offset: u64,
    pub(crate) in_bytes: u32,
    /// Where it is in the archive.
    pub(crate) out_offset: u64,
    pub(crate) out_bytes: u32,
    pub(crate) dictionary_offset: u64,
    pub(crate) dictionary_bytes: u32,
    pub(crate) byte: u8,
    pub(crate) bits: u8,
}

impl Context {
    /// In the table, in bytes.
    pub(crate) const BYTES: usize = 40;

    /// The context of this number among `contexts`.
    pub(crate) fn at(contexts: &[u8], number: u32) -> Option<Self> {
        let begin = usize::try_from(number).ok()?.checked_mul(Self::BYTES)?;
        let record = contexts.get(begin..begin.checked_add(Self::BYTES)?)?;
        let long = |at: usize| record[at..at + 8].try_into().map(u64::from_le_bytes).ok();
        let short = |at: usize| record[at..at + 4].try_into().map(u32::from_le_bytes).ok();
        Some(Self {
            in_offset: long(0)?,
            out_offset: long(8)?,
            dictionary_offset: long(16)?,
            in_bytes: short(24)?,
            out_bytes: short(28)?,
            dictionary_bytes: short(32)?,
            byte: record[36],
            bits: record[37],
        })
    }
}
