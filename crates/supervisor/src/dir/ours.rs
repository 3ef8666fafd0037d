//! Whether a directory that is there is a sandbox's, which is decided before anything in it is touched.
//!
//! It has only files with names of ours, and something that shows whose they are: a lock that says so, or a document.
//! The lock is made first, made to say so next, and removed last. What a crash can leave without either is therefore
//!
//! - nothing at all,
//! - an empty lock and nothing else,
//! - after the machine's end, when contents had not reached the disk, an empty lock and an empty document,
//!
//! each in a directory only its owner may enter. Names alone are no proof: `lock`, `output` or `ca.pem` could be
//! anybody's.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use nydusbox_protocol::SandboxId;
use rustix::fs::{AtFlags, Dir, FileType, Mode, Stat};
use rustix::io::Errno;

use super::lock::is_signed;
use super::{DirError, FILES, LOCK, NOTHING, failed};
use crate::state::{self, STATE, StateDocument};

/// The names of what is in a directory.
pub(super) fn names(path: &Path, dir: &OwnedFd) -> Result<Vec<OsString>, DirError> {
    let read = || {
        let mut names = Vec::new();
        for entry in Dir::read_from(dir)? {
            let name = entry?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(OsString::from_vec(name));
            }
        }
        Ok(names)
    };
    match read() {
        // It was removed meanwhile.
        Err(Errno::NOENT) => Ok(Vec::new()),
        read => read.map_err(|errno| failed("read", path, errno)),
    }
}

/// Whether a directory is one only its owner may enter, as those we make are.
pub(super) fn is_private(dir: &Stat) -> bool {
    Mode::from_raw_mode(dir.st_mode) & (Mode::RWXU | Mode::RWXG | Mode::RWXO) == Mode::RWXU
}

/// Refuses a directory that is not a sandbox's. Changes nothing. Unless its lock is held by whoever asks, it may be
/// changing meanwhile.
pub(super) fn check(path: &Path, dir: &OwnedFd, stat: &Stat, lock: &OwnedFd) -> Result<(), DirError> {
    let names = names(path, dir)?;
    let known = |name: &OsString| FILES.iter().chain(&[LOCK, NOTHING]).any(|ours| name == ours);
    let stranger = names.iter().find(|name| !known(name));
    let foreign = || DirError::Foreign {
        path: path.to_owned(),
    };
    let shown = match document(dir) {
        // A copy's names what belongs to the original.
        Some(sandbox) if path.file_name() != Some(sandbox.as_str().as_ref()) => return Err(foreign()),
        Some(_) => true,
        None => is_signed(lock),
    };
    match stranger {
        Some(name) if shown => Err(DirError::Stranger {
            path: path.join(name),
        }),
        None if shown || (is_private(stat) && is_begun(dir, &names)) => Ok(()),
        Some(_) | None => Err(foreign()),
    }
}

/// The sandbox of its document.
fn document(dir: &OwnedFd) -> Option<SandboxId> {
    let bytes = state::read(dir).ok()??;
    StateDocument::parse(&bytes).ok().map(|document| document.sandbox)
}

/// Whether it is what a crash can leave that has neither a lock that says so nor a document.
fn is_begun(dir: &OwnedFd, names: &[OsString]) -> bool {
    is_empty_file(dir, LOCK) && (names.len() == 1 || is_empty_file(dir, STATE))
}

fn is_empty_file(dir: &OwnedFd, name: &str) -> bool {
    rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|stat| {
        FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
            && Mode::from_raw_mode(stat.st_mode) == Mode::RUSR | Mode::WUSR
            && stat.st_size == 0
    })
}
