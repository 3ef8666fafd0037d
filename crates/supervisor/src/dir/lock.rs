//! The lock of a sandbox's directory.
//!
//! The file is the first that is made in it and the last that is removed, and says what it is: so that a directory in
//! which a crash has left something shows that it is a sandbox's ([`super::ours`]). Its first line is always the same,
//! the second is the process id of the last that took the directory.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::{FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::{DirError, LOCK, failed};
use crate::state::is_dead;

/// How long the children of a supervisor that was killed may take to begin their programs. Until then they hold what
/// it held, its lock, too.
const CHILDREN_BEGIN: Duration = Duration::from_secs(1);
/// The file's first line.
const MARK: &str = "nydusbox sandbox\n";
/// Room for both lines.
const CONTENT_BYTES: usize = 64;

/// What became of an attempt.
#[derive(Debug)]
pub(super) enum Attempt {
    /// It is ours alone.
    Taken(OwnedFd),
    /// There is no such file, or, when it was to be made, no such directory.
    Missing,
    /// It was made or removed meanwhile.
    Changed,
    /// There is a file of this name that none of ours can be.
    Foreign,
}

/// Takes the lock if its file is there, and changes nothing in it.
pub(super) fn take(path: &Path, dir: &OwnedFd) -> Result<Attempt, DirError> {
    let failed = |errno| failed("lock", path, errno);
    // Looked at before it is opened, which for a device can have effects.
    match rustix::fs::statat(dir, LOCK, rustix::fs::AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile => {}
        Ok(_) => return Ok(Attempt::Foreign),
        Err(Errno::NOENT) => return Ok(Attempt::Missing),
        Err(errno) => return Err(failed(errno)),
    }
    match open(dir, OFlags::empty()) {
        Ok(fd) => hold(path, fd),
        Err(Errno::NOENT) => Ok(Attempt::Changed),
        // Ours can be written by us.
        Err(Errno::ACCESS | Errno::PERM | Errno::LOOP | Errno::ISDIR) => Ok(Attempt::Foreign),
        Err(errno) => Err(failed(errno)),
    }
}

/// Opens it to be read, if there is a file that it can be.
pub(super) fn look(dir: &OwnedFd) -> Option<OwnedFd> {
    let is_regular = |stat: rustix::fs::Stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    let found = rustix::fs::statat(dir, LOCK, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).ok()?;
    if !is_regular(found) {
        return None;
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(dir, LOCK, flags, Mode::empty()).ok()?;
    is_regular(rustix::fs::fstat(&fd).ok()?).then_some(fd)
}

/// Makes the lock in a directory in which nothing is, and takes it.
pub(super) fn make(path: &Path, dir: &OwnedFd) -> Result<Attempt, DirError> {
    match open(dir, OFlags::CREATE | OFlags::EXCL) {
        Ok(fd) => hold(path, fd),
        Err(Errno::EXIST) => Ok(Attempt::Changed),
        Err(Errno::NOENT) => Ok(Attempt::Missing),
        Err(errno) => Err(failed("lock", path, errno)),
    }
}

fn open(dir: &OwnedFd, how: OFlags) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | how;
    rustix::fs::openat(dir, LOCK, flags, Mode::RUSR | Mode::WUSR)
}

fn hold(path: &Path, fd: OwnedFd) -> Result<Attempt, DirError> {
    let failed = |errno| failed("lock", path, errno);
    let until = Instant::now() + CHILDREN_BEGIN;
    loop {
        match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => break,
            Err(Errno::WOULDBLOCK) => {}
            Err(errno) => return Err(failed(errno)),
        }
        let holder = owner(&content(&fd));
        if Instant::now() >= until || !holder.is_some_and(is_dead) {
            return Err(DirError::Held {
                path: path.to_owned(),
                holder,
            });
        }
        sleep(Duration::from_millis(1));
    }
    let ours = rustix::fs::fstat(&fd).map_err(failed)?;
    match rustix::fs::stat(path.join(LOCK)) {
        Ok(named) if (named.st_dev, named.st_ino) == (ours.st_dev, ours.st_ino) => Ok(Attempt::Taken(fd)),
        Ok(_) | Err(Errno::NOENT) => Ok(Attempt::Changed),
        Err(errno) => Err(failed(errno)),
    }
}

/// Writes down that the directory is this process's.
pub(super) fn sign(lock: &OwnedFd) -> io::Result<()> {
    let file = File::from(lock.try_clone()?);
    let text = format!("{MARK}{}\n", std::process::id());
    // Over what is there, and only then cut to its length: a process that is killed in between must not leave a file
    // that says nothing.
    file.write_all_at(text.as_bytes(), 0)?;
    file.set_len(text.len() as u64)
}

/// Whether it says that it is a sandbox's.
pub(super) fn is_signed(lock: &OwnedFd) -> bool {
    content(lock).starts_with(MARK)
}

/// Who has the directory, as the file's text says.
#[must_use]
pub fn owner(text: &str) -> Option<u32> {
    text.strip_prefix(MARK)?.lines().next()?.parse().ok()
}

pub(super) fn content(lock: impl AsFd) -> String {
    let mut bytes = [0; CONTENT_BYTES];
    let read = rustix::io::pread(lock, &mut bytes, 0).unwrap_or(0);
    String::from_utf8_lossy(&bytes[..read]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_is_read_whatever_number_was_there_before() {
        assert_eq!(owner("nydusbox sandbox\n42\n"), Some(42));
        assert_eq!(owner("nydusbox sandbox\n42\n67\n"), Some(42));
        for other in ["", "42\n", "nydusbox sandbox\n", "nydusbox sandbox\nx\n"] {
            assert_eq!(owner(other), None, "{other:?}");
        }
    }
}
