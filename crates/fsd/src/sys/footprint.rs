//! Memory that this process has used and does not need: given back to the system.
//!
//! What a program runs once stays mapped, and the heap keeps what was freed. Starting and mounting run megabytes of
//! code and free as much; a daemon that then serves for days needs little of either.

use std::ffi::c_void;
use std::fs::File;
use std::io::Read;
use std::slice;

use libc::{Elf64_Phdr, PF_W, PT_LOAD, c_int, dl_phdr_info, size_t};

use super::mapping;

/// Unmaps the pages of the executable and of mapped files, which come back from the page cache as they are used, and
/// gives freed heap back. Costs some 100 µs, and as much again while the code in use comes back. For a process that has begun, and
/// will be at rest for long.
pub fn give_back() {
    mapping::let_go();
    let mut segments = Segments::default();
    // SAFETY: `note` is called with the pointer to `segments`, which lives until this call returns, on this thread.
    unsafe { libc::dl_iterate_phdr(Some(note), (&raw mut segments).cast()) };
    for (start, length) in segments.found.into_iter().take(segments.count) {
        // SAFETY: the range is a segment of the executable that it may not write to, so its pages are those of the
        // file, and what is dropped here is read from it again as it was. The part that relocations are written to
        // before it becomes read-only belongs to a segment that is writable, and those are left alone.
        unsafe { libc::madvise(start as *mut c_void, length, libc::MADV_DONTNEED) };
    }
    #[cfg(target_env = "gnu")]
    // SAFETY: takes the heap's own locks; pointers into it stay valid.
    unsafe {
        libc::malloc_trim(0)
    };
}

/// More of files is not kept mapped: as much takes 2 MiB of page tables, which are not the page cache's.
const MOST_OF_FILES: u64 = 1 << 30;

/// Lets mapped files go once much of them is mapped, also of a process that is at work: to find a page again costs
/// less than to read it.
pub(crate) fn bound() {
    if mapped_of_files() > MOST_OF_FILES {
        mapping::let_go();
    }
}

/// Bytes of files that are in this process' page tables; guest memory and the heap are none.
fn mapped_of_files() -> u64 {
    /// More than twice what the kernel writes.
    const ROOM: usize = 4096;
    let mut status = [0; ROOM];
    let read = File::open("/proc/self/status").and_then(|mut file| file.read(&mut status));
    read.ok()
        .and_then(|read| rss_file(status.get(..read)?))
        .unwrap_or(0)
}

/// `RssFile` of `/proc/PID/status`, in bytes.
fn rss_file(status: &[u8]) -> Option<u64> {
    let mut lines = status.split(|byte| *byte == b'\n');
    let value = lines.find_map(|line| line.strip_prefix(b"RssFile:"))?;
    let kib = str::from_utf8(value).ok()?.trim().strip_suffix("kB")?;
    kib.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Linkers make two or three.
const SEGMENTS: usize = 8;

#[derive(Default)]
struct Segments {
    found: [(usize, usize); SEGMENTS],
    count: usize,
}

/// Notes the read-only segments of the first object, which is the executable, and ends the iteration.
extern "C" fn note(info: *mut dl_phdr_info, _size: size_t, data: *mut c_void) -> c_int {
    // SAFETY: the loader hands over a valid description for the time of this call.
    let info = unsafe { &*info };
    // SAFETY: it says where the headers are and how many; they are part of the object, which stays loaded.
    let headers: &[Elf64_Phdr] = unsafe { slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) };
    // SAFETY: `give_back` passes its own `Segments`, and nothing else refers to it meanwhile.
    let segments = unsafe { &mut *data.cast::<Segments>() };
    // SAFETY: has no preconditions.
    let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096);
    for header in headers {
        if header.p_type != PT_LOAD || header.p_flags & PF_W != 0 || segments.count == SEGMENTS {
            continue;
        }
        let (Ok(address), Ok(length)) = (
            usize::try_from(info.dlpi_addr + header.p_vaddr),
            usize::try_from(header.p_filesz),
        ) else {
            continue;
        };
        // Whole pages only: what shares a page with the next segment is mapped by both.
        let start = address.next_multiple_of(page);
        let end = (address + length) / page * page;
        if start < end {
            segments.found[segments.count] = (start, end - start);
            segments.count += 1;
        }
    }
    1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_runs_on_and_the_heap_is_whole() {
        let kept: Vec<String> = (0..1000).map(|n| n.to_string()).collect();
        give_back();
        assert!(kept.iter().enumerate().all(|(n, text)| *text == n.to_string()));
    }

    #[test]
    fn what_is_mapped_of_files_is_what_the_kernel_says() {
        assert_eq!(
            rss_file(b"Name:\tx\nRssFile:\t    9228 kB\nRssShmem:\t 1 kB\n"),
            Some(9228 << 10)
        );
        for other in [
            &b""[..],
            b"RssFile:\n",
            b"RssFile: 1 MB\n",
            b"RssFile: 18446744073709551615 kB\n",
        ] {
            assert_eq!(rss_file(other), None);
        }
        assert!(mapped_of_files() > 100 << 10, "this program is a file");
    }
}
