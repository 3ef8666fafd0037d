//! An index of a gzipped layer that stays as it is: where its files' chunks are in it, and what is needed to begin
//! unpacking in the middle (zlib's `zran`, nydus' OCI-ref).
//!
//! ```text
//! layer -> ZranReader -> tar -> chunks, each with its place in a context; contexts -> Index
//! ```
//! The contexts are nydus' own, see `contexts.rs`. What nydus would read wrongly, or would not take, is refused here by
//! [`Unindexed`]; such a layer is converted like any other. Read `tail.rs` for the file the index becomes.

use std::cell::Cell;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::rc::Rc;

use nydus_storage::RAFS_MAX_CHUNK_SIZE;
use nydus_utils::compress::zlib_random::ZranReader;
use nydus_utils::digest::RafsDigest;
use serde::Serialize;
use thiserror::Error;

use super::blob::{DIGESTER, digest_from_hex};
use super::chunks::{BLOCK_BYTES, BlobFile, ChunkRef, ChunkSink, Data, MAX_CHUNKS, Oddity, failed};
use super::contexts::{Context, ContextWriter, Contexts};
use crate::layers::LayerError;
use crate::source::Digest;
use crate::tree::Chunk;

/// The table of chunks has 24 bits for the compressed size of one; some of a deflate block comes on top.
const MAX_COMPRESSED_CHUNK: u64 = 15 << 20;
/// The table of chunks has 40 bits for where one begins in the layer, and 44 for where in the cache.
const MAX_ORIGINAL_BYTES: u64 = 1 << 40;
const MAX_UNCOMPRESSED_BYTES: u64 = 1 << 44;
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
    /// Chunks, then contexts, as they are in the table.
    records: Vec<u8>,
    pub(crate) contexts_offset: u64,
    pub(crate) contexts: u32,
    /// What else is in the table.
    dictionaries: File,
    dictionary_bytes: u64,
}

impl Index {
    /// The table's length, uncompressed.
    pub(crate) fn table_bytes(&self) -> u64 {
        self.records.len() as u64 + self.dictionary_bytes
    }

    /// Chunks, then contexts, then the contexts' dictionaries: as nydus maps it into memory.
    pub(crate) fn table(&self) -> io::Result<impl Read> {
        (&self.dictionaries).seek(SeekFrom::Start(0))?;
        Ok(self.records.chain(&self.dictionaries))
    }
}

/// Makes the index of a layer while it is unpacked.
pub(crate) struct IndexWriter<R> {
    original: Original,
    reader: ZranReader<R>,
    contexts: ContextWriter<R>,
    file: BlobFile,
    chunks: Vec<Chunk>,
    /// The number of each chunk's context, and where in that it is.
    places: Vec<(u32, u32)>,
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
        let failed = |source| failed(out, source);
        let reader = ZranReader::new(gzip).map_err(failed)?;
        let dir = out.parent().unwrap_or(Path::new("."));
        let position = Rc::new(Cell::new(0));
        let unpacked = Unpacked {
            inner: reader.clone(),
            position: Rc::clone(&position),
        };
        let writer = Self {
            original,
            contexts: ContextWriter::new(&reader, dir).map_err(failed)?,
            reader,
            file: BlobFile::create(out)?,
            chunks: Vec::new(),
            places: Vec::new(),
            by_id: HashMap::new(),
            positions: Vec::new(),
            position,
            uncompressed_end: 0,
        };
        Ok((writer, unpacked))
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
        let read_before = self.reader.get_data_size();
        self.contexts.begin(size as u64).map_err(unreadable)?;
        let mut data = vec![0; size];
        content.read_exact(&mut data).map_err(unreadable)?;
        // Blocks without content can make a chunk as long as anybody likes.
        if self.reader.get_data_size() - read_before + READ_AHEAD > MAX_COMPRESSED_CHUNK {
            return Err(IndexError::Unindexed(Unindexed::Block));
        }
        let place = self.contexts.end().map_err(unreadable)?;
        if u64::from(place.offset) > RAFS_MAX_CHUNK_SIZE {
            return Err(IndexError::Unindexed(Unindexed::Block));
        }
        let uncompressed_offset = self.uncompressed_end.next_multiple_of(BLOCK_BYTES);
        self.uncompressed_end = uncompressed_offset + u64::from(place.bytes);
        if place.in_offset >= MAX_ORIGINAL_BYTES || self.uncompressed_end > MAX_UNCOMPRESSED_BYTES {
            return Err(IndexError::Unindexed(Unindexed::Digest));
        }
        let id = RafsDigest::from_buf(&data, DIGESTER).data;
        self.chunks.push(Chunk {
            blob: 0,
            index,
            id,
            compressed_offset: place.in_offset,
            compressed_size: place.in_bytes,
            uncompressed_offset,
            uncompressed_size: place.bytes,
            is_compressed: true,
            is_batch: false,
        });
        self.positions.push(begin);
        self.places.push((place.context, place.offset));
        Ok(ChunkRef::Own(*self.by_id.entry(id).or_insert(index)))
    }

    fn finish(self) -> Result<Data, IndexError> {
        let contexts = self
            .contexts
            .finish()
            .map_err(|source| failed(self.file.path(), source))?;
        let mut placed = self.chunks.iter().zip(&self.places).zip(&self.positions);
        if !placed.all(|((chunk, place), position)| is_sound(chunk, *place, *position, &contexts)) {
            return Err(IndexError::Unindexed(Unindexed::Block));
        }
        let mut records: Vec<u8> = Vec::new();
        for (chunk, place) in self.chunks.iter().zip(&self.places) {
            records.extend(chunk_record(chunk, *place));
        }
        let contexts_offset = records.len() as u64;
        records.extend(contexts.records);
        Ok(Data {
            file: self.file,
            chunks: self.chunks,
            uncompressed_bytes: self.uncompressed_end.next_multiple_of(BLOCK_BYTES),
            index: Some(Index {
                original: self.original,
                records,
                contexts_offset,
                contexts: contexts.count,
                dictionaries: contexts.dictionaries,
                dictionary_bytes: contexts.dictionary_bytes,
            }),
        })
    }
}

/// Compares what is said of a chunk with its context: nydus counts in 32 bits.
fn is_sound(chunk: &Chunk, (context, offset): (u32, u32), position: u64, contexts: &Contexts) -> bool {
    let (offset, size) = (u64::from(offset), u64::from(chunk.uncompressed_size));
    Context::at(&contexts.records, context).is_some_and(|context| {
        context.out_offset + offset == position
            && offset + size <= u64::from(context.out_bytes)
            && u64::from(context.out_bytes) <= RAFS_MAX_CHUNK_SIZE
    })
}

/// A chunk as it is in the table; nydus' `BlobChunkInfoV2Ondisk`, which nobody else can make.
fn chunk_record(chunk: &Chunk, (context, offset): (u32, u32)) -> impl Iterator<Item = u8> {
    const COMPRESSED: u64 = 1 << 56;
    const ZRAN: u64 = 2 << 56;
    let size = u64::from(chunk.uncompressed_size) - 1;
    let uncompressed = (chunk.uncompressed_offset / BLOCK_BYTES) | (size << 32) | COMPRESSED | ZRAN;
    let compressed = chunk.compressed_offset | (u64::from(chunk.compressed_size) << 40);
    let place = (u64::from(context) << 32) | u64::from(offset);
    [uncompressed, compressed, place]
        .into_iter()
        .flat_map(u64::to_le_bytes)
}
