//! A lock on a part of a file that excludes other processes.
//!
//! Open-file-description locks (`fcntl(2)`, F_OFD_SETLK): they belong to the open file, not to the process, so that
//! closing another descriptor of the same file does not drop them, and the kernel drops them when the process dies,
//! however it dies. They do not exclude threads that use the same open file: `flight.rs` does that.

use std::fs::File;
use std::io;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

/// A part of a file locked against other open files; unlocked when dropped.
#[derive(Debug)]
pub(super) struct RangeLock<'a> {
    file: &'a File,
    start: u64,
    length: u64,
}

impl<'a> RangeLock<'a> {
    /// Takes the lock if nobody else has it.
    ///
    /// # Errors
    /// What the kernel said; file systems without locks say so here.
    pub(super) fn try_take(file: &'a File, start: u64, length: u64) -> io::Result<Option<Self>> {
        match set(file, libc::F_WRLCK, start, length) {
            Ok(()) => Ok(Some(Self { file, start, length })),
            Err(Errno::EAGAIN | Errno::EACCES) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Takes the lock, waiting for it. For parts that are held for a moment only, unless who holds one has been stopped.
    ///
    /// # Errors
    /// What the kernel said; [`io::ErrorKind::TimedOut`] after [`PATIENCE`].
    pub(super) fn take(file: &'a File, start: u64, length: u64) -> io::Result<Self> {
        in_time(PATIENCE, || Self::try_take(file, start, length))
    }
}

/// How long whoever holds a lock for a moment is waited for.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(1);

/// What `attempt` gives, as soon as it gives something. The kernel would wait without end.
///
/// # Errors
/// The attempt's; [`io::ErrorKind::TimedOut`] after `patience`.
pub(super) fn in_time<T>(
    patience: Duration,
    mut attempt: impl FnMut() -> io::Result<Option<T>>,
) -> io::Result<T> {
    let begun = Instant::now();
    loop {
        match attempt()? {
            Some(done) => return Ok(done),
            None if begun.elapsed() < patience => thread::sleep(LOOK),
            None => return Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

impl Drop for RangeLock<'_> {
    fn drop(&mut self) {
        // Cannot fail for a range that was locked; were it to, closing the file would unlock it.
        let _unlocked = set(self.file, libc::F_UNLCK, self.start, self.length);
    }
}

/// Says to whoever removes blobs from the cache (`nydusbox image gc`) that a data file is in use, until it is closed:
/// the last byte that a file could have, which no chunk has, is locked, shared. Waits for one who is removing it.
///
/// # Errors
/// What the kernel said, file systems without locks say so here; [`io::ErrorKind::TimedOut`] after [`PATIENCE`].
pub(super) fn announce(file: &File) -> io::Result<()> {
    let last = u64::try_from(libc::off_t::MAX - 1).map_err(io::Error::other)?;
    in_time(PATIENCE, || match set(file, libc::F_RDLCK, last, 1) {
        Ok(()) => Ok(Some(())),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(None),
        Err(e) => Err(e.into()),
    })
}

fn set(file: &File, kind: libc::c_int, start: u64, length: u64) -> Result<(), Errno> {
    let lock = description(kind, start, length)?;
    fcntl(file, FcntlArg::F_OFD_SETLK(&lock)).map(drop)
}

fn description(kind: libc::c_int, start: u64, length: u64) -> Result<libc::flock, Errno> {
    let invalid = |_| Errno::EINVAL;
    Ok(libc::flock {
        l_type: libc::c_short::try_from(kind).map_err(invalid)?,
        l_whence: libc::c_short::try_from(libc::SEEK_SET).map_err(invalid)?,
        l_start: start.try_into().map_err(invalid)?,
        l_len: length.try_into().map_err(invalid)?,
        // The kernel demands 0 for locks of this kind.
        l_pid: 0,
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn open_twice() -> (File, File) {
        let named = tempfile::NamedTempFile::new().unwrap();
        (named.reopen().unwrap(), named.reopen().unwrap())
    }

    #[test]
    fn another_open_file_is_excluded_from_the_range_only() {
        let (ours, theirs) = open_twice();
        let held = RangeLock::try_take(&ours, 100, 50).unwrap().unwrap();
        assert!(RangeLock::try_take(&theirs, 149, 1).unwrap().is_none());
        assert!(RangeLock::try_take(&theirs, 150, 1).unwrap().is_some());
        assert!(RangeLock::try_take(&theirs, 0, 100).unwrap().is_some());
        drop(held);
        assert!(RangeLock::try_take(&theirs, 100, 50).unwrap().is_some());
    }

    #[test]
    fn a_file_in_use_is_known_as_such_and_its_ranges_are_free() {
        let (ours, theirs) = open_twice();
        announce(&ours).unwrap();
        announce(&theirs).unwrap();
        let last = u64::try_from(libc::off_t::MAX - 1).unwrap();
        assert!(RangeLock::try_take(&theirs, last, 1).unwrap().is_none());
        assert!(RangeLock::try_take(&theirs, 0, 1 << 40).unwrap().is_some());
        drop(ours);
        assert!(RangeLock::try_take(&theirs, last, 1).unwrap().is_some());
    }

    #[test]
    fn whoever_does_not_let_go_is_not_waited_for_without_end() {
        let (ours, theirs) = open_twice();
        let held = RangeLock::try_take(&theirs, 0, 1).unwrap().unwrap();
        let take = || RangeLock::try_take(&ours, 0, 1);
        let given_up = in_time(Duration::ZERO, take).unwrap_err();
        assert_eq!(given_up.kind(), io::ErrorKind::TimedOut);
        drop(held);
        in_time(Duration::ZERO, take).unwrap();
    }

    #[test]
    fn closing_the_file_unlocks() {
        let (ours, theirs) = open_twice();
        // As after the death of its owner: nobody runs the destructor.
        std::mem::forget(RangeLock::try_take(&ours, 0, 10).unwrap().unwrap());
        assert!(RangeLock::try_take(&theirs, 0, 10).unwrap().is_none());
        drop(ours);
        assert!(RangeLock::try_take(&theirs, 0, 10).unwrap().is_some());
    }
}
