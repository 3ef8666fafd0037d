//! The hidden directory beside the output in which an image is made, and the one step that puts it in place.
//!
//! ```text
//! PARENT/.NAME.partial-XXXXXX/   locked (flock) while its build runs
//!     work/image.boot, blobs/    where the builder writes
//!     image/                     becomes PARENT/NAME
//!     source                     link to a directory that is built
//! ```
//!
//! Dropping a [`Staging`] removes it. One whose process was killed is recognised by its name, by what is in it, and by
//! its free lock, and goes when the next build to the same place begins. Never decides what belongs into an image: see
//! `build.rs`.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FlockOperation, Mode, OFlags, RenameFlags, flock, openat, renameat_with};
use tempfile::TempDir;

use crate::error::BuildError;
use crate::{BLOB_DIR, BOOTSTRAP_FILE, SUMMARY_FILE};

const WORK: &str = "work";
const IMAGE: &str = "image";
const SOURCE: &str = "source";
/// The image that was replaced, where two can't be swapped.
const ASIDE: &str = "image.old";
/// All that is ever in the directory.
const PARTS: [&str; 4] = [WORK, IMAGE, SOURCE, ASIDE];
/// Of its name, at the end: random.
const SUFFIX_BYTES: usize = 6;

/// What stands at the output directory's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Occupant {
    Nothing,
    EmptyDir,
    Image,
    Other,
}

#[derive(Debug)]
pub(crate) struct Staging {
    dir: TempDir,
    /// Holds the lock.
    _lock: File,
    /// The output directory: canonical parent and name.
    out_dir: PathBuf,
    replace: bool,
}

impl Staging {
    /// Makes the directory, having looked whether the output's place can be taken.
    pub(crate) fn create(out_dir: &Path, replace: bool) -> Result<Self, BuildError> {
        let failed = |source| BuildError::output(out_dir, source);
        let out_dir = absolute(out_dir).map_err(failed)?;
        refuse_occupied(&out_dir, replace)?;
        let parent = out_dir.parent().unwrap_or(Path::new("/"));
        let prefix = prefix(&out_dir);
        remove_stale(parent, &prefix);
        let (dir, lock) = create_locked(parent, &prefix).map_err(failed)?;
        let staging = Self {
            dir,
            _lock: lock,
            out_dir,
            replace,
        };
        fs::create_dir_all(staging.work_blobs()).map_err(failed)?;
        fs::create_dir(staging.image()).map_err(failed)?;
        Ok(staging)
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// What becomes the image directory.
    pub(crate) fn image(&self) -> PathBuf {
        self.path().join(IMAGE)
    }

    /// What is built, if it is a directory, under a name of ours.
    pub(crate) fn source(&self) -> PathBuf {
        self.path().join(SOURCE)
    }

    /// Where the builder writes the bootstrap.
    pub(crate) fn work_bootstrap(&self) -> PathBuf {
        self.path().join(WORK).join(BOOTSTRAP_FILE)
    }

    /// Where the builder writes blobs.
    pub(crate) fn work_blobs(&self) -> PathBuf {
        self.path().join(WORK).join(BLOB_DIR)
    }

    /// Makes [`Self::image`] the output directory, in one step.
    pub(crate) fn publish(self) -> Result<(), BuildError> {
        let failed = |source| BuildError::output(&self.out_dir, source);
        let image = self.image();
        for dir in [&image.join(BLOB_DIR), &image] {
            sync_dir(dir).map_err(failed)?;
        }
        match refuse_occupied(&self.out_dir, self.replace)? {
            // Fails if something has appeared there since, but for another empty directory.
            Occupant::Nothing | Occupant::EmptyDir => match fs::rename(&image, &self.out_dir) {
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
                    return Err(BuildError::OutputExists { path: self.out_dir });
                }
                renamed => renamed.map_err(failed)?,
            },
            // The old image ends up where the new one was, and goes with the staging directory.
            Occupant::Image => exchange(&image, &self.out_dir).map_err(failed)?,
            Occupant::Other => return Err(BuildError::OutputNotImage { path: self.out_dir }),
        }
        sync_dir(self.out_dir.parent().unwrap_or(Path::new("/"))).map_err(failed)
    }
}

/// `path` by its parent's canonical name, so that a later change of directory doesn't matter.
fn absolute(path: &Path) -> io::Result<PathBuf> {
    let Some(name) = path.file_name() else {
        // `.`, `..`, `/`: directories that exist.
        return path.canonicalize();
    };
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    Ok(parent.canonicalize()?.join(name))
}

fn refuse_occupied(out_dir: &Path, replace: bool) -> Result<Occupant, BuildError> {
    let occupant = occupant(out_dir).map_err(|source| BuildError::output(out_dir, source))?;
    match occupant {
        Occupant::Nothing | Occupant::EmptyDir => Ok(occupant),
        Occupant::Image if replace => Ok(occupant),
        Occupant::Image => Err(BuildError::OutputExists {
            path: out_dir.to_owned(),
        }),
        Occupant::Other => Err(BuildError::OutputNotImage {
            path: out_dir.to_owned(),
        }),
    }
}

/// An image is a directory that holds a summary and nothing that isn't of an image: only that may be
/// replaced, so that a mistyped path costs no one their files.
fn occupant(path: &Path) -> io::Result<Occupant> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Occupant::Nothing),
        Err(error) => return Err(error),
        Ok(meta) if !meta.is_dir() => return Ok(Occupant::Other),
        Ok(_) => {}
    }
    let names = fs::read_dir(path)?
        .map(|entry| Ok(entry?.file_name()))
        .collect::<io::Result<Vec<_>>>()?;
    Ok(if names.is_empty() {
        Occupant::EmptyDir
    } else if names.iter().any(|name| name == SUMMARY_FILE)
        && names.iter().all(|name| {
            [BOOTSTRAP_FILE, BLOB_DIR, SUMMARY_FILE]
                .iter()
                .any(|own| name == own)
        })
    {
        Occupant::Image
    } else {
        Occupant::Other
    })
}

fn prefix(out_dir: &Path) -> OsString {
    let mut prefix = OsString::from(".");
    prefix.push(out_dir.file_name().unwrap_or(OsStr::new("image")));
    prefix.push(".partial-");
    prefix
}

/// Whether a name is the prefix and what makes it one of its own.
fn is_of(prefix: &OsStr, name: &OsStr) -> bool {
    let suffix = name.as_bytes().strip_prefix(prefix.as_bytes());
    suffix.is_some_and(|suffix| suffix.len() == SUFFIX_BYTES && suffix.iter().all(u8::is_ascii_alphanumeric))
}

fn create_locked(parent: &Path, prefix: &OsStr) -> io::Result<(TempDir, File)> {
    loop {
        let dir = tempfile::Builder::new()
            .prefix(prefix)
            .rand_bytes(SUFFIX_BYTES)
            .tempdir_in(parent)?;
        let lock = File::open(dir.path())?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        // Another build may have taken it for stale between its making and its locking.
        match fs::metadata(dir.path()) {
            Ok(meta) if meta.ino() == lock.metadata()?.ino() => return Ok((dir, lock)),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
}

/// Removes what killed builds to the same place left. What can't be removed is in nobody's way.
fn remove_stale(parent: &Path, prefix: &OsStr) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        // Anything may have such a name: what is no directory is not even opened, for a FIFO would keep us.
        if is_of(prefix, &entry.file_name())
            && let Ok(dir) = open_dir(&path)
            && flock(&dir, FlockOperation::NonBlockingLockExclusive).is_ok()
            && has_only(&path, &PARTS)
        {
            tracing::debug!(path = %path.display(), "removing what an interrupted build left");
            let _ = fs::remove_dir_all(&path);
        }
    }
}

fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(CWD, path, flags, Mode::empty())?)
}

/// Whether nothing is in a directory but what may be.
fn has_only(dir: &Path, names: &[&str]) -> bool {
    let is_one = |entry: io::Result<fs::DirEntry>| {
        entry.is_ok_and(|entry| names.iter().any(|name| entry.file_name() == *name))
    };
    fs::read_dir(dir).is_ok_and(|mut entries| entries.all(is_one))
}

/// Swaps two directories; where the file system can't do that in one step, in two.
fn exchange(new: &Path, old: &Path) -> io::Result<()> {
    match renameat_with(CWD, new, CWD, old, RenameFlags::EXCHANGE) {
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
            let aside = new.with_file_name(ASIDE);
            fs::rename(old, &aside)?;
            fs::rename(new, old)
        }
        exchanged => Ok(exchanged?),
    }
}

fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}
