//! The file system of a RAFS image.
//!
//! nydus' crates read the format and speak to the backends; what is between them and a guest is here, so that a guest
//! never waits for somebody else's download: concurrent misses are concurrent requests, a chunk is fetched once, by
//! whichever process on the host is first, and a reader that goes through a file finds it fetched ahead of it.
//! Read-only. Inode numbers, attributes and names are those that nydus-rafs' own file system gives, in all processes
//! that mount the image.
//!
//! ```text
//! operations -> read -> layout (which chunks) -> blob (are they here; if not: claim, lock, fetch, store) -> guest
//!                  \-> readahead -> workers -> blob
//! prefetch -> gate -> blob
//! operations -> inodes -> index (was it asked before?) | nydus-rafs
//! ```
//! Next: `read.rs`, then `blob.rs`; of metadata `inodes.rs`.

mod admission;
mod blob;
mod cache_files;
mod chunk;
mod closing;
mod digests;
mod error;
mod events;
mod factory;
mod flight;
mod gate;
mod generation;
mod index;
mod inodes;
mod kept;
mod layout;
mod layout_note;
mod memory;
mod operations;
mod origin;
mod prefetch;
mod range_lock;
mod read;
mod readahead;
mod ready;
mod renewal;
mod retry;
mod runs;
mod sealed;
mod settled;
mod settling;
mod startup;
mod storage;
mod thrift;
mod trace;
mod unpacked;
mod wholeness;
mod work_dir;
mod workers;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::{ArcSwap, Guard};
use nydus_api::ConfigV2;
use nydus_rafs::metadata::{RafsSuper, RafsSuperMeta};
use nydus_rafs::{RafsError, RafsIoReader, RafsResult};
use nydus_storage::device::BlobInfo;
use nydus_utils::metrics::FsIoStats;
use nydusbox_protocol::ReadTrace;

use self::digests::Digests;
pub(crate) use self::factory::drop_unused;
use self::gate::Gate;
use self::index::Index;
use self::layout::Layouts;
pub(crate) use self::prefetch::Named;
use self::readahead::Streams;
use self::renewal::Renewals;
pub(crate) use self::startup::needs_of;
use self::storage::Storage;
use self::thrift::Thrift;
use self::trace::Tracer;
use self::wholeness::Wholeness;
pub(crate) use self::workers::Workers;
use crate::metrics::FetchCounters;
use crate::metrics::nydus::Recording;

/// A mounted image.
pub(crate) struct ImageFs {
    image: Arc<Image>,
}

/// What is served of an image. Replaced as a whole: metadata are never used with the blobs of other metadata.
struct Served {
    /// The image's metadata.
    sb: Arc<RafsSuper>,
    bootstrap: Arc<Wholeness>,
    storage: Storage,
    /// Which metadata these are: how often there have been others before.
    version: u64,
}

/// What requests, and work in the background, share.
struct Image {
    /// Read by every request, which should not write to a cache line that others use for it.
    served: ArcSwap<Served>,
    renewals: Renewals,
    layouts: Layouts,
    index: Index,
    streams: Streams,
    thrift: Thrift,
    workers: Arc<Workers>,
    gate: Arc<Gate>,
    /// What nydus records of single files, where the configuration asks for it.
    recorder: Option<Arc<FsIoStats>>,
    fetches: Arc<FetchCounters>,
    tracer: Tracer,
    settings: Settings,
}

/// What the configuration, and the moment of mounting, say about files.
#[derive(Debug)]
struct Settings {
    /// Whether inodes are compared with their digests (RAFS v5).
    validate_inodes: bool,
    xattr: bool,
    recording: Recording,
    /// How much is asked for at once where chunks are small, in bytes.
    batch: u64,
    /// Owner of everything in an image that names none.
    uid: u32,
    gid: u32,
    /// Time of everything in an image that has none, in seconds.
    time: u64,
}

impl ImageFs {
    /// Opens an image for the mount point `id`.
    ///
    /// # Errors
    /// nydus' own, so that one table maps them to what the API says.
    pub(crate) fn open(
        config: &Arc<ConfigV2>,
        id: &str,
        path: &Path,
        workers: Arc<Workers>,
    ) -> RafsResult<(Self, RafsIoReader)> {
        let rafs = config.get_rafs_config().map_err(RafsError::LoadConfig)?;
        let cache = config.get_cache_config().map_err(RafsError::LoadConfig)?;
        let (batch, validate) = (rafs.user_io_batch_size as u64, rafs.validate);
        let config = for_nydus(config);
        let bootstrap = Wholeness::of(path).map_err(RafsError::FillSuperBlock)?;
        let (sb, reader) =
            RafsSuper::load_from_file(path, Arc::clone(&config), false).map_err(RafsError::FillSuperBlock)?;
        if sb.meta.is_v6() {
            if !matches!(cache.cache_type.as_str(), "blobcache" | "filecache") {
                return Err(RafsError::Configure(
                    "RAFS v6 needs a cache of type blobcache".to_owned(),
                ));
            }
            if validate {
                return Err(RafsError::Configure(
                    "RAFS v6 has no digests of inodes: ask for `cache.validate` instead of `rafs.validate`"
                        .to_owned(),
                ));
            }
        }
        let gate = Arc::new(Gate::default());
        let infos = sb.superblock.get_blob_infos();
        admission::check(&infos).map_err(RafsError::FillSuperBlock)?;
        let fetches = Arc::default();
        let bootstrap = Arc::new(bootstrap);
        let digests = Digests::of(&sb.meta, &bootstrap, chunks_of(&infos));
        let storage =
            Storage::open(&config, &infos, digests, &gate, &fetches).map_err(RafsError::CreateDevice)?;
        show_device(&sb, &storage);
        let recording = Recording {
            files: rafs.iostats_files,
            access_pattern: rafs.access_pattern,
            latest_read_files: rafs.latest_read_files,
        };
        let recorder = recording.any().then(|| {
            let recorder = FsIoStats::new(id);
            recorder.toggle_files_recording(recording.files);
            recorder.toggle_access_pattern(recording.access_pattern);
            recorder.toggle_latest_read_files_recording(recording.latest_read_files);
            recorder
        });
        let image = Image {
            served: ArcSwap::from_pointee(Served {
                sb: Arc::new(sb),
                bootstrap,
                storage,
                version: 0,
            }),
            renewals: Renewals::default(),
            layouts: Layouts::default(),
            index: Index::default(),
            streams: Streams::default(),
            thrift: Thrift::default(),
            workers,
            gate,
            recorder,
            fetches,
            tracer: Tracer::default(),
            settings: Settings {
                recording,
                validate_inodes: validate,
                xattr: rafs.enable_xattr,
                batch,
                uid: rustix::process::geteuid().as_raw(),
                gid: rustix::process::getegid().as_raw(),
                time: SystemTime::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_secs()),
            },
        };
        Ok((
            Self {
                image: Arc::new(image),
            },
            reader,
        ))
    }

    /// Begins to prefetch what the configuration, the mount or the image ask for; else what the program needs that the
    /// mount names.
    pub(crate) fn start_prefetch(&self, config: &ConfigV2, reader: RafsIoReader, mut named: Named) {
        let program = std::mem::take(&mut named.program);
        let rafs = config.get_rafs_config().ok();
        let asked = rafs.filter(|rafs| rafs.prefetch.enable);
        if asked.is_some_and(|rafs| prefetch::start(&self.image, &rafs.prefetch, reader, named)) {
            return;
        }
        let served = self.image.served();
        if !program.is_empty() && !served.storage.blobs.is_empty() && !served.storage.is_complete() {
            startup::start(&self.image, program);
        }
    }

    /// Takes a new bootstrap of the same image, or a new configuration of its backend.
    ///
    /// # Errors
    /// nydus' own; the image stays as it was.
    pub(crate) fn update(&self, path: &Path, config: &Arc<ConfigV2>) -> RafsResult<()> {
        let config = for_nydus(config);
        let bootstrap = Wholeness::of(path).map_err(RafsError::FillSuperBlock)?;
        let (sb, _) =
            RafsSuper::load_from_file(path, Arc::clone(&config), false).map_err(RafsError::FillSuperBlock)?;
        let before = self.image.served().version;
        if sb.meta.is_v6() != self.image.served().sb.meta.is_v6() {
            // Its inodes have other numbers.
            return Err(RafsError::Incompatible(if sb.meta.is_v6() { 6 } else { 5 }));
        }
        let infos = sb.superblock.get_blob_infos();
        admission::check(&infos).map_err(RafsError::FillSuperBlock)?;
        let bootstrap = Arc::new(bootstrap);
        let digests = Digests::of(&sb.meta, &bootstrap, chunks_of(&infos));
        let storage = Storage::open(&config, &infos, digests, &self.image.gate, &self.image.fetches)
            .map_err(RafsError::SwapBackend)?;
        show_device(&sb, &storage);
        self.image.served.store(Arc::new(Served {
            sb: Arc::new(sb),
            bootstrap,
            storage,
            version: before + 1,
        }));
        self.image.layouts.clear();
        self.image.index.clear();
        Ok(())
    }

    /// What it fetches; `None` where nydus does.
    pub(crate) fn fetches(&self) -> Option<Arc<FetchCounters>> {
        (!self.image.served().storage.blobs.is_empty()).then(|| Arc::clone(&self.image.fetches))
    }

    /// What nydus records of single files.
    pub(crate) fn recording(&self) -> Recording {
        self.image.settings.recording
    }

    /// Drops what was recorded under the mount point `id`. nydus keeps its records by that and has no way to
    /// remove one, so that an empty one takes its place.
    pub(crate) fn forget_recorded(&self, id: &str) {
        if self.image.recorder.is_some() {
            drop(FsIoStats::new(id));
        }
    }

    /// Begins to record what is read, with nothing recorded yet.
    pub(crate) fn start_trace(&self) {
        self.image.tracer.start();
    }

    /// Ends recording and forgets what was recorded.
    pub(crate) fn stop_trace(&self) {
        self.image.tracer.stop();
    }

    /// What was recorded so far; `None` if nothing is.
    ///
    /// # Errors
    /// nydus' own.
    pub(crate) fn trace(&self) -> RafsResult<Option<ReadTrace>> {
        self.image.tracer.shown(&self.image.served().sb)
    }

    /// Finds out where the data of a file begins, and its further segments; `inode` is the VFS's.
    pub(crate) fn lay_out(&self, inode: u64) {
        let ino = inode & (u64::MAX >> 8);
        for segment in 0..4 {
            let at = segment * layout::SEGMENT;
            let image = &self.image;
            let _ = image.layouts.segment(&image.served(), ino, at);
        }
    }

    /// The superblock.
    pub(crate) fn metadata(&self) -> RafsSuperMeta {
        self.image.served().sb.meta
    }
}

impl Drop for ImageFs {
    fn drop(&mut self) {
        // Requests ahead that are under way end by themselves; nothing more is begun.
        self.image.gate.close();
    }
}

/// What a renewed storage adds to the version: a remount meanwhile, which adds 1, has another.
const RENEWAL: u64 = 1 << 32;

impl Image {
    /// # Errors
    /// EIO if its metadata are no longer all there.
    fn whole(&self) -> io::Result<()> {
        self.served().bootstrap.check()
    }

    fn served(&self) -> Guard<Arc<Served>> {
        self.served.load()
    }

    /// Gives metadata another storage, unless they are no longer those that are served.
    fn renew_storage(&self, of: &Arc<Served>, storage: Storage) {
        show_device(&of.sb, &storage);
        let renewed = Served {
            sb: Arc::clone(&of.sb),
            bootstrap: Arc::clone(&of.bootstrap),
            storage,
            version: of.version + RENEWAL,
        };
        let _other_metadata_are_served_now = self.served.compare_and_swap(of, Arc::new(renewed));
    }
}

/// Shows nydus' metadata where digests are, if they are to be had of the blobs.
fn show_device(sb: &RafsSuper, storage: &Storage) {
    let validates = storage.config.is_chunk_validation_enabled();
    if validates && storage.digests.is_none() && sb.meta.has_inlined_chunk_digest() {
        sb.superblock.set_blob_device(storage.device.clone());
    }
}

/// How many chunks all blobs have.
fn chunks_of(infos: &[Arc<BlobInfo>]) -> u64 {
    infos.iter().map(|info| u64::from(info.chunk_count())).sum()
}

/// The configuration as nydus gets it: prefetching is done here, where it knows who waits.
fn for_nydus(config: &ConfigV2) -> Arc<ConfigV2> {
    let mut config = config.clone();
    if let Some(cache) = &mut config.cache {
        cache.prefetch.enable = false;
    }
    if let Some(rafs) = &mut config.rafs {
        rafs.prefetch.enable = false;
    }
    // Where it is not set, nydus looks for chunk digests nowhere.
    config.internal.set_blob_accessible(true);
    Arc::new(config)
}
