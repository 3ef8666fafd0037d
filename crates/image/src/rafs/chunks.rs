//! The data of a blob: chunks compressed beside each other and written in their order, equal ones once.
//!
//! ```text
//! push: digest, known? -> Compressors -> Done in any order -> file and SHA-256 in order of numbers
//! ```
//! How much is under way is bounded in bytes. What follows the data in the file is in `tail.rs`.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, Sender};

use nydus_utils::compress;
use nydus_utils::digest::RafsDigest;
use sha2::{Digest, Sha256};

use super::blob::{Blob, DIGESTER};
use super::compress::{Compressors, Done, Job};
use super::load::Loaded;
use super::reference::Index;
use crate::layers::LayerError;
use crate::tree::{Action, Chunk, Kind};

/// Chunks under way for one layer, in bytes, but always two of them.
const UNDER_WAY_BYTES: usize = 24 << 20;
/// RAFS v6 numbers chunks with 24 bits.
pub(super) const MAX_CHUNKS: u32 = 0xff_ffff;
/// EROFS addresses data in blocks of this size.
pub(crate) const BLOCK_BYTES: u64 = 4096;

/// A blob's file, its length and its digest.
#[derive(Debug)]
pub(crate) struct BlobFile {
    path: PathBuf,
    file: BufWriter<File>,
    hash: Sha256,
    position: u64,
}

impl BlobFile {
    pub(crate) fn create(path: &Path) -> Result<Self, LayerError> {
        let file = File::create(path).map_err(|source| failed(path, source))?;
        Ok(Self {
            path: path.to_owned(),
            file: BufWriter::with_capacity(1 << 20, file),
            hash: Sha256::new(),
            position: 0,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    pub(crate) fn write(&mut self, data: &[u8]) -> Result<(), LayerError> {
        self.file
            .write_all(data)
            .map_err(|source| failed(&self.path, source))?;
        self.hash.update(data);
        self.position += data.len() as u64;
        Ok(())
    }

    pub(crate) fn digest_so_far(&self) -> [u8; 32] {
        self.hash.clone().finalize().into()
    }

    /// Syncs it to disk; its SHA-256.
    pub(crate) fn finish(mut self) -> Result<[u8; 32], LayerError> {
        let sync = self.file.flush().and_then(|()| self.file.get_ref().sync_all());
        sync.map_err(|source| failed(&self.path, source))?;
        Ok(self.hash.finalize().into())
    }
}

pub(crate) fn failed(path: &Path, source: io::Error) -> LayerError {
    LayerError::Output {
        path: path.to_owned(),
        source,
    }
}

/// Which chunk a piece of a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChunkRef {
    /// Of this blob, by number.
    Own(u32),
    /// Of another image, by number in its dictionary.
    Dictionary(usize),
}

/// What of a layer's archive an index of it can't tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Oddity {
    /// A file with holes.
    Sparse,
    /// The archive ends where its stream does.
    NoEnd,
}

/// Takes the content of a layer's files.
pub(crate) trait ChunkSink {
    type Error: From<LayerError>;

    /// Told of an oddity; an error if nothing can come of the layer here.
    fn meet(&mut self, oddity: Oddity) -> Result<(), Self::Error>;

    /// Takes the next `size` bytes of `content` as a chunk.
    fn take(&mut self, content: &mut dyn Read, size: usize) -> Result<ChunkRef, Self::Error>;

    /// All was taken.
    fn finish(self) -> Result<Data, Self::Error>;
}

/// Chunks of another image that need not be stored again.
#[derive(Debug, Default)]
pub(crate) struct Dictionary {
    blobs: Vec<Blob>,
    chunks: Vec<Chunk>,
    by_id: HashMap<[u8; 32], usize>,
}

impl Dictionary {
    /// The chunks of an image. Those that were compressed together with others, or are in an original layer, are
    /// left out.
    pub(crate) fn of(image: Loaded) -> Self {
        let mut dictionary = Self {
            blobs: image.blobs,
            ..Self::default()
        };
        let inodes = image.entries.iter().filter_map(|entry| match &entry.action {
            Action::Put(inode) => Some(&inode.kind),
            Action::Link(_) | Action::Whiteout | Action::Opaque => None,
        });
        for kind in inodes {
            let Kind::File(content) = kind else { continue };
            for chunk in &content.chunks {
                let next = dictionary.chunks.len();
                let blob = dictionary.blobs.get(chunk.blob as usize);
                let usable = !chunk.is_batch && blob.is_some_and(|blob| !blob.is_original());
                if usable && *dictionary.by_id.entry(chunk.id).or_insert(next) == next {
                    dictionary.chunks.push(chunk.clone());
                }
            }
        }
        dictionary
    }

    pub(crate) fn chunk(&self, number: usize) -> &Chunk {
        &self.chunks[number]
    }

    /// The blob that chunks of this dictionary call `number`.
    pub(crate) fn blob(&self, number: u32) -> &Blob {
        &self.blobs[number as usize]
    }

    fn find(&self, id: [u8; 32], size: usize) -> Option<usize> {
        let number = *self.by_id.get(&id)?;
        (self.chunks[number].uncompressed_size as usize == size).then_some(number)
    }
}

/// Writes a blob's data.
#[derive(Debug)]
pub(crate) struct ChunkWriter<'a> {
    compressors: &'a Compressors,
    dictionary: &'a Dictionary,
    compressor: compress::Algorithm,
    /// Whether uncompressed offsets are multiples of a block.
    aligned: bool,
    file: BlobFile,
    ids: Vec<[u8; 32]>,
    by_id: HashMap<[u8; 32], u32>,
    /// Written ones, in order.
    written: Vec<Chunk>,
    /// Done ones that wait for an earlier.
    early: BTreeMap<u32, Done>,
    under_way_bytes: usize,
    under_way: usize,
    uncompressed_end: u64,
    done: (Sender<Done>, Receiver<Done>),
}

/// A blob whose data is complete.
#[derive(Debug)]
pub(crate) struct Data {
    pub(crate) file: BlobFile,
    pub(crate) chunks: Vec<Chunk>,
    pub(crate) uncompressed_bytes: u64,
    /// Of the layer that has the data, where it isn't in the file.
    pub(crate) index: Option<Index>,
}

impl<'a> ChunkWriter<'a> {
    pub(crate) fn new(
        file: BlobFile,
        compressor: compress::Algorithm,
        aligned: bool,
        compressors: &'a Compressors,
        dictionary: &'a Dictionary,
    ) -> Self {
        Self {
            compressors,
            dictionary,
            compressor,
            aligned,
            file,
            ids: Vec::new(),
            by_id: HashMap::new(),
            written: Vec::new(),
            early: BTreeMap::new(),
            under_way_bytes: 0,
            under_way: 0,
            uncompressed_end: 0,
            done: mpsc::channel(),
        }
    }

    /// Adds a piece of a file, unless the blob or the dictionary has it. Waits while too much is under way.
    fn push(&mut self, data: Vec<u8>) -> Result<ChunkRef, LayerError> {
        let id = RafsDigest::from_buf(&data, DIGESTER).data;
        if let Some(number) = self.dictionary.find(id, data.len()) {
            return Ok(ChunkRef::Dictionary(number));
        }
        if let Some(index) = self.by_id.get(&id) {
            return Ok(ChunkRef::Own(*index));
        }
        let index = u32::try_from(self.ids.len()).unwrap_or(MAX_CHUNKS);
        if index >= MAX_CHUNKS {
            return Err(LayerError::TooManyChunks);
        }
        self.ids.push(id);
        self.by_id.insert(id, index);
        while self.under_way >= 2 && self.under_way_bytes + data.len() > UNDER_WAY_BYTES {
            self.take_one()?;
        }
        self.under_way += 1;
        self.under_way_bytes += data.len();
        let job = Job::new(index, data, self.compressor, self.done.0.clone());
        self.compressors.submit(job);
        while let Ok(done) = self.done.1.try_recv() {
            self.take_done(done)?;
        }
        Ok(ChunkRef::Own(index))
    }

    fn take_one(&mut self) -> Result<(), LayerError> {
        match self.done.1.recv() {
            Ok(done) => self.take_done(done),
            // Not while we hold a sender ourselves.
            Err(error) => Err(failed(self.file.path(), io::Error::other(error))),
        }
    }

    fn take_done(&mut self, done: Done) -> Result<(), LayerError> {
        self.early.insert(done.index, done);
        while let Some(done) = self
            .early
            .remove(&u32::try_from(self.written.len()).unwrap_or(MAX_CHUNKS))
        {
            self.write(done)?;
        }
        Ok(())
    }

    fn write(&mut self, done: Done) -> Result<(), LayerError> {
        self.under_way -= 1;
        self.under_way_bytes -= done.uncompressed_size;
        let data = done.data.map_err(|source| failed(self.file.path(), source))?;
        let size = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
        let chunk = Chunk {
            blob: 0,
            index: done.index,
            id: self.ids[done.index as usize],
            compressed_offset: self.file.position(),
            compressed_size: size(data.len()),
            uncompressed_offset: self.uncompressed_end,
            uncompressed_size: size(done.uncompressed_size),
            is_compressed: done.is_compressed,
            is_batch: false,
        };
        self.file.write(&data)?;
        self.uncompressed_end += done.uncompressed_size as u64;
        if self.aligned {
            self.uncompressed_end = self.uncompressed_end.next_multiple_of(BLOCK_BYTES);
        }
        self.written.push(chunk);
        Ok(())
    }
}

impl ChunkSink for ChunkWriter<'_> {
    type Error = LayerError;

    fn meet(&mut self, _oddity: Oddity) -> Result<(), LayerError> {
        Ok(())
    }

    fn take(&mut self, content: &mut dyn Read, size: usize) -> Result<ChunkRef, LayerError> {
        let mut data = vec![0; size];
        content
            .read_exact(&mut data)
            .map_err(|source| LayerError::Unreadable { source })?;
        self.push(data)
    }

    /// Waits for what is under way.
    fn finish(mut self) -> Result<Data, LayerError> {
        while self.under_way > 0 {
            self.take_one()?;
        }
        Ok(Data {
            file: self.file,
            chunks: self.written,
            uncompressed_bytes: self.uncompressed_end,
            index: None,
        })
    }
}
