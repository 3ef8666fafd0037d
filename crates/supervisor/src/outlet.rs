//! The pipe a daemon prints into: a named one, so that a successor of its supervisor can go on reading.
//!
//! An anonymous pipe breaks when the supervisor is killed, and the daemon's next line with it. Of this one the daemon
//! itself has both ends (it is opened for reading and writing), so writing never fails, and what was printed while
//! nobody supervised it waits here. Nothing is lost; the price is that a daemon which prints more than the pipe holds
//! ([`ROOM_BYTES`]) has to wait for a successor. A file as its output would not make it wait, but nobody could bound
//! that file: it cannot be rotated under a writer that does not know of it, and RLIMIT_FSIZE would bound what the
//! guest writes too.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

/// Its name in the sandbox's directory.
pub(crate) const OUTLET: &str = "output";
/// What it holds: the most that can be had without privilege. nydusd prints about 100 bytes a line, and no line for
/// a request that succeeds.
const ROOM_BYTES: usize = 1 << 20;

/// The pipe's two ends: ours for reading, and the daemon's.
#[derive(Debug)]
pub(crate) struct Outlet {
    pub(crate) reader: OwnedFd,
    pub(crate) writer: OwnedFd,
}

impl Outlet {
    /// Makes it.
    pub(crate) fn make(dir: impl AsFd) -> io::Result<Self> {
        match rustix::fs::mknodat(&dir, OUTLET, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
        let reader = reopen(&dir)?;
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let writer = rustix::fs::openat(&dir, OUTLET, flags, Mode::empty())?;
        // Less room is still a pipe: the limit for all of a user's pipes may be reached.
        if let Err(errno) = rustix::pipe::fcntl_setpipe_size(&writer, ROOM_BYTES) {
            tracing::debug!(%errno, "the daemon's output has the usual room");
        }
        Ok(Self { reader, writer })
    }
}

/// The reading end of one that is there.
pub(crate) fn reopen(dir: impl AsFd) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(dir, OUTLET, flags, Mode::empty())?)
}
