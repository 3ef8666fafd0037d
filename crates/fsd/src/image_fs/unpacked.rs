//! Blobs whose chunks cannot be taken out one by one: batches, and gzip with an index.
//!
//! nydus unpacks them into a data file of its own ([`WorkDir`]); from there a chunk's content goes the way of all
//! others, and its space is given back. nydus takes a chunk that it once had for there for ever: one that the cache
//! lost is unpacked by nydus opened anew.

use std::collections::HashSet;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nydus_api::ConfigV2;
use nydus_storage::RAFS_MAX_CHUNK_SIZE;
use nydus_storage::cache::BlobCache;
use nydus_storage::device::BlobInfo;

use super::cache_files::CacheFiles;
use super::chunk::Chunk;
use super::digests::BlobDigests;
use super::error::FetchError;
use super::factory;
use super::origin::{Content, Origin, is_about_content};
use super::storage::agree;
use super::work_dir::WorkDir;

/// nydus' side of a blob.
pub(super) struct Nydus {
    pub(super) cache: Arc<dyn BlobCache>,
    /// What nydus unpacks into.
    files: CacheFiles,
    /// Lasts as long as its files are used.
    _work: Arc<WorkDir>,
}

impl Nydus {
    /// Opens it; `config` is that of the work directory.
    ///
    /// # Errors
    /// What nydus or the file system said.
    pub(super) fn open(
        config: &Arc<ConfigV2>,
        work: &Arc<WorkDir>,
        info: &Arc<BlobInfo>,
    ) -> io::Result<Self> {
        // Before nydus makes them, without space of their own.
        let files = work.admit(info)?;
        Ok(Self {
            cache: factory::open_blob(config, info)?,
            files,
            _work: Arc::clone(work),
        })
    }
}

/// What opens nydus' side of the blob once more.
pub(super) type Renew = Box<dyn Fn() -> io::Result<Nydus> + Send + Sync>;

struct State {
    nydus: Arc<Nydus>,
    /// Chunks that it no longer has although it believes so.
    given: HashSet<u32>,
}

/// A blob that nydus unpacks.
pub(super) struct UnpackedOrigin {
    state: Mutex<State>,
    renew: Renew,
    digests: Option<BlobDigests>,
}

impl UnpackedOrigin {
    pub(super) fn new(nydus: Nydus, renew: Renew, digests: Option<BlobDigests>) -> Self {
        Self {
            state: Mutex::new(State {
                nydus: Arc::new(nydus),
                given: HashSet::new(),
            }),
            renew,
            digests,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn nydus_for(&self, chunks: &[Chunk]) -> io::Result<Arc<Nydus>> {
        let mut state = self.state();
        if chunks.iter().any(|c| state.given.contains(&c.id)) {
            state.nydus = Arc::new((self.renew)()?);
            state.given.clear();
            factory::drop_unused();
        }
        Ok(Arc::clone(&state.nydus))
    }

    /// Takes chunks out of nydus' data file.
    fn take(&self, nydus: &Arc<Nydus>, chunks: &[Chunk]) -> Vec<Content> {
        let contents = chunks.iter().map(|chunk| {
            let blob = nydus.cache.blob_id();
            let damaged = |source| FetchError::Damaged {
                blob: blob.to_owned(),
                chunk: chunk.id,
                source,
            };
            let mut content = vec![0; usize::try_from(chunk.size).unwrap_or_default()];
            let data = nydus.files.data();
            data.read_exact_at(&mut content, chunk.offset).map_err(damaged)?;
            if agree(blob, self.digests.as_ref(), chunk, &content)? {
                Ok(content)
            } else {
                Err(FetchError::Digest {
                    blob: blob.to_owned(),
                    chunk: chunk.id,
                })
            }
        });
        let contents: Vec<Content> = contents.collect();
        if let Some(digests) = &self.digests
            && contents.iter().any(is_about_content)
        {
            digests.suspect(chunks, true);
        }
        // Also what was wrong: the next attempt must not find it again.
        let mut state = self.state();
        if Arc::ptr_eq(&state.nydus, nydus) {
            state.given.extend(chunks.iter().map(|c| c.id));
            for chunk in chunks {
                nydus.files.release(chunk.offset, u64::from(chunk.size));
            }
        }
        contents
    }
}

impl Origin for UnpackedOrigin {
    fn fetch(&self, chunks: &[Chunk]) -> Result<Vec<Content>, FetchError> {
        let (Some(first), Some(last)) = (chunks.first(), chunks.last()) else {
            return Ok(Vec::new());
        };
        let failed = |blob: &str, why: &dyn std::fmt::Display| FetchError::Backend {
            blob: blob.to_owned(),
            offset: first.blob_offset,
            why: why.to_string(),
        };
        let nydus = self
            .nydus_for(chunks)
            .map_err(|e| failed(self.state().nydus.cache.blob_id(), &e))?;
        let blob = nydus.cache.blob_id();
        let object = nydus
            .cache
            .get_blob_object()
            .ok_or_else(|| failed(blob, &"nydus cannot fetch this kind of blob"))?;
        let start = beginning(nydus.cache.as_ref(), first);
        let length = last.end() - start;
        // nydus would say only that it could not write, and would be asked again and again.
        nydus
            .files
            .reserve(start, length)
            .map_err(|source| FetchError::NoRoom {
                blob: blob.to_owned(),
                source,
            })?;
        object.fetch_range_uncompressed(start, length).map_err(|e| {
            // It never asks for its table again: the next attempt has to open it anew.
            if nydus.cache.get_blob_meta_info().is_err() {
                self.state().given.extend(chunks.iter().map(|c| c.id));
            }
            failed(blob, &e)
        })?;
        Ok(self.take(&nydus, chunks))
    }
}

/// Where to ask nydus for content that begins with a chunk. Of a batch, all chunks of which are at its place in the
/// blob, it finds the first one only.
fn beginning(cache: &dyn BlobCache, chunk: &Chunk) -> u64 {
    // Without a table nydus refuses what it is asked for, and says why.
    let Ok(Some(table)) = cache.get_blob_meta_info() else {
        return chunk.offset;
    };
    let earlier = (0..chunk.id).rev().map_while(|id| {
        let info = table.get_chunk_info(usize::try_from(id).ok()?);
        let distance = chunk.offset.checked_sub(info.uncompressed_offset())?;
        let same = info.is_batch() && info.compressed_offset() == chunk.blob_offset;
        // No batch that nydus unpacks is larger.
        (same && distance < RAFS_MAX_CHUNK_SIZE).then(|| info.uncompressed_offset())
    });
    earlier.last().unwrap_or(chunk.offset)
}
