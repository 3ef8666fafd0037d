//! Mapped files that somebody truncates: what is missing reads as zeros, where it would kill the process.
//!
//! nydus maps bootstraps, and a frontend's memory is mapped; both are files of others. Copies would cost each daemon
//! of a host the memory that they share now.

use std::ffi::c_void;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use super::bus_error;

/// Pages that were asked for and are in their file no more.
static LOST: AtomicU64 = AtomicU64::new(0);
/// Whether such a page is replaced.
static OUTLIVES: AtomicBool = AtomicBool::new(false);
/// In bytes; the handler may not ask for it.
static PAGE: AtomicUsize = AtomicUsize::new(4096);

/// How many pages of mapped files were missing so far; never less than before.
pub(crate) fn lost_pages() -> u64 {
    LOST.load(Ordering::SeqCst)
}

/// From now on, a page that its file no longer has is a page of zeros of this process' own. For a process that serves
/// what others can change; its other SIGBUS stay what they were.
///
/// # Errors
/// What the system said.
pub fn outlive_truncation() -> io::Result<()> {
    // SAFETY: has no preconditions.
    if let Ok(page) = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }) {
        PAGE.store(page, Ordering::Relaxed);
    }
    bus_error::handle()?;
    OUTLIVES.store(true, Ordering::Relaxed);
    Ok(())
}

/// Puts a page of zeros where a file has none, if this process wants that. For the handler.
pub(super) fn replace(address: *mut c_void) -> bool {
    if !OUTLIVES.load(Ordering::Relaxed) {
        return false;
    }
    // Before the page is there: whoever reads its zeros finds them counted. If it cannot be, the process ends.
    LOST.fetch_add(1, Ordering::SeqCst);
    put_zeros(address)
}

fn put_zeros(address: *mut c_void) -> bool {
    let page = PAGE.load(Ordering::Relaxed);
    let start = address.map_addr(|address| address & !(page - 1));
    // SAFETY: the page belongs to a mapping whose file has nothing there (BUS_ADRERR), so nothing that could be read
    // is replaced, and the instruction that faulted finds memory it may read and write. `mmap` is a system call and
    // nothing else, and may be made in a handler.
    let mapped = unsafe {
        libc::mmap(
            start,
            page,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
            -1,
            0,
        )
    };
    mapped == start
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::io::Write;

    use nydus_utils::filemap::FileMapState;

    use super::*;

    #[test]
    fn what_a_truncated_file_had_reads_as_zeros() {
        outlive_truncation().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 16384]).unwrap();
        let map = FileMapState::new(file.try_clone().unwrap(), 0, 16384, false).unwrap();
        assert_eq!(map.get_slice::<u8>(0, 16384).unwrap(), [7; 16384]);
        file.set_len(4097).unwrap();
        let before = lost_pages();
        let now = map.get_slice::<u8>(0, 16384).unwrap();
        assert!(now[..4097].iter().all(|byte| *byte == 7));
        assert!(now[4097..].iter().all(|byte| *byte == 0));
        // The second page has its first byte, the last two have nothing.
        assert_eq!(lost_pages(), before + 2);
    }
}
