//! The blob that has what a start-up reads, in its order: chunks are copied as they are stored, and only those whose
//! blob is compressed in another way are compressed again.
//!
//! Each source is read once, from its beginning, whatever the order is: what is wanted of it waits in a file.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use nydus_utils::compress;

use super::OptimizeError;
use super::plan::{ChunkKey, Plan, key};
use crate::chunk_reader::{Found, Wanted};
use crate::config::FsVersion;
use crate::layers::{LayerError, bootstrap_error};
use crate::nydus_image::NydusImage;
use crate::progress::{Phase, Progress};
use crate::rafs::blob::Blob;
use crate::rafs::bootstrap::BootstrapPlan;
use crate::rafs::chunks::{BLOCK_BYTES, BlobFile, Data};
use crate::rafs::tail::{BlobFormat, Tail};
use crate::rafs::with_nydus;
use crate::tree::{Action, Chunk, Kind, Tree};

/// A blob, and what chunks have become in it.
pub(super) struct Front {
    pub(super) blob: Blob,
    pub(super) chunks: HashMap<ChunkKey, Chunk>,
    /// Its data, in bytes.
    pub(super) data_bytes: u64,
}

impl Front {
    /// Makes the blob at `path`. In chunks, it calls itself number `number`.
    pub(super) fn write(
        image: &NydusImage,
        plan: &Plan,
        format: BlobFormat,
        number: u32,
        path: &Path,
        progress: &dyn Progress,
    ) -> Result<Self, OptimizeError> {
        let spool = Spool::fill(image, plan, format, path, progress)?;
        let failed = |error| OptimizeError::layer(path, error);
        let mut file = BlobFile::create(path).map_err(failed)?;
        let mut end = 0;
        let mut written = Vec::with_capacity(plan.chunks.len());
        let mut chunks = HashMap::new();
        for (index, old) in (0..).zip(&plan.chunks) {
            let Some((source, place)) = spool.chunks.get(old) else {
                continue;
            };
            let mut data = vec![0; place.bytes];
            spool
                .file
                .read_exact_at(&mut data, place.offset)
                .map_err(|e| OptimizeError::work(path, e))?;
            let chunk = Chunk {
                blob: number,
                index,
                compressed_offset: file.position(),
                compressed_size: u32::try_from(place.bytes).unwrap_or(u32::MAX),
                uncompressed_offset: end,
                is_compressed: place.is_compressed,
                is_batch: false,
                ..source.clone()
            };
            file.write(&data).map_err(failed)?;
            end += u64::from(chunk.uncompressed_size);
            if format.fs_version == FsVersion::V6 {
                end = end.next_multiple_of(BLOCK_BYTES);
            }
            written.push(chunk.clone());
            chunks.insert(*old, chunk);
        }
        let data_bytes = file.position();
        let data = Data {
            file,
            chunks: written,
            uncompressed_bytes: end,
            index: None,
        };
        let tail = Tail::after(data, format).map_err(failed)?;
        let bootstrap = own_bootstrap(&tail.blob_so_far(), format, path).map_err(failed)?;
        let mut blob = tail.finish(&bootstrap).map_err(failed)?;
        // Beyond 4 GiB a start-up is none.
        blob.prefetch_bytes = u32::try_from(data_bytes).unwrap_or(u32::MAX);
        Ok(Self {
            blob,
            chunks,
            data_bytes,
        })
    }
}

/// The bootstrap that every blob carries along: of a layer without files.
fn own_bootstrap(blob: &Blob, format: BlobFormat, path: &Path) -> Result<Vec<u8>, LayerError> {
    let path = path.with_extension("boot");
    let tree = Tree::new();
    let plan = BootstrapPlan {
        tree: &tree,
        fs_version: format.fs_version,
        compressor: format.compressor,
        chunk_size: format.chunk_size,
        blobs: std::slice::from_ref(blob),
        blob_indexes: &[],
        is_of_layer: true,
    };
    with_nydus(|| plan.write(&path)).map_err(bootstrap_error)?;
    let read = std::fs::read(&path).map_err(|source| LayerError::Output {
        path: path.clone(),
        source,
    });
    let _ = std::fs::remove_file(&path);
    read
}

/// Where in the spool a chunk is.
#[derive(Debug, Clone, Copy)]
struct Place {
    offset: u64,
    bytes: usize,
    is_compressed: bool,
}

/// Chunks in the order of their sources.
struct Spool {
    file: File,
    chunks: HashMap<ChunkKey, (Chunk, Place)>,
}

impl Spool {
    fn fill(
        image: &NydusImage,
        plan: &Plan,
        format: BlobFormat,
        path: &Path,
        progress: &dyn Progress,
    ) -> Result<Self, OptimizeError> {
        let failed = |source| OptimizeError::work(path, source);
        let dir = path.parent().unwrap_or(Path::new("."));
        let mut spool = Self {
            file: tempfile::tempfile_in(dir).map_err(failed)?,
            chunks: HashMap::new(),
        };
        let wanted = wanted(image, plan);
        let blobs = || {
            image
                .loaded
                .blobs
                .iter()
                .zip(&wanted)
                .filter(|(_, wanted)| !wanted.is_empty())
        };
        progress.begin(
            Phase::Data,
            Some(blobs().map(|(blob, _)| blob.compressed_bytes).sum()),
        );
        let (mut before, mut at) = (0, 0);
        for (blob, wanted) in blobs() {
            let mut damaged = None;
            let mut unwritten = None;
            let mut keep = |chunk: &Chunk, file: &Path, found: Option<Found<'_>>| {
                let Some(found) = found else {
                    damaged = Some(OptimizeError::Chunk {
                        blob: blob.id.clone(),
                        chunk: chunk.index,
                        file: Path::new("/").join(file),
                    });
                    return Err(io::ErrorKind::InvalidData.into());
                };
                match spool.keep(blob, chunk, &found, format, at) {
                    Ok(bytes) => at += bytes,
                    Err(error) => {
                        unwritten = Some(error);
                        return Err(io::ErrorKind::Other.into());
                    }
                }
                Ok(())
            };
            let read = image.read_chunks(blob, wanted, before, progress, &mut keep);
            if let Some(error) = damaged {
                return Err(error);
            }
            if let Some(error) = unwritten {
                return Err(failed(error));
            }
            read.map_err(|source| OptimizeError::Blob {
                blob: blob.id.clone(),
                source,
            })?;
            if progress.is_cancelled() {
                return Err(OptimizeError::Cancelled);
            }
            before += blob.compressed_bytes;
        }
        Ok(spool)
    }

    fn keep(
        &mut self,
        blob: &Blob,
        chunk: &Chunk,
        found: &Found<'_>,
        format: BlobFormat,
        offset: u64,
    ) -> io::Result<u64> {
        let fits = !chunk.is_compressed || blob.compressor == format.compressor;
        let (stored, is_compressed) = match found.stored {
            Some(stored) if fits => (stored.into(), chunk.is_compressed),
            _ => compress::compress(found.content, format.compressor)?,
        };
        self.file.write_all(&stored)?;
        let place = Place {
            offset,
            bytes: stored.len(),
            is_compressed,
        };
        self.chunks.insert(key(chunk), (chunk.clone(), place));
        Ok(stored.len() as u64)
    }
}

/// What is wanted of each blob.
fn wanted<'i>(image: &'i NydusImage, plan: &Plan) -> Vec<Wanted<'i>> {
    let mut wanted: Vec<Wanted<'_>> = image.loaded.blobs.iter().map(|_| BTreeMap::new()).collect();
    let planned: std::collections::HashSet<&ChunkKey> = plan.chunks.iter().collect();
    for entry in &image.loaded.entries {
        let Action::Put(inode) = &entry.action else {
            continue;
        };
        let Kind::File(content) = &inode.kind else {
            continue;
        };
        for chunk in content
            .chunks
            .iter()
            .filter(|chunk| planned.contains(&key(chunk)))
        {
            if let Some(of_blob) = wanted.get_mut(chunk.blob as usize) {
                of_blob.insert((chunk.compressed_offset, chunk.index), (chunk, &entry.path));
            }
        }
    }
    wanted
}
