//! `fstatvfs` in the type that the FUSE library takes.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::{Errno, Result};

/// The figures of the file system that `fd` is on.
pub(crate) fn statvfs(fd: BorrowedFd<'_>) -> Result<libc::statvfs64> {
    // SAFETY: `statvfs64` consists of integers, for which all zeroes is a value.
    let mut figures: libc::statvfs64 = unsafe { std::mem::zeroed() };
    // SAFETY: `figures` is a live, writable `statvfs64`.
    if unsafe { libc::fstatvfs64(fd.as_raw_fd(), &raw mut figures) } == 0 {
        Ok(figures)
    } else {
        Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
    }
}
