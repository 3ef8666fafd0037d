//! The daemons' blob cache, kept within a quota.
//!
//! Its files are the daemons': `<blob>.blob.data`, its chunk maps, and tables. A blob goes as a whole, and only if
//! nobody uses it:
//!
//! - nydusbox' daemon has a lock on the data file of every blob it has mounted (`image_fs/cache_files.rs`), and looks,
//!   once it has that, whether the file still has its name. Who removes a blob has the same lock alone.
//! - a stock nydusd has no lock, but the files open, which `/proc` shows. It opens map and data one after the other;
//!   so that neither is ever of another time than the other, whoever has one mount an image holds
//!   [`BlobCache::mounting`] meanwhile. One that is started by others (Kata) may begin to mount between the look and
//!   the removal, within microseconds, a blob that nobody had mounted; two that do at once would not be safe.
//!
//! When a blob was last used is when it was last mounted, or something of it was fetched. What goes is decided in
//! `cache_plan.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirEntry, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use serde::Serialize;

use super::cache_plan::{CachedBlob, Shrinking};
use super::leftovers::{entries, remove};
use super::{StoreError, lock};
use crate::progress::Progress;
use crate::source::blob_dir::replace;

/// What the names of a blob's files end with. The maps go before the data: without them, the data counts as not there.
const MAP: &str = "blob.data.chunk_map";
/// The map that nydusd has up to 2.2.
const OLD_MAP: &str = "chunk_map";
const DATA: &str = "blob.data";
const OTHERS: [&str; 3] = ["blob.meta", "blob.digest", "blob.toc"];
/// The byte of a data file that its users have locked: behind any chunk, the last one that can be.
const IN_USE_AT: libc::off_t = libc::off_t::MAX - 1;
/// Held shared while a daemon that takes no locks mounts, and alone while blobs are removed.
const LOCK: &str = ".lock";
/// The bytes that the cache may take, as a decimal number.
const QUOTA: &str = ".quota";
/// How many blobs are held at once: each takes a descriptor, and a process commonly has 1024.
const AT_ONCE: usize = 64;
/// Blocks of `stat(2)`, in bytes.
const BLOCK_BYTES: u64 = 512;

/// A cache directory.
#[derive(Debug, Clone)]
pub struct BlobCache {
    path: PathBuf,
}

/// No blob is removed while this lives.
#[derive(Debug)]
#[must_use = "it ends with this value"]
pub struct CacheGuard {
    _lock: File,
}

/// What became of a cache.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct CacheReport {
    /// Whether nothing was changed.
    pub dry_run: bool,
    /// What it may take, in bytes.
    pub quota_bytes: u64,
    /// What it took, in bytes on the disk.
    pub before_bytes: u64,
    /// What it takes now, or would.
    pub after_bytes: u64,
    /// What of it is in use, as far as it had to be looked for.
    pub in_use_bytes: u64,
    /// The blobs that went, or would.
    pub blobs: Vec<String>,
}

impl BlobCache {
    /// The cache in `dir`, there or not.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        Self { path: dir.to_owned() }
    }

    /// Keeps blobs from being removed while a stock nydusd mounts an image with this cache. Once it has, its open
    /// files do that.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn mounting(&self, progress: &dyn Progress) -> Result<CacheGuard, StoreError> {
        fs::create_dir_all(&self.path).map_err(|source| StoreError::io(&self.path, source))?;
        let lock = lock::shared(&self.path.join(LOCK), progress)?;
        Ok(CacheGuard { _lock: lock })
    }

    /// What the cache may take, in bytes, if that was said.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn quota(&self) -> Result<Option<u64>, StoreError> {
        let path = self.path.join(QUOTA);
        match read_regular(&path) {
            Ok(text) => text.trim().parse().map(Some).map_err(|_| {
                let what = io::Error::new(io::ErrorKind::InvalidData, "it is not a number of bytes");
                StoreError::io(&path, what)
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StoreError::io(&path, source)),
        }
    }

    /// Says what the cache may take from now on, in bytes; `None` for as much as there is.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn set_quota(&self, quota_bytes: Option<u64>) -> Result<(), StoreError> {
        let path = self.path.join(QUOTA);
        // One that can't be read is one to be replaced.
        if self.quota().is_ok_and(|there| there == quota_bytes) {
            return Ok(());
        }
        let set = || match quota_bytes {
            Some(bytes) => replace(&path, |file| writeln!(file, "{bytes}")),
            None => match fs::remove_file(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                removed => removed,
            },
        };
        set().map_err(|source| StoreError::io(&path, source))
    }

    /// As [`BlobCache::shrink`], to what [`BlobCache::set_quota`] has said, if it has.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn keep_quota(&self, progress: &dyn Progress) -> Result<Option<CacheReport>, StoreError> {
        let quota = self.quota()?;
        quota.map(|bytes| self.shrink(bytes, false, progress)).transpose()
    }

    /// Removes blobs that nobody uses, those first that were used the longest ago, until the cache takes no more than
    /// `quota_bytes`. What is in use may be more than that.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn shrink(
        &self,
        quota_bytes: u64,
        dry_run: bool,
        progress: &dyn Progress,
    ) -> Result<CacheReport, StoreError> {
        if !self.path.exists() {
            return Ok(CacheReport {
                dry_run,
                quota_bytes,
                ..CacheReport::default()
            });
        }
        let _alone = lock::exclusive(&self.path.join(LOCK), progress)?;
        let mut shrinking = Shrinking::new(self.blobs()?, quota_bytes);
        let before_bytes = shrinking.left_bytes();
        let (mut going, mut in_use_bytes, mut at_once) = (Vec::new(), 0, AT_ONCE);
        loop {
            let next = shrinking.next(at_once);
            if next.is_empty() {
                break;
            }
            let Some(held) = self.hold(next)? else {
                at_once /= 2;
                tracing::debug!(cache = %self.path.display(), at_once, "too few descriptors");
                continue;
            };
            let used = next.iter().filter(|blob| held.in_use.contains(&blob.id));
            in_use_bytes += used.map(|blob| blob.bytes).sum::<u64>();
            for blob in shrinking.decide(at_once, &held.in_use) {
                if !dry_run {
                    for suffix in [MAP, OLD_MAP, DATA].iter().chain(&OTHERS) {
                        remove(&self.file(&blob.id, suffix))?;
                    }
                }
                going.push(blob.id);
            }
        }
        Ok(CacheReport {
            dry_run,
            quota_bytes,
            before_bytes,
            after_bytes: shrinking.left_bytes(),
            in_use_bytes,
            blobs: going,
        })
    }

    /// Keeps `blobs` from being used, but for those that are; `None` if there are too few descriptors for all of them.
    fn hold(&self, blobs: &[CachedBlob]) -> Result<Option<Held>, StoreError> {
        let mut held = Held::default();
        // First whose lock is ours, then who has it open: a daemon that opens it later waits for the lock.
        for blob in blobs {
            match self.lock_alone(&blob.id)? {
                Alone::Locked(file) => drop(held.locks.insert(blob.id.clone(), file)),
                Alone::Absent => {}
                Alone::InUse => drop(held.in_use.insert(blob.id.clone())),
                Alone::NoDescriptors => return Ok(None),
            }
        }
        match open_files(&self.path, &held.locks) {
            Ok(open) => held.in_use.extend(open),
            Err(NoDescriptors) => return Ok(None),
        }
        Ok(Some(held))
    }

    fn file(&self, blob: &str, suffix: &str) -> PathBuf {
        self.path.join(format!("{blob}.{suffix}"))
    }

    /// What is in the directory. Files with other names are not the cache's.
    fn blobs(&self) -> Result<Vec<CachedBlob>, StoreError> {
        let mut blobs: BTreeMap<String, CachedBlob> = BTreeMap::new();
        for entry in entries(&self.path)? {
            let name = entry.file_name();
            let Some((id, suffix)) = name.to_str().and_then(|name| name.split_once('.')) else {
                continue;
            };
            let known = [MAP, OLD_MAP, DATA].contains(&suffix) || OTHERS.contains(&suffix);
            let meta = match entry.metadata() {
                Ok(meta) if known && !id.is_empty() && meta.is_file() => meta,
                Ok(_) => continue,
                // It went while we looked.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(source) => return Err(StoreError::io(&entry.path(), source)),
            };
            let blob = blobs.entry(id.to_owned()).or_insert_with(|| CachedBlob {
                id: id.to_owned(),
                bytes: 0,
                last_used: SystemTime::UNIX_EPOCH,
            });
            blob.bytes += meta.blocks() * BLOCK_BYTES;
            let times = [meta.modified(), meta.accessed()].into_iter().flatten();
            blob.last_used = times.fold(blob.last_used, SystemTime::max);
        }
        Ok(blobs.into_values().collect())
    }

    /// The lock that a blob's users have.
    fn lock_alone(&self, blob: &str) -> Result<Alone, StoreError> {
        let path = self.file(blob, DATA);
        let failed = |source| StoreError::io(&path, source);
        let file = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Alone::Absent),
            Err(error) if lacks_descriptors(&error) => return Ok(Alone::NoDescriptors),
            Err(source) => return Err(failed(source)),
        };
        match fcntl(&file, FcntlArg::F_OFD_SETLK(&in_use(libc::F_WRLCK))) {
            Ok(_) => Ok(Alone::Locked(file)),
            Err(Errno::EAGAIN | Errno::EACCES) => Ok(Alone::InUse),
            Err(errno) => Err(failed(errno.into())),
        }
    }
}

/// What else has the name, a FIFO for one, is not waited for.
fn read_regular(path: &Path) -> io::Result<String> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    match file.metadata()?.is_file() {
        true => io::read_to_string(file),
        false => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "it is not a regular file",
        )),
    }
}

/// Whether a blob's lock was to be had alone.
enum Alone {
    Locked(File),
    /// There is no data to lock.
    Absent,
    InUse,
    /// This process has, or all have, as many files open as they may.
    NoDescriptors,
}

/// Blobs of which it is known who uses them.
#[derive(Debug, Default)]
struct Held {
    /// The locks of those that nobody had locked. While they are held nobody begins to use one.
    locks: BTreeMap<String, File>,
    in_use: BTreeSet<String>,
}

/// There are none left to look with.
struct NoDescriptors;

fn lacks_descriptors(error: &io::Error) -> bool {
    [Errno::EMFILE, Errno::ENFILE]
        .iter()
        .any(|errno| error.raw_os_error() == Some(*errno as i32))
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the constants are of fcntl's own small numbers"
)]
fn in_use(kind: libc::c_int) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: IN_USE_AT,
        l_len: 1,
        // The kernel demands 0 for locks of open files.
        l_pid: 0,
    }
}

/// The blobs among `ours` whose data other processes have open, as far as one may see that.
fn open_files(cache: &Path, ours: &BTreeMap<String, File>) -> Result<Vec<String>, NoDescriptors> {
    let identity = |meta: &fs::Metadata| (meta.dev(), meta.ino());
    let by_inode: BTreeMap<_, _> = ours
        .iter()
        .filter_map(|(id, file)| Some((identity(&file.metadata().ok()?), id)))
        .collect();
    let own = std::process::id().to_string();
    let mut open = Vec::new();
    for process in list(Path::new("/proc"))? {
        let name = process.file_name();
        let is_other = name
            .to_str()
            .is_some_and(|name| name != own && name.bytes().all(|b| b.is_ascii_digit()));
        if !is_other {
            continue;
        }
        for link in list(&process.path().join("fd"))? {
            // By name first, which is cheap; another mount namespace has another directory, but the same name.
            let is_data = fs::read_link(link.path())
                .is_ok_and(|target| target.extension().is_some_and(|extension| extension == "data"));
            if is_data
                && let Ok(meta) = fs::metadata(link.path())
                && let Some(id) = by_inode.get(&identity(&meta))
            {
                tracing::debug!(cache = %cache.display(), blob = %id, process = ?name, "is in use");
                open.push((*id).clone());
            }
        }
    }
    Ok(open)
}

/// What is in a directory of processes, or of one's files; nothing for one that is gone, or not ours to see.
fn list(dir: &Path) -> Result<impl Iterator<Item = DirEntry>, NoDescriptors> {
    match fs::read_dir(dir) {
        Err(error) if lacks_descriptors(&error) => Err(NoDescriptors),
        listed => Ok(listed.into_iter().flatten().flatten()),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_quota_that_is_no_file_is_refused_and_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let cache = BlobCache::new(dir.path());
        assert_eq!(cache.quota().unwrap(), None);
        fs::write(dir.path().join(QUOTA), "4711\n").unwrap();
        assert_eq!(cache.quota().unwrap(), Some(4711));
        fs::remove_file(dir.path().join(QUOTA)).unwrap();
        nix::sys::stat::mknod(
            &dir.path().join(QUOTA),
            nix::sys::stat::SFlag::S_IFIFO,
            nix::sys::stat::Mode::S_IRWXU,
            0,
        )
        .unwrap();
        let error = cache.quota().unwrap_err();
        assert!(format!("{error:?}").contains("not a regular file"), "{error:?}");
    }
}
