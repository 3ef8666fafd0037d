//! The daemon's tree of mounts: what the operator changes and the guest sees.
//!
//! Guest and operator meet only here. The table decides who may take a place, the VFS of fuse-backend-rs holds the
//! file systems. A mount that takes long (a large bootstrap, a slow disk) holds no lock while it is made.

mod error;
mod passthrough;
mod rafs;
mod redact;
mod shares;
mod table;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use fuse_backend_rs::api::filesystem::FsOptions;
use fuse_backend_rs::api::{BackFileSystem, Vfs, VfsOptions};
use nydus_api::ConfigV2;
use nydusbox_protocol::{BackendCollection, BackendEntry, FsType, MountCommand, MountPoint, ReadTrace};
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

pub use self::error::{MAX_MOUNTS, MountError};
pub(crate) use self::shares::{ShareNode, Shares};
pub(crate) use self::table::Counted;
pub(crate) use self::table::MountRecord;
use self::table::{ImageOrigin, Table};
use crate::image_fs::{ImageFs, Workers, drop_unused};
use crate::metrics::{Tallies, Totals};
use crate::passthrough::MountedShare;

/// nydusd's form of `mounted_time`.
const MOUNTED_TIME: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day] [hour]:[minute]:[second].[subsecond digits:9] +00:00:00");

impl MountRecord {
    /// The id under which nydus keeps the counters of the image's blob cache.
    pub(crate) fn cache_id(&self) -> Option<String> {
        self.image.as_ref().map(|image| image.config.id.clone())
    }

    /// What kind of backend the image's blobs are in.
    pub(crate) fn backend_type(&self) -> Option<String> {
        let config = self.image.as_ref()?.config.get_backend_config().ok()?;
        Some(config.backend_type.clone())
    }

    /// The image's first blob; nydus keeps a backend's counters under it. Read from the bootstrap when asked for.
    pub(crate) fn first_blob(&self) -> Option<String> {
        let image = self.image.as_ref()?;
        rafs::first_blob(image)
    }
}

/// Every mount of a daemon.
pub(crate) struct Namespace {
    vfs: Arc<Vfs>,
    shares: Arc<Shares>,
    table: Mutex<Table>,
    /// Fetch ahead of readers, for all images.
    read_ahead: Arc<Workers>,
    tallies: Arc<Tallies>,
}

impl std::fmt::Debug for Namespace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Namespace")
            .field("table", &self.table)
            .finish_non_exhaustive()
    }
}

impl Namespace {
    pub(crate) fn new(tallies: Arc<Tallies>) -> Self {
        let defaults = VfsOptions::default();
        let options = VfsOptions {
            // There is no DAX window; and without INIT_EXT the guest does not look at the upper flags.
            out_opts: (defaults.out_opts | FsOptions::SUBMOUNTS | FsOptions::INIT_EXT)
                - FsOptions::PERFILE_DAX,
            // Shares need real handles, and a guest applies one policy to all mounts of a connection.
            no_open: false,
            no_opendir: false,
            no_writeback: true,
            killpriv_v2: true,
            ..defaults
        };
        Self {
            vfs: Arc::new(Vfs::new(options)),
            shares: Arc::default(),
            table: Mutex::default(),
            read_ahead: Arc::default(),
            tallies,
        }
    }

    pub(crate) fn vfs(&self) -> Arc<Vfs> {
        Arc::clone(&self.vfs)
    }

    pub(crate) fn shares(&self) -> Arc<Shares> {
        Arc::clone(&self.shares)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Mounts a file system.
    pub(crate) fn mount(&self, at: &MountPoint, command: &MountCommand) -> Result<(), MountError> {
        self.table().reserve(at)?;
        match guarded(at, || self.build_and_attach(at, command)) {
            Ok(record) => {
                self.table().commit(at, record);
                tracing::info!(mount_point = %at, fs_type = ?command.fs_type, source = command.source, "mounted");
                Ok(())
            }
            Err(e) => {
                self.table().release(at);
                Err(e)
            }
        }
    }

    fn build_and_attach(&self, at: &MountPoint, command: &MountCommand) -> Result<MountRecord, MountError> {
        let mut share = None;
        let mut counted = Counted::default();
        let (backend, config, image): (BackFileSystem, _, _) = match command.fs_type {
            FsType::PassthroughFs => {
                let built = Arc::new(passthrough::build(at, command, self.shares.common())?);
                share = Some(Arc::clone(&built));
                (Box::new(MountedShare(built)), None, None)
            }
            FsType::Rafs => {
                let config = rafs::parse_config(at, &command.config)?;
                let rafs = rafs::build(at, command, &config, Arc::clone(&self.read_ahead))?;
                counted.fetches = rafs.fetches();
                counted.recording = rafs.recording();
                (
                    Box::new(rafs),
                    Some(config.shown),
                    Some(origin(command, config.config)),
                )
            }
        };
        let index = self
            .vfs
            .mount(backend, at.as_str())
            .map_err(|e| MountError::Internal {
                mount_point: at.clone(),
                why: e.to_string(),
            })?;
        self.shares.put(index, share, at.is_root());
        counted.place = index;
        counted.before = Arc::new(self.tallies.totals(index));
        if at.is_root() {
            self.tallies.set_at_root(index);
        }
        Ok(MountRecord {
            fs_type: command.fs_type,
            mounted: SystemTime::now(),
            config,
            image,
            counted,
        })
    }

    /// Gives a mounted image a new bootstrap or configuration.
    pub(crate) fn remount(&self, at: &MountPoint, command: &MountCommand) -> Result<(), MountError> {
        let before = self.table().begin_change(at)?;
        let result = guarded(at, || {
            let config = rafs::parse_config(at, &command.config)?;
            self.with_rafs(at, |image| rafs::update(at, image, command, &config))??;
            Ok(MountRecord {
                fs_type: FsType::Rafs,
                mounted: SystemTime::now(),
                config: Some(config.shown),
                image: Some(origin(command, config.config)),
                counted: before.counted.clone(),
            })
        });
        match result {
            Ok(record) => {
                self.table().commit(at, record);
                tracing::info!(mount_point = %at, source = command.source, "remounted");
                Ok(())
            }
            Err(e) => {
                self.table().commit(at, before);
                Err(e)
            }
        }
    }

    /// Unmounts what is mounted there.
    pub(crate) fn umount(&self, at: &MountPoint) -> Result<(), MountError> {
        let before = self.table().begin_change(at)?;
        let result = guarded(at, || {
            if let Ok(Some((_, index))) = self.vfs.get_rootfs(at.as_str()) {
                self.shares.take(index);
            }
            if before.counted.recording.any() {
                self.with_rafs(at, |image| image.forget_recorded(at.as_str()))?;
            }
            if at.is_root() {
                self.tallies.set_at_root(0);
            }
            self.vfs
                .umount(at.as_str())
                .map(drop)
                .map_err(|e| MountError::Internal {
                    mount_point: at.clone(),
                    why: e.to_string(),
                })
        });
        match result {
            Ok(()) => {
                self.table().release(at);
                // Blob caches are shared between mounts; those nobody uses any more are dropped.
                drop_unused();
                tracing::info!(mount_point = %at, "unmounted");
                Ok(())
            }
            Err(e) => {
                self.table().commit(at, before);
                Err(e)
            }
        }
    }

    /// The mounts, in the API's shape and without secrets.
    pub(crate) fn collection(&self) -> BackendCollection {
        self.table()
            .iter()
            .map(|(at, record)| {
                let entry = BackendEntry {
                    backend_type: match record.fs_type {
                        FsType::Rafs => "Rafs".to_owned(),
                        FsType::PassthroughFs => "PassthroughFs".to_owned(),
                    },
                    mountpoint: at.to_string(),
                    mounted_time: OffsetDateTime::from(record.mounted)
                        .format(MOUNTED_TIME)
                        .unwrap_or_default(),
                    config: record.config.clone(),
                };
                (at.to_string(), entry)
            })
            .collect()
    }

    /// Where the figures of every mount are.
    pub(crate) fn counted(&self) -> Vec<(MountPoint, FsType, Counted)> {
        self.table()
            .iter()
            .map(|(at, record)| (at.clone(), record.fs_type, record.counted.clone()))
            .collect()
    }

    /// What guests have asked of a mount.
    pub(crate) fn totals(&self, counted: &Counted) -> Totals {
        self.tallies.totals(counted.place).since(&counted.before)
    }

    /// The place of the mount that an inode belongs to.
    pub(crate) fn place_of(&self, nodeid: u64) -> u8 {
        self.tallies.place_of(nodeid)
    }

    /// What is mounted at a place.
    pub(crate) fn record(&self, at: &MountPoint) -> Option<MountRecord> {
        self.table().get(at).cloned()
    }

    /// The superblock of the image mounted there.
    pub(crate) fn superblock(&self, at: &MountPoint) -> Result<serde_json::Value, MountError> {
        self.with_mounted_rafs(at, |image| serde_json::to_value(image.metadata()))?
            .map_err(|e| MountError::Internal {
                mount_point: at.clone(),
                why: e.to_string(),
            })
    }

    /// Finds out where the data of a file of the image mounted there begins, for the fuzz targets.
    pub(crate) fn lay_out(&self, at: &MountPoint, inode: u64) -> Result<(), MountError> {
        self.with_mounted_rafs(at, |image| image.lay_out(inode))
    }

    /// Begins to record what is read of the image mounted there.
    pub(crate) fn start_trace(&self, at: &MountPoint) -> Result<(), MountError> {
        self.with_mounted_rafs(at, ImageFs::start_trace)
    }

    /// Ends recording.
    pub(crate) fn stop_trace(&self, at: &MountPoint) -> Result<(), MountError> {
        self.with_mounted_rafs(at, ImageFs::stop_trace)
    }

    /// What was recorded of the image mounted there; `None` if nothing is.
    pub(crate) fn trace(&self, at: &MountPoint) -> Result<Option<ReadTrace>, MountError> {
        self.with_mounted_rafs(at, ImageFs::trace)?
            .map_err(|e| MountError::Internal {
                mount_point: at.clone(),
                why: e.to_string(),
            })
    }

    fn with_mounted_rafs<T>(&self, at: &MountPoint, f: impl FnOnce(&ImageFs) -> T) -> Result<T, MountError> {
        if self.table().get(at).is_none() {
            return Err(MountError::NotMounted {
                mount_point: at.clone(),
            });
        }
        self.with_rafs(at, f)
    }

    fn with_rafs<T>(&self, at: &MountPoint, f: impl FnOnce(&ImageFs) -> T) -> Result<T, MountError> {
        let not_rafs = || MountError::NotRafs {
            mount_point: at.clone(),
        };
        let (backend, _) = self
            .vfs
            .get_rootfs(at.as_str())
            .ok()
            .flatten()
            .ok_or_else(not_rafs)?;
        let image = backend.as_any().downcast_ref::<ImageFs>().ok_or_else(not_rafs)?;
        Ok(f(image))
    }
}

fn origin(command: &MountCommand, config: Arc<ConfigV2>) -> ImageOrigin {
    ImageOrigin {
        bootstrap: command.source.clone().into(),
        config,
    }
}

/// Runs an operation that works on foreign bytes; a panic in it is that operation's failure.
fn guarded<T>(at: &MountPoint, f: impl FnOnce() -> Result<T, MountError>) -> Result<T, MountError> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|_| {
        Err(MountError::Internal {
            mount_point: at.clone(),
            why: "the image or its configuration is damaged in a way that is not recognised".into(),
        })
    })
}
