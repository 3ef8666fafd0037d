//! One layer of an OCI image, as its archive, becomes one blob of RAFS.
//!
//! ```text
//! tar | gzip | zstd -> tar_stream -> entry (what it means) -> rafs/chunks (data) -> blob
//!                                           '-> Layer (names, in order) -> its own bootstrap, in the blob too
//! ```
//! The archive is read once and nothing is unpacked. Layers become an image in `convert.rs`; how one is applied
//! over another is in `tree/apply.rs`.
//!
//! An archive that is no layer but a whole root file system is read in the same way, see [`Names`].

mod decompress;
mod entry;
mod error;
mod room;
mod tar_header;
mod tar_pax;
mod tar_sparse;
mod tar_stream;

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub(crate) use decompress::{Compression, decompress, decompressed, sniff};
pub(crate) use entry::{OPAQUE_WHITEOUT, WHITEOUT_PREFIX};
pub use error::{EntryProblem, LayerError, TarProblem};
pub(crate) use room::Room;
pub(crate) use tar_header::BLOCK_BYTES;
pub(crate) use tar_stream::TarStream;

use entry::{Meaning, interpret, is_of_linux};
use room::Share;
use tar_header::Header;

use crate::rafs::blob::Blob;
use crate::rafs::bootstrap::BootstrapPlan;
use crate::rafs::chunks::{BlobFile, ChunkRef, ChunkSink, ChunkWriter, Dictionary, Oddity};
use crate::rafs::compress::Compressors;
use crate::rafs::reference::{IndexError, IndexWriter, Original, Unindexed};
use crate::rafs::tail::{BlobFormat, Tail};
use crate::rafs::{NydusError, with_nydus};
use crate::tree::{Action, ApplyError, Chunk, Content, Entry, Inode, Kind, Layer, Tree};

/// RAFS counts a file's chunks with 32 bits, and nydus takes no larger number.
const MAX_FILE_CHUNKS: u64 = 1 << 24;
/// Of a whole layer, those that are in holes: they take room in memory, and nothing in the archive.
const MAX_HOLE_CHUNKS: u64 = 1 << 20;

/// What names that begin with `.wh.` are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Names {
    /// Whiteouts: the archive is a layer.
    OfLayer,
    /// Names like any other.
    Plain,
}

/// What converting a layer takes besides its archive.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LayerTools<'a> {
    pub(crate) format: BlobFormat,
    pub(crate) compressors: &'a Compressors,
    pub(crate) dictionary: &'a Dictionary,
    pub(crate) names: Names,
    pub(crate) room: &'a Room<'a>,
    /// Set to have it end with [`LayerError::Cancelled`].
    pub(crate) cancelled: &'a AtomicBool,
}

/// A layer that was converted.
#[derive(Debug)]
pub(crate) struct ConvertedLayer {
    pub(crate) layer: Layer,
    /// Its own blob; the chunks say 0 for it. Always there, though only the bootstrap may be in it.
    pub(crate) blob: Blob,
    /// Blobs of the dictionary, which its chunks call 1 and so on.
    pub(crate) dictionary_blobs: Vec<Blob>,
    /// Why it was converted though it was to be kept.
    pub(crate) unindexed: Option<Unindexed>,
    /// What it had and has no more.
    pub(crate) left_out: Option<LeftOut>,
}

/// Extended attributes that no file has on Linux.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LeftOut {
    /// The first, and the file that has it.
    pub(crate) name: OsString,
    pub(crate) file: PathBuf,
    /// How many files have some.
    pub(crate) files: u64,
}

/// Converts the layer that `archive` (uncompressed) holds, into the blob `out`, which is made or overwritten.
pub(crate) fn convert_layer(
    archive: impl Read,
    out: &Path,
    tools: LayerTools<'_>,
) -> Result<ConvertedLayer, LayerError> {
    let writer = ChunkWriter::new(
        BlobFile::create(out)?,
        tools.format.compressor,
        tools.format.fs_version == crate::FsVersion::V6,
        tools.compressors,
        tools.dictionary,
    );
    convert(archive, writer, out, tools)
}

/// Makes the index of the layer `original`, of which `gzip` is the content, in the file `out`, which is made or
/// overwritten. Chunks of a dictionary aren't looked for: the layer has them anyway.
pub(crate) fn index_layer(
    gzip: impl Read,
    original: Original,
    out: &Path,
    tools: LayerTools<'_>,
) -> Result<ConvertedLayer, IndexError> {
    let (writer, archive) = IndexWriter::new(gzip, original, out)?;
    convert(archive, writer, out, tools)
}

fn convert<S: ChunkSink>(
    archive: impl Read,
    writer: S,
    out: &Path,
    tools: LayerTools<'_>,
) -> Result<ConvertedLayer, S::Error> {
    let mut drafts = Drafts::new(out, tools, writer);
    let mut stream = TarStream::new(archive);
    while let Some(found) = stream.next_entry().map_err(LayerError::from)? {
        if tools.cancelled.load(Ordering::Relaxed) {
            return Err(LayerError::Cancelled.into());
        }
        let foreign = found.xattrs.iter().find(|(name, _)| !is_of_linux(name));
        let foreign = foreign.map(|(name, _)| lossless(name).to_owned());
        let (name, size, is_sparse) = (PathBuf::from(lossless(&found.path)), found.size, found.is_sparse);
        let refused = |problem| LayerError::Entry {
            entry: name.clone(),
            problem,
        };
        let (path, meaning) = interpret(found, tools.names).map_err(refused)?;
        if let (Some(attribute), Meaning::File(_)) = (foreign, &meaning) {
            drafts.leave_out(attribute, &path);
        }
        match meaning {
            Meaning::Ignored => {}
            Meaning::Whiteout => drafts.push(path, Action::Whiteout)?,
            Meaning::Opaque => drafts.push(path, Action::Opaque)?,
            Meaning::Link(target) => drafts.push(path, Action::Link(target))?,
            Meaning::File(inode) if matches!(inode.kind, Kind::File(_)) => {
                if size.div_ceil(u64::from(tools.format.chunk_size.bytes())) > MAX_FILE_CHUNKS {
                    return Err(refused(EntryProblem::TooLarge).into());
                }
                if is_sparse {
                    drafts.writer.meet(Oddity::Sparse)?;
                }
                drafts.push_file(path, inode, size, &mut stream)?;
            }
            Meaning::File(inode) => drafts.push(path, Action::Put(Arc::new(inode)))?,
        }
    }
    if !stream.has_end_marker() {
        drafts.writer.meet(Oddity::NoEnd)?;
    }
    stream
        .finish()
        .map_err(|source| LayerError::Unreadable { source })?;
    drafts.finish()
}

/// Whether an archive can begin with this block: with an entry, or with its end.
pub(crate) fn is_first_block(block: &[u8; BLOCK_BYTES]) -> bool {
    block == &[0; BLOCK_BYTES] || Header::new(block).is_ok()
}

fn lossless(bytes: &[u8]) -> &std::ffi::OsStr {
    std::os::unix::ffi::OsStrExt::from_bytes(bytes)
}

/// A layer whose chunks aren't all in their places yet.
struct Drafts<'a, S> {
    tools: LayerTools<'a>,
    out: &'a Path,
    writer: S,
    share: Share<'a>,
    entries: Vec<Entry>,
    /// Of the entries that are files with content.
    contents: Vec<Draft>,
    /// Chunks of nothing but zeros, by their size: holes may be larger than anything that is read.
    zeros: HashMap<u64, ChunkRef>,
    hole_chunks: u64,
    left_out: Option<LeftOut>,
}

struct Draft {
    entry: usize,
    size: u64,
    chunks: Vec<ChunkRef>,
}

impl<'a, S: ChunkSink> Drafts<'a, S> {
    fn new(out: &'a Path, tools: LayerTools<'a>, writer: S) -> Self {
        Self {
            tools,
            out,
            writer,
            share: tools.room.share(),
            entries: Vec::new(),
            contents: Vec::new(),
            zeros: HashMap::new(),
            hole_chunks: 0,
            left_out: None,
        }
    }

    fn leave_out(&mut self, name: OsString, file: &Path) {
        match &mut self.left_out {
            Some(left_out) => left_out.files += 1,
            None => {
                self.left_out = Some(LeftOut {
                    name,
                    file: file.to_owned(),
                    files: 1,
                });
            }
        }
    }

    fn push(&mut self, path: PathBuf, action: Action) -> Result<(), LayerError> {
        let entry = Entry { path, action };
        self.share.take_entry(&entry)?;
        self.entries.push(entry);
        Ok(())
    }

    fn push_file(
        &mut self,
        path: PathBuf,
        inode: Inode,
        size: u64,
        content: &mut TarStream<impl Read>,
    ) -> Result<(), S::Error> {
        let mut chunks = Vec::new();
        let mut left = size;
        while left > 0 {
            if self.tools.cancelled.load(Ordering::Relaxed) {
                return Err(LayerError::Cancelled.into());
            }
            let most = u64::from(self.tools.format.chunk_size.bytes());
            let next = left.min(most);
            left -= next;
            let size = usize::try_from(next).unwrap_or_default();
            self.share.take_chunk()?;
            chunks.push(if content.pass_hole(next) {
                self.hole_chunks += 1;
                if self.hole_chunks > MAX_HOLE_CHUNKS {
                    let problem = EntryProblem::TooLarge;
                    return Err(LayerError::Entry { entry: path, problem }.into());
                }
                match self.zeros.get(&next) {
                    Some(chunk) => *chunk,
                    None => {
                        let chunk = self.writer.take(&mut io::repeat(0), size)?;
                        self.zeros.insert(next, chunk);
                        chunk
                    }
                }
            } else {
                self.writer.take(content, size)?
            });
        }
        let entry = self.entries.len();
        self.push(path, Action::Put(Arc::new(inode)))?;
        if size > 0 {
            self.contents.push(Draft { entry, size, chunks });
        }
        Ok(())
    }

    fn finish(self) -> Result<ConvertedLayer, S::Error> {
        let tail = Tail::after(self.writer.finish()?, self.tools.format)?;
        let mut entries = self.entries;
        let mut places = Places {
            own: tail.chunks(),
            dictionary: self.tools.dictionary,
            blobs: BTreeMap::new(),
        };
        for draft in self.contents {
            let chunks = draft.chunks.iter().map(|chunk| places.of(*chunk)).collect();
            let content = Content {
                size: draft.size,
                chunks,
            };
            if let Action::Put(inode) = &mut entries[draft.entry].action {
                Arc::make_mut(inode).kind = Kind::File(content);
            }
        }
        let mut used: Vec<_> = places.blobs.into_iter().collect();
        used.sort_by_key(|(_, number)| *number);
        let dictionary = self.tools.dictionary;
        let dictionary_blobs: Vec<_> = used
            .iter()
            .map(|(blob, _)| dictionary.blob(*blob).clone())
            .collect();
        let layer = Layer { entries };
        let mut share = self.share;
        let tree =
            Tree::of_one(&layer, |bytes| share.take_directories(bytes).is_ok()).map_err(LayerError::from)?;
        // Nothing of what follows can be stopped, and all of it takes its time where there are many files.
        if self.tools.cancelled.load(Ordering::Relaxed) {
            return Err(LayerError::Cancelled.into());
        }
        let bootstrap = own_bootstrap(&tree, &tail, self.tools, &dictionary_blobs, self.out)?;
        drop(tree);
        let blob = tail.finish(&bootstrap)?;
        share.keep();
        Ok(ConvertedLayer {
            layer,
            blob,
            dictionary_blobs,
            unindexed: None,
            left_out: self.left_out,
        })
    }
}

/// Where chunks ended up.
struct Places<'a> {
    own: &'a [Chunk],
    dictionary: &'a Dictionary,
    /// The dictionary's blobs that are used, and the numbers the layer has for them.
    blobs: BTreeMap<u32, u32>,
}

impl Places<'_> {
    fn of(&mut self, chunk: ChunkRef) -> Chunk {
        match chunk {
            ChunkRef::Own(index) => self.own[index as usize].clone(),
            ChunkRef::Dictionary(number) => {
                let mut chunk = self.dictionary.chunk(number).clone();
                let next = u32::try_from(self.blobs.len()).unwrap_or(u32::MAX) + 1;
                chunk.blob = *self.blobs.entry(chunk.blob).or_insert(next);
                chunk
            }
        }
    }
}

/// The bootstrap of the layer alone, made in a file beside `out` that is gone again.
fn own_bootstrap(
    tree: &Tree,
    tail: &Tail,
    tools: LayerTools<'_>,
    dictionary_blobs: &[Blob],
    out: &Path,
) -> Result<Vec<u8>, LayerError> {
    // Without data of its own the layer has no blob, as far as its bootstrap is concerned.
    let mut blobs: Vec<_> = (!tail.chunks().is_empty())
        .then(|| tail.blob_so_far())
        .into_iter()
        .collect();
    let own = u32::try_from(blobs.len()).unwrap_or_default();
    let mut indexes = vec![0];
    indexes.extend((own..).take(dictionary_blobs.len()));
    blobs.extend_from_slice(dictionary_blobs);
    let path = out.with_extension("boot");
    let plan = BootstrapPlan {
        tree,
        fs_version: tools.format.fs_version,
        compressor: tools.format.compressor,
        chunk_size: tools.format.chunk_size,
        blobs: &blobs,
        blob_indexes: &[indexes],
        is_of_layer: true,
    };
    let made = with_nydus(|| plan.write(&path)).map_err(bootstrap_error);
    let read = made.and_then(|()| {
        std::fs::read(&path).map_err(|source| LayerError::Output {
            path: path.clone(),
            source,
        })
    });
    let _ = std::fs::remove_file(&path);
    read
}

pub(crate) fn bootstrap_error(source: NydusError) -> LayerError {
    LayerError::Bootstrap { source }
}

impl From<ApplyError> for LayerError {
    fn from(error: ApplyError) -> Self {
        match error {
            ApplyError::Entry { path, problem } => Self::Entry { entry: path, problem },
            ApplyError::TooMuch => Self::TooMuch,
        }
    }
}
