//! The content of files: opened, read, written, copied, synced, closed.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use fuse_backend_rs::abi::fuse_abi::{FOPEN_IN_KILL_SUIDGID, WRITE_KILL_PRIV};
use fuse_backend_rs::api::filesystem::{ZeroCopyReader, ZeroCopyWriter};
use fuse_backend_rs::file_buf::FileVolatileSlice;
use fuse_backend_rs::file_traits::FileReadWriteVolatile;
use rustix::fs::{
    FallocateFlags, FileType, OFlags, SeekFrom, copy_file_range, fallocate, fdatasync, fstat, fsync, seek,
    syncfs,
};
use rustix::io::{Errno, Result, dup};

use super::Share;
use super::credentials::WithoutFsetid;
use super::files::OpenFile;
use crate::sys::volatile;

const SEEK_SET: u32 = 0;
const SEEK_END: u32 = 2;
const SEEK_DATA: u32 = 3;
const SEEK_HOLE: u32 = 4;

/// Of a guest's open flags, those that mean something to the host. `O_APPEND` comes with each write, `O_DIRECT` is
/// about the guest's own cache, `O_NOATIME` would be refused for files of other users.
pub(super) fn host_flags(guest: u32) -> OFlags {
    let kept = OFlags::RDWR | OFlags::WRONLY | OFlags::TRUNC | OFlags::DSYNC | OFlags::SYNC;
    (OFlags::from_bits_retain(guest) & kept) | OFlags::CLOEXEC
}

/// Whether a file opened with these flags may change.
pub(super) fn changes(flags: OFlags) -> bool {
    flags.intersects(OFlags::RDWR | OFlags::WRONLY | OFlags::TRUNC)
}

/// One file as the source or the target of guest memory.
struct Transfer<'a> {
    fd: BorrowedFd<'a>,
    append: bool,
}

impl FileReadWriteVolatile for Transfer<'_> {
    fn read_volatile(&mut self, _: FileVolatileSlice<'_>) -> io::Result<usize> {
        Err(Errno::SPIPE.into())
    }

    fn write_volatile(&mut self, _: FileVolatileSlice<'_>) -> io::Result<usize> {
        Err(Errno::SPIPE.into())
    }

    fn read_at_volatile(&mut self, slice: FileVolatileSlice<'_>, offset: u64) -> io::Result<usize> {
        self.read_vectored_at_volatile(&[slice], offset)
    }

    fn write_at_volatile(&mut self, slice: FileVolatileSlice<'_>, offset: u64) -> io::Result<usize> {
        self.write_vectored_at_volatile(&[slice], offset)
    }

    fn read_vectored_at_volatile(
        &mut self,
        buffers: &[FileVolatileSlice<'_>],
        offset: u64,
    ) -> io::Result<usize> {
        Ok(volatile::read_at(self.fd, buffers, offset)?)
    }

    fn write_vectored_at_volatile(
        &mut self,
        buffers: &[FileVolatileSlice<'_>],
        offset: u64,
    ) -> io::Result<usize> {
        Ok(volatile::write_at(self.fd, buffers, offset, self.append)?)
    }
}

/// Moves up to `size` bytes in steps of `step(offset, left)`, until it moves none. What was moved before an error
/// counts; the error shows again when the guest goes on there.
fn until_done(
    size: usize,
    offset: u64,
    mut step: impl FnMut(u64, usize) -> io::Result<usize>,
) -> io::Result<usize> {
    let mut done = 0;
    while done < size {
        match step(offset + done as u64, size - done) {
            Ok(0) => break,
            Ok(moved) => done += moved,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        }
    }
    Ok(done)
}

impl Share {
    /// Opens a file. Returns its handle.
    pub(crate) fn open(&self, nodeid: u64, guest_flags: u32, fuse_flags: u32) -> Result<u64> {
        let flags = host_flags(guest_flags);
        if changes(flags) {
            self.writable()?;
        }
        let inode = self.inodes.get(nodeid)?;
        let permit = self.common.budget.file().ok_or(Errno::NFILE)?;
        let _killing =
            WithoutFsetid::when(flags.contains(OFlags::TRUNC) && fuse_flags & FOPEN_IN_KILL_SUIDGID != 0)?;
        let fd = inode.open(&self.proc, flags)?;
        self.files
            .insert(OpenFile::file(nodeid, fd, changes(flags), permit))
    }

    /// Reads into the guest's buffers. Less than asked for means the end of the file.
    pub(crate) fn read(
        &self,
        nodeid: u64,
        handle: u64,
        to: &mut dyn ZeroCopyWriter,
        size: u32,
        offset: u64,
    ) -> io::Result<usize> {
        let file = self.files.get(handle, nodeid)?;
        let size = (size as usize).min(to.available_bytes());
        let mut transfer = Transfer {
            fd: file.as_fd(),
            append: false,
        };
        until_done(size, offset, |offset, left| {
            to.write_from(&mut transfer, left, offset)
        })
    }

    /// Writes from the guest's buffers; at the end of the file where the guest has it open for appending, so that
    /// what the host appends meanwhile is not overwritten.
    #[expect(clippy::too_many_arguments, reason = "the fields of the request")]
    pub(crate) fn write(
        &self,
        nodeid: u64,
        handle: u64,
        from: &mut dyn ZeroCopyReader,
        size: u32,
        offset: u64,
        guest_flags: u32,
        fuse_flags: u32,
        from_cache: bool,
    ) -> io::Result<usize> {
        self.writable()?;
        let file = self.files.get(handle, nodeid)?;
        let _killing = WithoutFsetid::when(fuse_flags & WRITE_KILL_PRIV != 0)?;
        let append = OFlags::from_bits_retain(guest_flags).contains(OFlags::APPEND) && !from_cache;
        let mut transfer = Transfer {
            fd: file.as_fd(),
            append,
        };
        until_done(size as usize, offset, |offset, left| {
            from.read_to(&mut transfer, left, offset)
        })
    }

    /// A descriptor of the guest was closed. Where closing is what makes the host report a failed write (NFS), it is
    /// reported now.
    pub(crate) fn flush(&self, nodeid: u64, handle: u64) -> Result<()> {
        let file = self.files.get(handle, nodeid)?;
        if file.writable {
            // Closing one of two descriptors is enough for that.
            drop(dup(&*file)?);
        }
        Ok(())
    }

    /// Closes a file.
    pub(crate) fn release(&self, nodeid: u64, handle: u64) -> Result<()> {
        self.files.release(handle, nodeid)
    }

    /// Has a file or directory written to disk.
    pub(crate) fn fsync(&self, nodeid: u64, handle: u64, data_only: bool) -> Result<()> {
        let file = self.files.get(handle, nodeid)?;
        if data_only {
            fdatasync(&*file)
        } else {
            fsync(&*file)
        }
    }

    /// Allocates, punches, zeroes, as `fallocate(2)`.
    pub(crate) fn fallocate(&self, nodeid: u64, handle: u64, mode: u32, offset: u64, len: u64) -> Result<()> {
        self.writable()?;
        let file = self.files.get(handle, nodeid)?;
        // Nothing says whether its process may keep the bits, so that they go, as on a change by a user's process.
        let _killing = WithoutFsetid::when(true)?;
        fallocate(&*file, FallocateFlags::from_bits_retain(mode), offset, len)
    }

    /// Finds data or a hole. Nothing depends on the position of a descriptor, so that it may move.
    pub(crate) fn lseek(&self, nodeid: u64, handle: u64, offset: u64, whence: u32) -> Result<u64> {
        let file = self.files.get(handle, nodeid)?;
        if file.listing.is_some() {
            return Err(Errno::ISDIR);
        }
        match whence {
            SEEK_SET => Ok(offset),
            SEEK_END => {
                let size = fstat(&*file)?.st_size.cast_unsigned();
                size.checked_add_signed(offset.cast_signed()).ok_or(Errno::INVAL)
            }
            SEEK_DATA => seek(&*file, SeekFrom::Data(offset)),
            SEEK_HOLE => seek(&*file, SeekFrom::Hole(offset)),
            _ => Err(Errno::INVAL),
        }
    }

    /// Copies on the host, without the data passing through the guest. `from` and `to` are node, handle and offset.
    pub(crate) fn copy_range(&self, from: (u64, u64, u64), to: (u64, u64, u64), len: usize) -> Result<usize> {
        self.writable()?;
        let source = self.files.get(from.1, from.0)?;
        let target = self.files.get(to.1, to.0)?;
        let (mut read_at, mut write_at) = (from.2, to.2);
        // As in `fallocate`.
        let _killing = WithoutFsetid::when(true)?;
        copy_file_range(&*source, Some(&mut read_at), &*target, Some(&mut write_at), len)
    }

    /// Has the file system that an inode is on written to disk; that of the share when there is no such inode.
    pub(crate) fn sync(&self, nodeid: Option<u64>) -> Result<()> {
        let inode = match nodeid {
            Some(nodeid) => self.inodes.get(nodeid)?,
            None => std::sync::Arc::clone(self.inodes.root()),
        };
        if inode.kind != FileType::Directory || inode.id.same_mount(&self.inodes.root().id) {
            return syncfs(&*self.root_dir);
        }
        syncfs(inode.open(&self.proc, OFlags::RDONLY | OFlags::DIRECTORY)?)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_guests_flags_reach_the_host_only_where_they_are_harmless() {
        assert_eq!(host_flags(u32::MAX) & OFlags::APPEND, OFlags::empty());
        for harmful in [
            OFlags::DIRECT,
            OFlags::PATH,
            OFlags::CREATE,
            OFlags::NONBLOCK,
            OFlags::TMPFILE,
        ] {
            let kept = OFlags::DIRECTORY | OFlags::SYNC;
            assert!(
                (host_flags(u32::MAX) & (harmful - kept)).is_empty(),
                "{harmful:?}"
            );
        }
        assert!(!changes(host_flags(0)));
        assert!(changes(host_flags(1)) && changes(host_flags(2)));
    }

    #[test]
    fn short_steps_are_continued_and_an_error_after_some_is_not_lost_data() {
        let mut steps = vec![
            Ok(3),
            Err(Errno::INTR.into()),
            Ok(2),
            Err(io::Error::from(Errno::NOSPC)),
        ]
        .into_iter();
        let moved = until_done(10, 100, |offset, left| {
            assert!((offset, left) == (100, 10) || offset - 100 + left as u64 == 10);
            steps.next().unwrap()
        });
        assert_eq!(moved.unwrap(), 5);
        let failed = until_done(10, 0, |_, _| Err(Errno::NOSPC.into()));
        assert_eq!(
            failed.unwrap_err().raw_os_error(),
            Some(Errno::NOSPC.raw_os_error())
        );
    }
}
