//! Files read through a mapping: without a system call, and without finding each page anew.
//!
//! A mapping says less of its file than reading it does. Behind the end of a file that became shorter there is no
//! memory, which ends the copy (`guarded.rs`); in the page that the new end lies in, there are zeros. So the last page
//! is never copied from, and looked at after each copy: while that is there, all pages before it are what the file
//! has. For that, the file system must say that a file is shorter before it changes a page of it: ext4 and btrfs do,
//! XFS does not, and a mapping of a network's file system hears of it late, if at all.
//!
//! Whatever is in the way, the answer is that nothing was read, and the file itself says why when it is asked.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use fuse_backend_rs::file_buf::FileVolatileSlice;

use super::guarded::{ALIGNED, Fault, Guard, PAGE, TOGETHER};
use super::volatile::with_iovecs;

/// `EXT4_SUPER_MAGIC` and `BTRFS_SUPER_MAGIC`.
const FILE_SYSTEMS: [i64; 2] = [0xef53, 0x9123_683e];

/// A file's content, mapped for reading. What holds it holds the mapping; the file may be closed.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    /// Bytes before the last page.
    length: usize,
    guard: Guard,
    /// It did not read once. The file may do better.
    failed: AtomicBool,
}

// SAFETY: the address is that of a mapping which belongs to the value alone, and is only copied from; threads may do
// so at once, and any of them may unmap it when it has the value to itself.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps a file of `size` bytes; `None` where it had better be read.
    pub(crate) fn new(file: BorrowedFd<'_>, size: u64) -> Option<Self> {
        let found = rustix::fs::fstatfs(file).ok()?;
        FILE_SYSTEMS
            .iter()
            .any(|magic| i128::from(found.f_type) == i128::from(*magic))
            .then(|| Self::on_any_file_system(file, size))?
    }

    fn on_any_file_system(file: BorrowedFd<'_>, size: u64) -> Option<Self> {
        let guard = Guard::new()?;
        let length = (usize::try_from(size).ok()?.checked_sub(1)?) / PAGE * PAGE;
        if length == 0 {
            return None;
        }
        let mut all = all();
        // SAFETY: a mapping at an address of the kernel's choice, which nobody else knows.
        let start = unsafe {
            libc::mmap(
                null_mut(),
                length + PAGE,
                libc::PROT_READ,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return None;
        }
        let start = NonNull::new(start.cast::<u8>())?;
        all.insert(start.addr().get(), length + PAGE);
        Some(Self {
            start,
            length,
            guard,
            failed: AtomicBool::new(false),
        })
    }

    /// Reads into `buffers` from `offset` on, as `volatile::read_at` does. `None` if it can't, and the file has to be
    /// asked; what is in the buffers then means nothing.
    pub(crate) fn read_at(&self, buffers: &[FileVolatileSlice<'_>], offset: u64) -> Option<usize> {
        if self.failed.load(Ordering::Relaxed) {
            return None;
        }
        let offset = usize::try_from(offset).ok()?;
        with_iovecs(buffers, |iovecs| {
            let wanted: usize = iovecs.iter().map(|iovec| iovec.iov_len).sum();
            if wanted > self.length.checked_sub(offset)? {
                return None;
            }
            let mut copy = Copy {
                guard: self.guard,
                // SAFETY: `wanted` bytes from there on are inside of the mapping, so it is.
                from: unsafe { self.start.as_ptr().add(offset) },
                waiting: [null_mut(); TOGETHER],
                waits: 0,
            };
            for iovec in iovecs {
                // SAFETY: what is taken is inside of the mapping, as `wanted` is, and that lives as long as `self`.
                // The iovec is made of `FileVolatileSlice`s, which are mapped for as long as `buffers` is borrowed.
                // Neither is ever behind a reference.
                let copied = unsafe { copy.take(iovec.iov_base.cast(), iovec.iov_len) };
                copied.map_err(|fault| self.note(fault)).ok()?;
            }
            // SAFETY: as above.
            let copied = unsafe { copy.finish() };
            copied.map_err(|fault| self.note(fault)).ok()?;
            // SAFETY: the page behind `length` belongs to the mapping.
            let whole = unsafe { self.guard.look(self.start.as_ptr().add(self.length)) };
            whole.map_err(|fault| self.note(fault)).ok()?;
            Some(wanted)
        })
    }

    /// Of the guest's memory, the kernel says more when it is asked to copy to it; it is no fault of the file's.
    fn note(&self, fault: Fault) {
        let inside = fault.address.wrapping_sub(self.start.addr().get()) < self.length + PAGE;
        if inside {
            self.failed.store(true, Ordering::Relaxed);
        }
    }
}

/// A copy to several places in turn. Pages wait until there are enough to be copied together.
struct Copy {
    guard: Guard,
    /// What waits begins here.
    from: *const u8,
    waiting: [*mut u8; TOGETHER],
    waits: usize,
}

impl Copy {
    /// Copies the next bytes, or has them wait.
    ///
    /// # Safety
    /// As of [`Guard::copy`], until [`Copy::finish`].
    unsafe fn take(&mut self, mut to: *mut u8, mut len: usize) -> Result<(), Fault> {
        while len >= PAGE && to.addr().is_multiple_of(ALIGNED) {
            self.waiting[self.waits] = to;
            self.waits += 1;
            if self.waits == TOGETHER {
                // SAFETY: by this function's contract.
                unsafe { self.guard.copy_pages(self.waiting, self.from) }?;
                self.from = self.from.wrapping_add(TOGETHER * PAGE);
                self.waits = 0;
            }
            (to, len) = (to.wrapping_add(PAGE), len - PAGE);
        }
        if len == 0 {
            return Ok(());
        }
        // SAFETY: by this function's contract.
        unsafe {
            self.finish()?;
            self.guard.copy(to, self.from, len)?;
        }
        self.from = self.from.wrapping_add(len);
        Ok(())
    }

    /// Copies what waits.
    ///
    /// # Safety
    /// As of [`Copy::take`].
    unsafe fn finish(&mut self) -> Result<(), Fault> {
        for to in &self.waiting[..std::mem::take(&mut self.waits)] {
            // SAFETY: by this function's contract.
            unsafe { self.guard.copy(*to, self.from, PAGE) }?;
            self.from = self.from.wrapping_add(PAGE);
        }
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let mut all = all();
        all.remove(&self.start.addr().get());
        // SAFETY: made by `new` with this length, unmapped only here, and nothing of it is borrowed any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length + PAGE) };
    }
}

/// All mappings: their lengths by their addresses. Held while one comes or goes.
fn all() -> MutexGuard<'static, BTreeMap<usize, usize>> {
    static ALL: Mutex<BTreeMap<usize, usize>> = Mutex::new(BTreeMap::new());
    ALL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes the pages out of all mappings: they stay in the page cache, and are found there again as they are read. They
/// count as this process' memory while they are mapped, and two MiB of page tables for each GiB do.
pub(crate) fn let_go() {
    for (start, length) in all().iter() {
        // SAFETY: the range is a mapping of a file that is only read, and stays one while the lock is held. Whoever
        // copies from it meanwhile gets the same pages again.
        unsafe { libc::madvise(*start as *mut libc::c_void, *length, libc::MADV_DONTNEED) };
    }
}

#[cfg(test)]
#[path = "mapping_tests.rs"]
mod tests;
