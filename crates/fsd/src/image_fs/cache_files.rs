//! The two files in which a blob is cached, shared with every process that uses the directory.
//!
//! `<blob>.blob.data` holds the chunks at their uncompressed offsets, `<blob>.blob.data.chunk_map` a bit for each
//! chunk that is there. Names and format are nydus' (nydus-storage, `cache/state/persist_map.rs`): a nydusd may use
//! the same directory.
//!
//! The map is read and written, never mapped: who truncates a mapped file kills the process that looks at it. Data are
//! copied out of a mapping by readers that survive that (`sys/mapping.rs`). A file that has become shorter is never
//! made longer again, since what is missing would read as zeros; it is replaced by a new one, and a process that still
//! has the old one finds it too short. A data file is locked while it is open, so that whoever keeps the cache small
//! removes none that is in use. What a power cut has left of it is found out in `settled.rs`. Next: `blob.rs` fills it.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use rustix::fs::{AtFlags, CWD, FallocateFlags, Mode, OFlags};
use rustix::io::Errno;

use super::layout_note::LayoutNote;
use super::range_lock::{self, PATIENCE, RangeLock, in_time};
use super::settled::{self, Boot, HEADER};

/// How much of a map's header is not zero, in bytes.
const HEAD: usize = 12;
/// `PAMB`, `PAMC` as nydus writes them, and the version between them.
const MAGIC1: u32 = 0x424D_4150;
const MAGIC2: u32 = 0x434D_4150;
const VERSION: u32 = 1;
/// Others may read: what an image has is no secret. Explicit, because workers serve with a umask of 0.
const MODE: u32 = 0o644;
/// How often opening starts over when others replace the files meanwhile.
const ATTEMPTS: usize = 16;

/// A blob's cache, open.
#[derive(Debug)]
pub(super) struct CacheFiles {
    data: File,
    map: File,
    size: u64,
    chunks: u32,
    /// Excludes our own threads where the lock on the map excludes other processes.
    map_change: Mutex<()>,
}

/// Why a chunk was not written.
#[derive(Debug, thiserror::Error)]
pub(super) enum WriteError {
    /// The data file is not as long as it was: chunks are lost.
    #[error("cache file was truncated")]
    Truncated,
    /// It is filled by those who have another image with a blob of that name.
    #[error("cache file is of another blob of that name")]
    AnothersLayout,
    /// The file system did not take it.
    #[error("cache file cannot be written")]
    Io(#[from] io::Error),
}

impl CacheFiles {
    /// Makes the files in a directory that nobody else uses, or opens those that are there. Without names that appear
    /// only when all is in place, and without looks at what somebody else may have done: of a mount on ext4 these
    /// are a fifth.
    ///
    /// # Errors
    /// What the file system said; what was made stays, for the directory's owner to remove.
    pub(super) fn open_alone(dir: &Path, blob: &str, size: u64, chunks: u32) -> io::Result<Self> {
        let (data_path, map_path) = paths(dir, blob);
        let (data, map) = match (create_new(&data_path)?, create_new(&map_path)?) {
            (Some(data), Some(map)) => (data, map),
            _ => return Self::open(dir, blob, size, chunks),
        };
        data.set_len(size)?;
        map.write_all_at(&empty_map(chunks), 0)?;
        Ok(Self {
            data,
            map,
            size,
            chunks,
            map_change: Mutex::new(()),
        })
    }

    /// Opens the files, which are made if they are not there. Those that cannot be right are replaced: the data file
    /// first, so that a map with bits is never seen beside a file that lacks the data.
    ///
    /// # Errors
    /// What the file system said.
    pub(super) fn open(dir: &Path, blob: &str, size: u64, chunks: u32) -> io::Result<Self> {
        let (data_path, map_path) = paths(dir, blob);
        for _ in 0..ATTEMPTS {
            let data = match open_existing(&data_path)? {
                Some(data) => Some(data),
                None => {
                    // A map that is still there is of a file that is gone; the new one must not get it.
                    remove(&map_path)?;
                    remove(&old_map(dir, blob))?;
                    create(&data_path, size, &[])?
                }
            };
            if let Some(data) = &data {
                begin_use(data);
            }
            let map = match open_existing(&map_path)? {
                Some(map) => Some(map),
                None => create(&map_path, map_size(chunks), &empty_map(chunks))?,
            };
            let (Some(data), Some(map)) = (data, map) else {
                continue;
            };
            let files = Self {
                data,
                map,
                size,
                chunks,
                map_change: Mutex::new(()),
            };
            if !files.is_sound()? {
                tracing::warn!(cache = %data_path.display(), "cache file is damaged and is replaced");
                remove(&data_path)?;
                remove(&map_path)?;
                remove(&old_map(dir, blob))?;
            } else if is_at(&files.data, &data_path)? && is_at(&files.map, &map_path)? {
                settled::believe(&files.map, files.bits_len(), Boot::present())?;
                return Ok(files);
            }
        }
        Err(io::Error::other(format!(
            "{} is replaced again and again",
            data_path.display()
        )))
    }

    /// The files as they are, if they are there and right. Nobody is kept from removing them.
    ///
    /// # Errors
    /// What the file system said.
    pub(super) fn find(dir: &Path, blob: &str, size: u64, chunks: u32) -> io::Result<Option<Self>> {
        let (data_path, map_path) = paths(dir, blob);
        let (Some(data), Some(map)) = (open_existing(&data_path)?, open_existing(&map_path)?) else {
            return Ok(None);
        };
        let files = Self {
            data,
            map,
            size,
            chunks,
            map_change: Mutex::new(()),
        };
        // The data first, when they are opened and when they are replaced: they are still there, so the map is theirs.
        Ok((files.is_sound()? && is_at(&files.data, &data_path)?).then_some(files))
    }

    /// Has all content written to the disk, and notes of which chunks that is so.
    ///
    /// # Errors
    /// What the file system said.
    pub(super) fn settle(&self) -> io::Result<()> {
        settled::settle(&self.data, &self.map, || self.ready_bits(), Boot::present())
    }

    /// Whether the files have the size and the kind they are made with. A file that is too short may be one that is
    /// just being made by a nydusd: it gets another one then, and they do not share.
    fn is_sound(&self) -> io::Result<bool> {
        let mut head = [0; HEAD];
        read_as_far_as_it_goes(&self.map, &mut head, 0)?;
        Ok(head == header() && self.map.metadata()?.len() == map_size(self.chunks) && self.is_whole()?)
    }

    /// Whether the cache is one whose readers have its chunks where `layout` says; if nobody has said so yet, it is now.
    ///
    /// # Errors
    /// What the file system said.
    pub(super) fn is_laid_out(&self, layout: LayoutNote) -> io::Result<bool> {
        layout.is_of(&self.map)
    }

    /// All bits of the map, the first chunk in the highest bit of the first byte. A map that was truncated has none
    /// where it ends.
    ///
    /// # Errors
    /// What the file system said.
    pub(super) fn ready_bits(&self) -> io::Result<Vec<u8>> {
        let mut bits = vec![0; self.bits_len()];
        read_as_far_as_it_goes(&self.map, &mut bits, HEADER)?;
        Ok(bits)
    }

    fn bits_len(&self) -> usize {
        usize::try_from(self.chunks.div_ceil(8)).unwrap_or_default()
    }

    /// Whether the map says that a chunk is there.
    ///
    /// # Errors
    /// What the file system said.
    pub(super) fn is_ready(&self, chunk: u32) -> io::Result<bool> {
        let mut byte = [0];
        read_as_far_as_it_goes(&self.map, &mut byte, HEADER + u64::from(chunk / 8))?;
        Ok(byte[0] & bit(chunk) != 0)
    }

    /// Says in the map that a chunk is there. It is never said to be there no more: others go by what they have seen.
    ///
    /// # Errors
    /// What the file system said.
    pub(super) fn mark(&self, chunk: u32) -> io::Result<()> {
        if chunk >= self.chunks {
            return Err(ErrorKind::InvalidInput.into());
        }
        let at = HEADER + u64::from(chunk / 8);
        // Whoever waits for another process keeps no other thread from the map.
        in_time(PATIENCE, || {
            let _ours = self.map_change.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(_theirs) = RangeLock::try_take(&self.map, at, 1)? else {
                return Ok(None);
            };
            let mut byte = [0];
            read_as_far_as_it_goes(&self.map, &mut byte, at)?;
            let changed = byte[0] | bit(chunk);
            if changed != byte[0] {
                self.map.write_all_at(&[changed], at)?;
            }
            Ok(Some(()))
        })
    }

    /// Takes the files' names away, if they have them still: whoever opens the blob's cache next makes new ones. In the
    /// order in which [`Self::open`] replaces them.
    ///
    /// # Errors
    /// What the file system said.
    pub(super) fn unname(&self, dir: &Path, blob: &str) -> io::Result<()> {
        let (data_path, map_path) = paths(dir, blob);
        if is_at(&self.data, &data_path)? {
            remove(&data_path)?;
            if is_at(&self.map, &map_path)? {
                remove(&map_path)?;
            }
            remove(&old_map(dir, blob))?;
        }
        Ok(())
    }

    /// Writes a chunk's content.
    ///
    /// # Errors
    /// [`WriteError`]; the chunk must not be marked then.
    pub(super) fn write(&self, content: &[u8], offset: u64) -> Result<(), WriteError> {
        // Writing to a file that was truncated would make it longer, with zeros where chunks have been.
        if !self.is_whole()? {
            return Err(WriteError::Truncated);
        }
        self.data.write_all_at(content, offset)?;
        if self.is_whole()? {
            Ok(())
        } else {
            Err(WriteError::Truncated)
        }
    }

    /// Whether the data file is as long as it has to be.
    ///
    /// # Errors
    /// What the file system said.
    pub(super) fn is_whole(&self) -> io::Result<bool> {
        Ok(self.data.metadata()?.len() == self.size)
    }

    /// Takes space for a part of the data file, where the file system can.
    ///
    /// # Errors
    /// What the file system said: usually that it is full.
    pub(super) fn reserve(&self, offset: u64, length: u64) -> io::Result<()> {
        match rustix::fs::fallocate(&self.data, FallocateFlags::KEEP_SIZE, offset, length) {
            Err(Errno::OPNOTSUPP) => Ok(()),
            done => Ok(done?),
        }
    }

    /// Gives back the space of a part of the data file, where the file system can.
    pub(super) fn release(&self, offset: u64, length: u64) {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let _kept = rustix::fs::fallocate(&self.data, flags, offset, length);
    }

    /// The data file.
    pub(super) fn data(&self) -> &File {
        &self.data
    }
}

/// Nobody removes the blob from the cache while the file is open, and the cache knows by its access time, which reading
/// leaves alone, that it was used. A cache that can't be told is used all the same; removing an open file costs what
/// was fetched, no read.
fn begin_use(data: &File) {
    if let Err(error) = range_lock::announce(data) {
        tracing::debug!(%error, "use of a cache file cannot be announced");
    }
    note_use(data);
}

fn note_use(data: &File) {
    let now = std::fs::FileTimes::new().set_accessed(SystemTime::now());
    if let Err(error) = data.set_times(now) {
        tracing::debug!(%error, "use of a cache file cannot be noted");
    }
}

impl Drop for CacheFiles {
    fn drop(&mut self) {
        note_use(&self.data);
    }
}

fn paths(dir: &Path, blob: &str) -> (PathBuf, PathBuf) {
    (
        dir.join(format!("{blob}.blob.data")),
        dir.join(format!("{blob}.blob.data.chunk_map")),
    )
}

/// The map that nydusd has up to 2.2, for the same data. Nothing else of it is known here.
fn old_map(dir: &Path, blob: &str) -> PathBuf {
    dir.join(format!("{blob}.chunk_map"))
}

fn map_size(chunks: u32) -> u64 {
    HEADER + u64::from(chunks).div_ceil(8)
}

fn header() -> [u8; HEAD] {
    let mut header = [0; HEAD];
    for (at, word) in header.chunks_exact_mut(4).zip([MAGIC1, VERSION, MAGIC2]) {
        at.copy_from_slice(&word.to_le_bytes());
    }
    header
}

/// A map without a chunk. All of it, not only the header: nydus maps it, and a hole of a mapped file on a full disk is
/// a signal instead of an error.
fn empty_map(chunks: u32) -> Vec<u8> {
    let mut content = header().to_vec();
    content.resize(usize::try_from(map_size(chunks)).unwrap_or(HEAD), 0);
    settled::begin(&mut content, Boot::present());
    content
}

fn open_existing(path: &Path) -> io::Result<Option<File>> {
    match OpenOptions::new().read(true).write(true).open(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        opened => opened.map(Some),
    }
}

/// Makes a file, complete before it has a name; `None` if somebody else was first.
fn create(path: &Path, size: u64, head: &[u8]) -> io::Result<Option<File>> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let file = match rustix::fs::open(
        dir,
        OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC,
        Mode::from_raw_mode(MODE),
    ) {
        Ok(file) => File::from(file),
        // Not on this file system: others may see it while it is made, and replace it.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => match create_new(path)? {
            Some(file) => file,
            None => return Ok(None),
        },
        Err(e) => return Err(e.into()),
    };
    file.set_len(size)?;
    file.write_all_at(head, 0)?;
    let proc = format!("/proc/self/fd/{}", file.as_raw_fd());
    match rustix::fs::linkat(CWD, proc, CWD, path, AtFlags::SYMLINK_FOLLOW) {
        Ok(()) => Ok(Some(file)),
        Err(Errno::EXIST) if is_at(&file, path)? => Ok(Some(file)),
        Err(Errno::EXIST) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Makes an empty file; `None` if there is one.
fn create_new(path: &Path) -> io::Result<Option<File>> {
    let mut options = OpenOptions::new();
    match options
        .read(true)
        .write(true)
        .create_new(true)
        .mode(MODE)
        .open(path)
    {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(None),
        made => made.map(Some),
    }
}

/// Removes a file, if it is there.
///
/// # Errors
/// What the file system said.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Whether an open file is what the path leads to.
///
/// # Errors
/// What the file system said.
pub(super) fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match std::fs::metadata(path) {
        Ok(there) => Ok((ours.dev(), ours.ino()) == (there.dev(), there.ino())),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

fn bit(chunk: u32) -> u8 {
    0x80 >> (chunk % 8)
}

fn read_as_far_as_it_goes(file: &File, mut into: &mut [u8], mut at: u64) -> io::Result<()> {
    while !into.is_empty() {
        match file.read_at(into, at) {
            Ok(0) => return Ok(()),
            Ok(n) => {
                into = &mut into[n..];
                at += n as u64;
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "cache_files_tests.rs"]
mod tests;
