//! The blobs of an image: which of them are fetched by `blob.rs`, and which are left to nydus.
//!
//! Left to nydus are kinds of caches that have no readable file of plain chunks with a shared map (none at all,
//! compressed, encrypted, or of images so old that their chunks have no numbers). An image is served one way or the
//! other as a whole.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError, Weak};

use nydus_api::ConfigV2;
use nydus_storage::cache::BlobCache;
use nydus_storage::device::{BlobChunkInfo, BlobDevice, BlobFeatures, BlobInfo};
use nydus_utils::digest::Algorithm;
use nydus_utils::metrics::BlobcacheMetrics;

use super::blob::{Blob, BlobParts, FetchPolicy};
use super::chunk::Chunk;
use super::closing::{self, Patience};
use super::digests::{BlobDigests, Digests};
use super::error::FetchError;
use super::factory;
use super::gate::Gate;
use super::layout_note::LayoutNote;
use super::origin::{NydusOrigin, Origin};
use super::unpacked::{Nydus, UnpackedOrigin};
use super::work_dir::WorkDir;
use crate::metrics::FetchCounters;

/// All blobs of an image, open.
pub(super) struct Storage {
    /// What it was opened with.
    pub(super) config: Arc<ConfigV2>,
    /// nydus' side: it has the backends and, for RAFS v6, the tables of chunks.
    pub(super) device: BlobDevice,
    /// In the order of the image's table; empty if the image is left to nydus.
    pub(super) blobs: Vec<ImageBlob>,
    /// What the bootstrap lists; `None` where it lists nothing, and where nydus sees to it.
    pub(super) digests: Option<Arc<Digests>>,
    /// The tables of chunks were fetched anew, because one in the cache was another image's.
    pub(super) has_own_tables: bool,
}

/// A blob with what nydus knows of it.
pub(super) struct ImageBlob {
    pub(super) blob: Blob,
    cache: Arc<dyn BlobCache>,
    /// Whether what is cached is compared whenever it is read, and not only the first time.
    pub(super) compares_cached: bool,
    digests: Option<BlobDigests>,
    /// How the digests are made that chunks are described with; none where they have none.
    digester: Option<Algorithm>,
    table: OnceLock<Box<[Chunk]>>,
    /// Whether nydus fetches one.
    has_table: bool,
    /// Where nydus keeps the table.
    work: Arc<WorkDir>,
    /// The image's.
    patience: Arc<Patience>,
}

impl Storage {
    /// Opens the caches and backends of all blobs.
    ///
    /// # Errors
    /// What nydus or the file system said.
    pub(super) fn open(
        config: &Arc<ConfigV2>,
        infos: &[Arc<BlobInfo>],
        digests: Option<Arc<Digests>>,
        gate: &Arc<Gate>,
        fetches: &Arc<FetchCounters>,
    ) -> io::Result<Self> {
        Self::open_in(config, infos, digests, gate, fetches, WorkDir::shared)
    }

    /// The same with nothing of nydus' that another mount has, or this one had before.
    ///
    /// # Errors
    /// What nydus or the file system said.
    pub(super) fn open_apart(
        config: &Arc<ConfigV2>,
        infos: &[Arc<BlobInfo>],
        digests: Option<Arc<Digests>>,
        gate: &Arc<Gate>,
        fetches: &Arc<FetchCounters>,
    ) -> io::Result<Self> {
        Self::open_in(config, infos, digests, gate, fetches, WorkDir::small)
    }

    fn open_in(
        config: &Arc<ConfigV2>,
        infos: &[Arc<BlobInfo>],
        digests: Option<Arc<Digests>>,
        gate: &Arc<Gate>,
        fetches: &Arc<FetchCounters>,
        work_dir: fn(&Path) -> io::Result<Arc<WorkDir>>,
    ) -> io::Result<Self> {
        let Some(dir) = plain_cache(config, infos)? else {
            return Ok(Self {
                config: Arc::clone(config),
                device: factory::open_device(config, infos)?,
                blobs: Vec::new(),
                digests: None,
                has_own_tables: false,
            });
        };
        // What nydus unpacks is given back in a way that two mounts must not share.
        let work = if infos.iter().any(|info| is_unpacked(info)) {
            WorkDir::roomy(&dir)?
        } else {
            work_dir(&dir)?
        };
        // With the bootstrap's digests nydus need not fetch those that are in the blobs.
        let private = work.configure(config, digests.is_none());
        let mut parts = Vec::with_capacity(infos.len());
        for info in infos {
            parts.push(Nydus::open(&private, &work, info)?);
        }
        let device = factory::open_device(&private, infos)?;
        let counters = counters(&config.id, &dir);
        let validates = config.is_chunk_validation_enabled();
        let patience = Arc::default();
        let blobs = infos.iter().zip(parts).enumerate().map(|(at, (info, nydus))| {
            let id = info.blob_id();
            if let Ok(mut files) = counters.underlying_files.lock() {
                files.insert(format!("{id}.blob.data"));
            }
            let cache = Arc::clone(&nydus.cache);
            let algorithm = cache.blob_digester();
            // Those of blobs that are elsewhere as what they were before need not be of their content.
            let is_of_content = !info.has_feature(BlobFeatures::EXTERNAL);
            let listed = digests.as_ref().filter(|_| is_of_content);
            let digests = listed.map(|digests| digests.of_blob(at, algorithm));
            // RAFS v5 has a chunk's digest where a file has the chunk.
            let described = !info.meta_ci_is_valid() || cache.need_validation();
            let blob = Blob::open(BlobParts {
                id,
                dir: dir.clone(),
                size: info.uncompressed_size(),
                chunks: info.chunk_count(),
                layout: (!info.meta_ci_is_valid()).then_some(LayoutNote::V5),
                origin: origin(nydus, &private, &dir, info, digests.clone()),
                compares: described || digests.is_some(),
                policy: FetchPolicy::default(),
                counters: Arc::clone(&counters),
                gate: Arc::clone(gate),
                fetches: Arc::clone(fetches),
            })?;
            Ok(ImageBlob {
                blob,
                compares_cached: validates,
                digester: (described && is_of_content).then_some(algorithm),
                digests,
                cache,
                table: OnceLock::new(),
                has_table: info.meta_ci_is_valid(),
                work: Arc::clone(&work),
                patience: Arc::clone(&patience),
            })
        });
        let blobs = blobs.collect::<io::Result<_>>()?;
        Ok(Self {
            config: Arc::clone(config),
            device,
            blobs,
            digests,
            has_own_tables: false,
        })
    }

    /// Whether it takes other tables of chunks than it has; waits while nydus has not given up getting one.
    pub(super) fn needs_tables(&self) -> bool {
        self.is_misled() || self.blobs.iter().any(ImageBlob::lacks_table)
    }

    /// Whether a table is another image's, and has not been fetched anew for that.
    pub(super) fn is_misled(&self) -> bool {
        !self.has_own_tables && self.blobs.iter().any(ImageBlob::is_misled)
    }

    /// Whether everything is in the cache.
    pub(super) fn is_complete(&self) -> bool {
        self.blobs.iter().all(|b| b.blob.generation().has_all())
    }
}

impl ImageBlob {
    /// The blob's own table of chunks, which RAFS v6 has; in order of their numbers. Waits for nydus to have it.
    pub(super) fn table(&self) -> Option<&[Chunk]> {
        if let Some(table) = self.table.get() {
            return Some(table);
        }
        let meta = self.cache.get_blob_meta_info().ok().flatten()?;
        if let Err(error) = self.work.share_tables(self.cache.blob_id()) {
            tracing::debug!(%error, "the table of chunks is not shared");
        }
        let infos = 0..usize::try_from(self.blob.chunks()).ok()?;
        let infos = infos.map(|at| meta.get_chunk_info(at));
        let place =
            |info: Arc<dyn BlobChunkInfo>| (info.id(), info.uncompressed_offset(), info.uncompressed_size());
        self.blob.lay_out(|| LayoutNote::of(infos.clone().map(place)));
        let chunks = infos.map(|info| {
            let mut chunk = self.copy(info.as_ref())?;
            chunk.is_listed = match &self.digests {
                Some(digests) => digests.lists(chunk.id).ok()?,
                None => true,
            };
            Some(chunk)
        });
        let table: Box<[Chunk]> = chunks.collect::<Option<_>>()?;
        Some(self.table.get_or_init(|| table))
    }

    /// A chunk as `info` describes it; `None` if there can be none like that in this blob.
    pub(super) fn copy(&self, info: &dyn BlobChunkInfo) -> Option<Chunk> {
        let chunk = Chunk::copy(info, self.digester).filter(|chunk| self.is_inside(chunk));
        if chunk.is_none()
            && let Some(digests) = &self.digests
        {
            digests.distrust();
        }
        chunk
    }

    /// Whether `content` is that of a chunk, as far as the image says.
    ///
    /// # Errors
    /// [`FetchError::Unknown`].
    pub(super) fn agree(&self, chunk: &Chunk, content: &[u8]) -> Result<bool, FetchError> {
        agree(self.cache.blob_id(), self.digests.as_ref(), chunk, content)
    }

    /// Whether nydus has given up getting the blob's table; waits while it has not.
    pub(super) fn lacks_table(&self) -> bool {
        self.table.get().is_none() && self.cache.get_blob_meta_info().is_err()
    }

    /// Whether its table is another image's.
    pub(super) fn is_misled(&self) -> bool {
        self.digests.as_ref().is_some_and(BlobDigests::are_misled)
    }

    /// Takes its table out of the cache.
    ///
    /// # Errors
    /// What the file system said.
    pub(super) fn unshare_table(&self) -> io::Result<()> {
        self.work.unshare_table(self.cache.blob_id())
    }

    /// Asks the backend for a byte of the blob's table.
    ///
    /// # Errors
    /// [`FetchError`].
    pub(super) fn ask_for_table(&self, info: &BlobInfo) -> Result<(), FetchError> {
        // A table that is a blob of its own is behind the same backend as this one.
        let offset = if info.has_feature(BlobFeatures::SEPARATE) {
            0
        } else {
            info.meta_ci_offset()
        };
        NydusOrigin::new(Arc::clone(&self.cache), None).read(offset, &mut [0])
    }

    /// Whether a chunk is where this blob's chunks can be.
    pub(super) fn is_inside(&self, chunk: &Chunk) -> bool {
        chunk.id < self.blob.chunks() && chunk.end() <= self.blob.size()
    }
}

impl Drop for ImageBlob {
    fn drop(&mut self) {
        if self.has_table && self.table.get().is_none() {
            let (cache, work) = (Arc::clone(&self.cache), Arc::clone(&self.work));
            closing::close(cache, work, &self.patience);
        }
    }
}

/// The directory of an image's cache, if it is one that `blob.rs` can use.
fn plain_cache(config: &ConfigV2, infos: &[Arc<BlobInfo>]) -> io::Result<Option<PathBuf>> {
    let cache = config.get_cache_config()?;
    if !matches!(cache.cache_type.as_str(), "blobcache" | "filecache") || cache.cache_compressed {
        return Ok(None);
    }
    let files = cache.get_filecache_config()?;
    let special = |info: &BlobInfo| {
        let v5 = !info.meta_ci_is_valid();
        (v5 && files.disable_indexed_map)
            || info.has_feature(BlobFeatures::_V5_NO_EXT_BLOB_TABLE)
            || info.is_legacy_stargz()
            || info.features().is_tarfs()
            || info.chunk_count() == 0
    };
    if files.enable_encryption || infos.iter().any(|info| special(info)) {
        return Ok(None);
    }
    files.get_work_dir().map(|dir| Some(Path::new(dir).to_owned()))
}

/// Whether `content` is that of a chunk, as far as the image says.
///
/// # Errors
/// [`FetchError::Unknown`].
pub(super) fn agree(
    blob: &str,
    digests: Option<&BlobDigests>,
    chunk: &Chunk,
    content: &[u8],
) -> Result<bool, FetchError> {
    let is_listed = |digests: &BlobDigests| digests.agree(chunk, content);
    if !chunk.verify(content) {
        return Ok(false);
    }
    digests
        .map_or(Ok(true), is_listed)
        .map_err(|source| FetchError::Unknown {
            blob: blob.to_owned(),
            chunk: chunk.id,
            source,
        })
}

/// Whether chunks of a blob cannot be taken out one by one.
fn is_unpacked(info: &BlobInfo) -> bool {
    info.has_feature(BlobFeatures::BATCH) || info.has_feature(BlobFeatures::ZRAN)
}

/// Where the chunks of a blob come from.
fn origin(
    nydus: Nydus,
    config: &Arc<ConfigV2>,
    dir: &Path,
    info: &Arc<BlobInfo>,
    digests: Option<BlobDigests>,
) -> Box<dyn Origin> {
    if is_unpacked(info) {
        let (config, dir, info) = (Arc::clone(config), dir.to_owned(), Arc::clone(info));
        let validates = digests.is_none();
        let renew = move || {
            let work = WorkDir::roomy(&dir)?;
            Nydus::open(&work.configure(&config, validates), &work, &info)
        };
        Box::new(UnpackedOrigin::new(nydus, Box::new(renew), digests))
    } else {
        Box::new(NydusOrigin::new(nydus.cache, digests))
    }
}

/// nydus' counters of a cache, which go by the configuration's id. nydus makes a set of its own for each cache,
/// which no reader of ours would fill; this one takes its place in `/api/v1/metrics/blobcache`.
fn counters(id: &str, dir: &Path) -> Arc<BlobcacheMetrics> {
    static BY_ID: LazyLock<Mutex<HashMap<String, Weak<BlobcacheMetrics>>>> = LazyLock::new(Mutex::default);
    let mut by_id = BY_ID.lock().unwrap_or_else(PoisonError::into_inner);
    by_id.retain(|_, counters| counters.strong_count() > 0);
    if let Some(counters) = by_id.get(id).and_then(Weak::upgrade) {
        return counters;
    }
    let counters = BlobcacheMetrics::new(id, &dir.to_string_lossy());
    by_id.insert(id.to_owned(), Arc::downgrade(&counters));
    counters
}
