//! Reading and writing files straight from and to guest memory.
//!
//! Guest memory changes under us, so it is never a Rust slice here: only its addresses go to the kernel. Loops over
//! short transfers are the caller's, `passthrough/data.rs`.

use std::os::fd::{AsRawFd, BorrowedFd};

use fuse_backend_rs::file_buf::FileVolatileSlice;
use rustix::io::{Errno, Result};

/// Buffers of a request that fit on the stack. A guest's 4 KiB requests have one or two, its larger ones one per
/// page that is not contiguous.
const INLINE: usize = 32;
/// `IOV_MAX`: what the kernel takes at once.
const MOST: usize = 1024;

/// Reads into `buffers` from `offset` on, with one system call. Returns the number of bytes.
pub(crate) fn read_at(fd: BorrowedFd<'_>, buffers: &[FileVolatileSlice<'_>], offset: u64) -> Result<usize> {
    with_iovecs(buffers, |iovecs, count| {
        // SAFETY: each iovec is a `FileVolatileSlice`, memory that is mapped for as long as `buffers` is borrowed
        // and that its owner lets anybody write to at any time. The kernel touches nothing else.
        check(unsafe { libc::preadv(fd.as_raw_fd(), iovecs, count, offset.cast_signed()) })
    })
}

/// Writes `buffers` from `offset` on, or at the end of the file when `append`, with one system call. Returns the
/// number of bytes.
pub(crate) fn write_at(
    fd: BorrowedFd<'_>,
    buffers: &[FileVolatileSlice<'_>],
    offset: u64,
    append: bool,
) -> Result<usize> {
    with_iovecs(buffers, |iovecs, count| {
        let flags = if append { libc::RWF_APPEND } else { 0 };
        // SAFETY: as in `read_at`; the kernel only reads from the buffers.
        check(unsafe { libc::pwritev2(fd.as_raw_fd(), iovecs, count, offset.cast_signed(), flags) })
    })
}

fn check(result: isize) -> Result<usize> {
    usize::try_from(result)
        .map_err(|_| Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
}

fn with_iovecs<R>(buffers: &[FileVolatileSlice<'_>], call: impl FnOnce(*const libc::iovec, i32) -> R) -> R {
    let buffers = &buffers[..buffers.len().min(MOST)];
    let count = i32::try_from(buffers.len()).unwrap_or(0);
    let iovec = |buffer: &FileVolatileSlice<'_>| libc::iovec {
        iov_base: buffer.as_ptr().cast(),
        iov_len: buffer.len(),
    };
    if buffers.len() <= INLINE {
        let mut inline = [libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        }; INLINE];
        for (slot, buffer) in inline.iter_mut().zip(buffers) {
            *slot = iovec(buffer);
        }
        call(inline.as_ptr(), count)
    } else {
        let many: Vec<_> = buffers.iter().map(iovec).collect();
        call(many.as_ptr(), count)
    }
}
