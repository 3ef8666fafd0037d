//! Reading and writing files straight from and to guest memory.
//!
//! Guest memory changes under us, so it is never a Rust slice here: only its addresses go to the kernel. Loops over
//! short transfers are the caller's, `passthrough/data.rs`.

use std::os::fd::{AsRawFd, BorrowedFd};

use fuse_backend_rs::file_buf::FileVolatileSlice;
use rustix::io::{Errno, Result};
use smallvec::SmallVec;

/// Pieces of a request that fit on the stack: one for each page of the largest that a guest sends, whether they follow
/// each other or not.
const INLINE: usize = 257;
/// `IOV_MAX`: what the kernel takes at once.
const MOST: usize = 1024;

/// Reads into `buffers` from `offset` on, with one system call. Returns the number of bytes.
pub(crate) fn read_at(fd: BorrowedFd<'_>, buffers: &[FileVolatileSlice<'_>], offset: u64) -> Result<usize> {
    let (fd, offset) = (fd.as_raw_fd(), offset.cast_signed());
    with_iovecs(buffers, |iovecs| {
        // One buffer goes the short way: the kernel does not have to fetch and check a list.
        if let [one] = iovecs {
            // SAFETY: the iovec is made of `FileVolatileSlice`s, memory that is mapped for as long as `buffers` is
            // borrowed and that its owner lets anybody write to at any time. The kernel touches nothing else.
            return check(unsafe { libc::pread(fd, one.iov_base, one.iov_len, offset) });
        }
        // SAFETY: as above, for each iovec.
        check(unsafe { libc::preadv(fd, iovecs.as_ptr(), count(iovecs), offset) })
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
    let (fd, offset) = (fd.as_raw_fd(), offset.cast_signed());
    with_iovecs(buffers, |iovecs| match iovecs {
        [one] if !append => {
            // SAFETY: as in `read_at`; the kernel only reads from the buffers.
            check(unsafe { libc::pwrite(fd, one.iov_base, one.iov_len, offset) })
        }
        _ => {
            let flags = if append { libc::RWF_APPEND } else { 0 };
            // SAFETY: as above.
            check(unsafe { libc::pwritev2(fd, iovecs.as_ptr(), count(iovecs), offset, flags) })
        }
    })
}

fn check(result: isize) -> Result<usize> {
    usize::try_from(result)
        .map_err(|_| Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
}

fn count(iovecs: &[libc::iovec]) -> i32 {
    i32::try_from(iovecs.len()).unwrap_or(0)
}

/// Makes one of neighbours: pages that a guest names one by one often lie side by side, and the kernel copies a long
/// piece faster than many short ones.
pub(super) fn with_iovecs<R>(buffers: &[FileVolatileSlice<'_>], call: impl FnOnce(&[libc::iovec]) -> R) -> R {
    let mut iovecs: SmallVec<[libc::iovec; INLINE]> = SmallVec::new();
    for buffer in buffers {
        let base: *mut u8 = buffer.as_ptr();
        if let Some(last) = iovecs.last_mut()
            && last.iov_base.cast::<u8>().wrapping_add(last.iov_len) == base
        {
            last.iov_len += buffer.len();
        } else if iovecs.len() == MOST {
            break;
        } else {
            iovecs.push(libc::iovec {
                iov_base: base.cast(),
                iov_len: buffer.len(),
            });
        }
    }
    call(&iovecs)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;

    use super::*;

    fn pieces<'m>(memory: &'m mut [u8], places: &[(usize, usize)]) -> Vec<FileVolatileSlice<'m>> {
        let base = memory.as_mut_ptr();
        let of = |&(at, len): &(usize, usize)| {
            assert!(at + len <= memory.len());
            // SAFETY: the piece is inside of `memory`, which is borrowed for as long as the pieces live, and nobody
            // else looks at it meanwhile.
            unsafe { FileVolatileSlice::from_raw_ptr(base.add(at), len) }
        };
        places.iter().map(of).collect()
    }

    #[test]
    fn pieces_are_filled_and_written_in_their_order_whether_neighbours_or_not() {
        let content: Vec<u8> = (0..=u8::MAX).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&content).unwrap();
        let layouts: [&[(usize, usize)]; 5] = [
            &[(0, 64)],
            &[(0, 10), (10, 20), (30, 5)],
            &[(30, 5), (10, 20), (0, 10)],
            &[(0, 10), (10, 0), (10, 6), (40, 3), (43, 2), (20, 4)],
            &[],
        ];
        for layout in layouts {
            let mut memory = vec![0; 64];
            let length = layout.iter().map(|p| p.1).sum::<usize>();
            let got = read_at(file.as_fd(), &pieces(&mut memory, layout), 7).unwrap();
            assert_eq!(got, length);
            let order = |memory: &[u8]| {
                layout
                    .iter()
                    .flat_map(|&(at, len)| memory[at..at + len].to_vec())
                    .collect::<Vec<u8>>()
            };
            assert_eq!(order(&memory), content[7..7 + length], "{layout:?}");

            let back = tempfile::tempfile().unwrap();
            for append in [false, true] {
                let wrote = write_at(back.as_fd(), &pieces(&mut memory, layout), 0, append).unwrap();
                assert_eq!(wrote, length);
            }
            let mut twice = Vec::new();
            std::io::Read::read_to_end(&mut &back, &mut twice).unwrap();
            assert_eq!(twice, [order(&memory), order(&memory)].concat(), "{layout:?}");
        }
    }
}
