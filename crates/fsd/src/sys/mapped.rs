//! Mapped files that somebody truncates: what is missing reads as zeros, where it would kill the process.
//!
//! nydus maps bootstraps, and a frontend's memory is mapped; both are files of others. Copies would cost each daemon
//! of a host the memory that they share now.

use std::ffi::{c_int, c_void};
use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use libc::siginfo_t;

use super::guarded;

/// Pages that were asked for and are in their file no more.
static LOST: AtomicU64 = AtomicU64::new(0);
/// In bytes; the handler may not ask for it.
static PAGE: AtomicUsize = AtomicUsize::new(4096);

/// How many pages of mapped files were missing so far; never less than before.
pub(crate) fn lost_pages() -> u64 {
    LOST.load(Ordering::Relaxed)
}

/// From now on, a page that its file no longer has is a page of zeros of this process' own. For a process that serves
/// what others can change; its other SIGBUS stay fatal.
///
/// # Errors
/// What the system said.
pub fn outlive_truncation() -> io::Result<()> {
    // SAFETY: has no preconditions.
    if let Ok(page) = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }) {
        PAGE.store(page, Ordering::Relaxed);
    }
    // SAFETY: all of it is plain numbers, for which zeros are values.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    action.sa_sigaction = on_sigbus as *const () as usize;
    // Rust gives each of its threads a stack for signals.
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: `action` is complete, its handler does only what a handler may, and the old action is not asked for.
    if unsafe { libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut()) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

extern "C" fn on_sigbus(_signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel hands over what it knows of the signal for the time of this call; of a fault that includes
    // the address, which is read as a number otherwise.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr()) };
    // A copy out of a mapping has to know that there was nothing, also where this handler came later than its own.
    // SAFETY: the kernel has handed it over with the signal.
    if unsafe { guarded::end_copy(code, address, context) } {
        return;
    }
    if code == libc::BUS_ADRERR && replace(address) {
        LOST.fetch_add(1, Ordering::Relaxed);
        return;
    }
    // SAFETY: both calls may be made in a handler. The signal is blocked in it, and ends the process afterwards.
    unsafe {
        libc::signal(libc::SIGBUS, libc::SIG_DFL);
        libc::raise(libc::SIGBUS);
    }
}

/// Puts a page of zeros where there is none.
fn replace(address: *mut c_void) -> bool {
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
