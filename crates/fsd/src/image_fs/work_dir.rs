//! A directory for what nydus keeps of the caches of mounted images, in memory or within the cache directory.
//!
//! nydus makes a data file longer that is too short, and believes its map all the same; it maps the chunk map and
//! the table of chunks, and dies when they are truncated or the disk is full. With files that are nobody else's none
//! of this can happen: nydus gets a sparse data file it does not fill, a map and a table that have their space, and
//! what it has fetched of the blobs' tables is copied from and to the cache directory, where it is shared.
//!
//! What it is for is a few KiB, and making it would be most of a mount on a disk: so it is in [`memory`] where that is
//! to be had. Where nydus keeps data, or it isn't, the directory is under [`PLACE`] in the cache directory, and goes away
//! with its owner. One whose owner was killed is found unlocked, and removed, by the next. Next: `storage.rs` opens
//! nydus' side in it.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};

use nydus_api::ConfigV2;
use nydus_storage::device::BlobInfo;
use rustix::fs::{FlockOperation, flock};

use super::cache_files::{self, CacheFiles, is_at};
use super::events::report;
use super::memory;
use super::sealed::{self, Seal};

/// Where such directories are within a cache directory.
const PLACE: &str = ".nydusbox";
/// How often making one starts over because another process removes it, not yet locked.
const ATTEMPTS: usize = 16;
/// The header of a cached table of chunks, and what its content is rounded up to, in bytes.
const TABLE_HEADER: u64 = 4096;
/// What nydus fetches of a blob besides its chunks, and keeps: its table of chunks, and digests of these with the
/// table of contents that leads to them.
const TABLES: [&str; 3] = ["blob.meta", "blob.digest", "blob.toc"];

/// A table that is no longer as it was made; it is fetched again.
#[derive(Debug, thiserror::Error)]
#[error("table of chunks in the cache, {}, is damaged", path.display())]
struct DamagedTable {
    path: PathBuf,
}

/// The directory, as long as this lives.
#[derive(Debug)]
pub(super) struct WorkDir {
    path: PathBuf,
    cache: PathBuf,
    /// Locked, in the cache directory: somebody lives here. In memory nobody else can.
    lock: Option<File>,
    /// One mount at a time makes files, so that no other takes those that are not complete.
    admitting: Mutex<()>,
}

static COUNT: AtomicU64 = AtomicU64::new(0);

impl WorkDir {
    /// Makes one for tables only.
    ///
    /// # Errors
    /// What the file system said.
    pub(super) fn small(cache: &Path) -> io::Result<Arc<Self>> {
        let Some(memory) = memory::dir() else {
            return Self::roomy(cache);
        };
        let path = memory.join(COUNT.fetch_add(1, Ordering::Relaxed).to_string());
        fs::create_dir(&path)?;
        Ok(Self::at(path, cache, None))
    }

    /// Makes one that nydus may keep data in, and removes those of processes that were killed.
    ///
    /// # Errors
    /// What the file system said.
    pub(super) fn roomy(cache: &Path) -> io::Result<Arc<Self>> {
        let place = cache.join(PLACE);
        sweep(&place);
        for _ in 0..ATTEMPTS {
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            let path = place.join(format!("{}-{count}", process::id()));
            let mut builder = fs::DirBuilder::new();
            // Both for us only: workers serve with a umask of 0, and it may be one of them that makes it.
            match builder.mode(0o700).recursive(true).create(&place).and_then(|()| {
                // Another process' of the same number in another PID namespace is not this one.
                builder.recursive(false).create(&path)
            }) {
                Ok(()) => {}
                Err(e) if matches!(e.kind(), ErrorKind::AlreadyExists | ErrorKind::NotFound) => continue,
                Err(e) => return Err(e),
            }
            // Gone, or taken, if it was swept before it was locked.
            let Ok(lock) = File::open(&path) else { continue };
            if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() && is_at(&lock, &path)? {
                return Ok(Self::at(path, cache, Some(lock)));
            }
        }
        Err(io::Error::other(format!(
            "{} does not keep a directory",
            place.display()
        )))
    }

    fn at(path: PathBuf, cache: &Path, lock: Option<File>) -> Arc<Self> {
        Arc::new(Self {
            path,
            cache: cache.to_owned(),
            lock,
            admitting: Mutex::new(()),
        })
    }

    /// A small one that all mounts of this process with that cache directory share: with the same configuration nydus then
    /// gives them the same connections.
    ///
    /// # Errors
    /// What the file system said.
    pub(super) fn shared(cache: &Path) -> io::Result<Arc<Self>> {
        static BY_CACHE: LazyLock<Mutex<HashMap<PathBuf, Weak<WorkDir>>>> = LazyLock::new(Mutex::default);
        let mut by_cache = BY_CACHE.lock().unwrap_or_else(PoisonError::into_inner);
        by_cache.retain(|_, work| work.strong_count() > 0);
        if let Some(work) = by_cache.get(cache).and_then(Weak::upgrade) {
            return Ok(work);
        }
        let work = Self::small(cache)?;
        by_cache.insert(cache.to_owned(), Arc::downgrade(&work));
        Ok(work)
    }

    /// A configuration with which nydus uses this directory instead of the cache directory; `validates` says whether it
    /// may have to fetch digests.
    pub(super) fn configure(&self, config: &ConfigV2, validates: bool) -> Arc<ConfigV2> {
        let mut config = config.clone();
        if let Some(cache) = &mut config.cache {
            cache.cache_validate &= validates;
        }
        if let Some(files) = config.cache.as_mut().and_then(|c| c.file_cache.as_mut()) {
            self.path
                .to_string_lossy()
                .as_ref()
                .clone_into(&mut files.work_dir);
        }
        Arc::new(config)
    }

    /// Makes the files that nydus would make of a blob, with all the space that it will write to through a mapping.
    /// Gives its data file and map.
    ///
    /// # Errors
    /// What the file system said.
    pub(super) fn admit(&self, info: &BlobInfo) -> io::Result<CacheFiles> {
        let _alone = self.admitting.lock().unwrap_or_else(PoisonError::into_inner);
        let id = info.blob_id();
        let files = CacheFiles::open_alone(&self.path, &id, info.uncompressed_size(), info.chunk_count())?;
        if info.meta_ci_is_valid() {
            for table in TABLES {
                self.bring(&id, table, info)?;
            }
        }
        Ok(files)
    }

    fn bring(&self, blob: &str, table: &str, info: &BlobInfo) -> io::Result<()> {
        let name = format!("{blob}.{table}");
        let (ours, shared) = (self.path.join(&name), self.cache.join(&name));
        if ours.exists() {
            // Another mount's, which has it mapped.
            return Ok(());
        }
        let whole = (table == TABLES[0]).then(|| table_size(info));
        let content = match fs::read(&shared) {
            Ok(content) if whole.is_none() => Some(content),
            Ok(content) => {
                let seal = if whole == Some(content.len() as u64) {
                    sealed::look(&content)
                } else {
                    Seal::Broken
                };
                if seal == Seal::Broken {
                    report(&DamagedTable { path: shared.clone() });
                }
                if seal == Seal::Intact {
                    Some(content)
                } else {
                    // Without a seal it is a nydusd's: nobody can say whether it is as it was made. Another daemon may
                    // be at the same.
                    cache_files::remove(&shared)?;
                    None
                }
            }
            Err(e) if e.kind() == ErrorKind::NotFound => None,
            Err(e) => return Err(e),
        };
        match (content, whole) {
            (Some(content), _) => write_new(&ours, 0o600, &content),
            (None, Some(whole)) => self.make_room(&ours, whole),
            (None, None) => Ok(()),
        }
    }

    /// Makes a file of zeros that nydus will write to through a mapping.
    fn make_room(&self, path: &Path, length: u64) -> io::Result<()> {
        let mut file = create(path, 0o600)?;
        if self.lock.is_none() {
            // In memory, where there is room as long as there is any, none is taken before it is written to: how long
            // the table is is the image's word.
            return file.set_len(length);
        }
        io::copy(&mut io::repeat(0).take(length), &mut file).map(drop)
    }

    /// Takes a blob's table of chunks out of the cache directory; ours stays.
    ///
    /// # Errors
    /// What the file system said.
    pub(super) fn unshare_table(&self, blob: &str) -> io::Result<()> {
        cache_files::remove(&self.cache.join(format!("{blob}.{}", TABLES[0])))
    }

    /// Shares what nydus has fetched of a blob's tables, if nobody has. What the cache does not take is not shared.
    ///
    /// # Errors
    /// What the file system said.
    pub(super) fn share_tables(&self, blob: &str) -> io::Result<()> {
        let _alone = self.admitting.lock().unwrap_or_else(PoisonError::into_inner);
        let mut beside: Option<Arc<Self>> = None;
        for table in TABLES {
            let name = format!("{blob}.{table}");
            let (ours, shared) = (self.path.join(&name), self.cache.join(&name));
            if shared.exists() || !ours.exists() {
                continue;
            }
            // Complete before it has its name, which takes the same file system.
            if self.lock.is_none() && beside.is_none() {
                beside = Some(Self::roomy(&self.cache)?);
            }
            let dir = beside.as_ref().map_or(&self.path, |beside| &beside.path);
            let copy = dir.join(format!("{name}.copy"));
            let done = fs::read(&ours)
                .and_then(|mut content| {
                    if table == TABLES[0] {
                        sealed::seal(&mut content);
                    }
                    write_new(&copy, 0o644, &content)
                })
                .and_then(|()| fs::rename(&copy, &shared));
            if done.is_err() {
                let _removed_with_the_directory = fs::remove_file(&copy);
            }
            done?;
        }
        Ok(())
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        remove(&self.path);
        if self.lock.is_some() {
            // Others may still be in it.
            let _kept = fs::remove_dir(self.cache.join(PLACE));
        }
    }
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_dir_all(path)
        && error.kind() != ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "work directory stays");
    }
}

/// Removes what killed processes left.
fn sweep(place: &Path) {
    for entry in fs::read_dir(place).into_iter().flatten().flatten() {
        let path = entry.path();
        // The lock is held until it is removed: whoever made it just now sees that it is gone.
        if let Ok(dir) = File::open(&path)
            && flock(&dir, FlockOperation::NonBlockingLockExclusive).is_ok()
        {
            remove(&path);
        }
    }
}

fn table_size(info: &BlobInfo) -> u64 {
    TABLE_HEADER + info.meta_ci_uncompressed_size().next_multiple_of(TABLE_HEADER)
}

fn create(path: &Path, mode: u32) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(path)
}

fn write_new(path: &Path, mode: u32, content: &[u8]) -> io::Result<()> {
    create(path, mode)?.write_all_at(content, 0)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn places(cache: &Path) -> usize {
        fs::read_dir(cache.join(PLACE)).map_or(0, Iterator::count)
    }

    #[test]
    fn a_directory_lasts_as_long_as_its_owner() {
        let cache = tempfile::tempdir().unwrap();
        let one = WorkDir::roomy(cache.path()).unwrap();
        let other = WorkDir::roomy(cache.path()).unwrap();
        assert!(
            one.path != other.path && one.path.is_dir(),
            "the other has not swept it"
        );
        drop(other);
        assert_eq!(places(cache.path()), 1);
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!((mode(&cache.path().join(PLACE)), mode(&one.path)), (0o700, 0o700));
        drop(one);
        assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_small_one_is_shared_and_goes_with_its_last_user() {
        let cache = tempfile::tempdir().unwrap();
        let one = WorkDir::shared(cache.path()).unwrap();
        assert!(Arc::ptr_eq(&one, &WorkDir::shared(cache.path()).unwrap()));
        let path = one.path.clone();
        assert!(path.is_dir());
        drop(one);
        assert!(!path.exists());
        assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_a_killed_owner_left_is_removed_by_the_next() {
        let cache = tempfile::tempdir().unwrap();
        let left = cache.path().join(PLACE).join("1-0");
        fs::create_dir_all(&left).unwrap();
        fs::write(left.join("b.blob.meta"), "x").unwrap();
        let _next = WorkDir::roomy(cache.path()).unwrap();
        assert!(!left.exists());
        assert_eq!(places(cache.path()), 1);
    }

    #[test]
    fn a_table_takes_no_memory_before_it_is_there() {
        let cache = tempfile::tempdir().unwrap();
        let work = WorkDir::small(cache.path()).unwrap();
        let (in_memory, file) = (work.lock.is_none(), work.path.join("b.blob.meta"));
        work.make_room(&file, 1 << 20).unwrap();
        let made = fs::metadata(&file).unwrap();
        assert_eq!((made.len(), made.blocks() == 0), (1 << 20, in_memory));
        assert!(fs::read(&file).unwrap().iter().all(|byte| *byte == 0));
    }

    #[test]
    fn tables_are_shared_complete_and_never_replaced() {
        for make in [WorkDir::small, WorkDir::roomy] {
            let cache = tempfile::tempdir().unwrap();
            let work = make(cache.path()).unwrap();
            let shared = cache.path().join("b.blob.meta");
            fs::write(work.path.join("b.blob.meta"), [7; 8192]).unwrap();
            work.share_tables("b").unwrap();
            let first = fs::read(&shared).unwrap();
            assert!(first.starts_with(&[7; 8000]) && matches!(sealed::look(&first), Seal::Intact));
            fs::write(work.path.join("b.blob.meta"), [8; 8192]).unwrap();
            work.share_tables("b").unwrap();
            assert!(fs::read(&shared).unwrap() == first);
            drop(work);
            assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 1);
        }
    }
}
