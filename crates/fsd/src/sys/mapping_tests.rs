#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Barrier;
use std::thread;

use rustix::fs::FallocateFlags;

use super::*;

/// Not whole pages.
const SIZE: usize = 5 * PAGE + 100;

/// No byte of it is zero, so that what is missing shows.
fn content(at: usize) -> u8 {
    u8::try_from(at % 251).unwrap() + 1
}

fn made() -> (File, Mapping) {
    let file = tempfile::tempfile().unwrap();
    let all: Vec<u8> = (0..SIZE).map(content).collect();
    file.write_all_at(&all, 0).unwrap();
    let mapping = Mapping::on_any_file_system(file.as_fd(), SIZE as u64).unwrap();
    (file, mapping)
}

/// What is read, into two pieces that lie apart; `None` if the file has to be asked.
fn read(mapping: &Mapping, at: usize, len: usize) -> Option<Vec<u8>> {
    let mut memory = vec![0xee; len + 64];
    let base = memory.as_mut_ptr();
    let first = len / 3;
    // SAFETY: both pieces are inside of `memory`, which nobody looks at while they live.
    let pieces = unsafe {
        [
            FileVolatileSlice::from_raw_ptr(base, first),
            FileVolatileSlice::from_raw_ptr(base.add(first + 64), len - first),
        ]
    };
    let read = mapping.read_at(&pieces, at as u64)?;
    assert_eq!(read, len);
    assert!(memory[first..first + 64].iter().all(|byte| *byte == 0xee));
    memory.drain(first..first + 64);
    Some(memory)
}

fn expected(at: usize, len: usize) -> Option<Vec<u8>> {
    Some((at..at + len).map(content).collect())
}

#[test]
fn it_reads_what_is_before_the_last_page() {
    let (_file, mapping) = made();
    for (at, len) in [(0, 1), (1, 4096), (0, 5 * PAGE), (5 * PAGE - 1, 1), (4095, 3)] {
        assert!(read(&mapping, at, len) == expected(at, len), "{len} at {at}");
    }
    for (at, len) in [(5 * PAGE - 1, 2), (5 * PAGE, 1), (SIZE, 1), (usize::MAX, 1)] {
        assert!(read(&mapping, at, len).is_none(), "{len} at {at}");
    }
}

proptest::proptest! {
    /// As a guest's buffers are: pages here and there, more of them together, and odd ends.
    #[test]
    fn any_pieces_get_what_is_theirs(
        pieces in proptest::collection::vec(
            proptest::prop_oneof![
                proptest::strategy::Just((0, PAGE)),
                proptest::strategy::Just((0, 3 * PAGE)),
                (0..40_usize, 0..2 * PAGE),
            ],
            1..12,
        ),
        at in 0..2 * PAGE,
    ) {
        const ROOM: usize = 4 * PAGE;
        let len: usize = pieces.iter().map(|(_, len)| len).sum();
        let file = tempfile::tempfile().unwrap();
        let all: Vec<u8> = (0..at + len + 2 * PAGE).map(content).collect();
        file.write_all_at(&all, 0).unwrap();
        let mapping = Mapping::on_any_file_system(file.as_fd(), all.len() as u64).unwrap();
        let mut memory = vec![0xee; (pieces.len() + 1) * ROOM];
        // The last first, each with room around it, and on a page but for its own offset.
        let first = memory.as_ptr().align_offset(PAGE);
        let place = |number: usize, skip: usize| first + (pieces.len() - 1 - number) * ROOM + skip;
        let base = memory.as_mut_ptr();
        let buffers: Vec<_> = pieces
            .iter()
            .enumerate()
            // SAFETY: inside of `memory`, which nobody looks at while they live.
            .map(|(number, (skip, len))| unsafe {
                FileVolatileSlice::from_raw_ptr(base.add(place(number, *skip)), *len)
            })
            .collect();
        proptest::prop_assert_eq!(mapping.read_at(&buffers, at as u64), Some(len));
        drop(buffers);
        let mut from = at;
        for (number, (skip, len)) in pieces.iter().enumerate() {
            let place = place(number, *skip);
            proptest::prop_assert!(memory[place..place + len] == all[from..from + len], "piece {}", number);
            memory[place..place + len].fill(0xee);
            from += len;
        }
        proptest::prop_assert!(memory.iter().all(|byte| *byte == 0xee), "beside the pieces");
    }
}

#[test]
fn a_file_of_one_page_is_read() {
    let file = tempfile::tempfile().unwrap();
    for size in [0, 1, PAGE as u64] {
        file.set_len(size).unwrap();
        assert!(Mapping::on_any_file_system(file.as_fd(), size).is_none());
    }
    file.set_len(PAGE as u64 + 1).unwrap();
    assert!(Mapping::on_any_file_system(file.as_fd(), PAGE as u64 + 1).is_some());
}

/// Also what was not cut off, and the part of a page that was: reading the file tells how long it is.
#[test]
fn of_a_file_that_became_shorter_nothing_is_taken() {
    for len in [0, 1, PAGE, 2 * PAGE + 1, 5 * PAGE - 1, 5 * PAGE] {
        let (file, mapping) = made();
        assert!(read(&mapping, 0, 5 * PAGE).is_some());
        file.set_len(len as u64).unwrap();
        for at in [0, PAGE, 2 * PAGE, 4 * PAGE] {
            assert_eq!(read(&mapping, at, PAGE), None, "{len} bytes left, {at}");
        }
    }
}

#[test]
fn what_is_cut_off_the_last_page_is_not_missed() {
    let (file, mapping) = made();
    file.set_len(5 * PAGE as u64 + 1).unwrap();
    assert!(read(&mapping, 0, 5 * PAGE) == expected(0, 5 * PAGE));
}

#[test]
fn after_a_fault_the_file_is_asked_also_when_it_is_long_enough_again() {
    let (file, mapping) = made();
    file.set_len(10).unwrap();
    assert_eq!(read(&mapping, 0, 10), None);
    file.set_len(SIZE as u64).unwrap();
    assert_eq!(read(&mapping, 0, 10), None);
}

#[test]
fn what_is_written_and_what_is_taken_out_is_seen_as_by_reading() {
    let (file, mapping) = made();
    assert!(read(&mapping, 0, 5 * PAGE).is_some());
    file.write_all_at(b"other", 3 * PAGE as u64).unwrap();
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&file, flags, 0, PAGE as u64).unwrap();
    for at in [0, 3 * PAGE] {
        let mut by_reading = vec![0; PAGE];
        file.read_exact_at(&mut by_reading, at as u64).unwrap();
        assert!(read(&mapping, at, PAGE) == Some(by_reading));
    }
}

#[test]
fn guest_memory_that_is_gone_costs_the_mapping_nothing() {
    let (_file, mapping) = made();
    let guest = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&guest, PAGE as u64).unwrap();
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a mapping of its own, at an address of the kernel's choice.
    let memory = unsafe {
        libc::mmap(
            null_mut(),
            2 * PAGE,
            access,
            libc::MAP_SHARED,
            guest.as_raw_fd(),
            0,
        )
    };
    assert_ne!(memory, libc::MAP_FAILED);
    // SAFETY: the mapping just made, which lives until the end of the test, and to which nothing refers.
    let piece = unsafe { FileVolatileSlice::from_raw_ptr(memory.cast(), 2 * PAGE) };
    assert_eq!(mapping.read_at(&[piece], 0), None);
    assert!(read(&mapping, 0, PAGE) == expected(0, PAGE));
    // SAFETY: mapped above.
    unsafe { libc::munmap(memory, 2 * PAGE) };
}

#[test]
fn only_file_systems_that_say_first_that_a_file_is_shorter_are_mapped() {
    let file = rustix::fs::memfd_create("tmpfs", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&file, SIZE as u64).unwrap();
    assert!(Mapping::new(file.as_fd(), SIZE as u64).is_none());
    assert!(Mapping::on_any_file_system(file.as_fd(), SIZE as u64).is_some());
}

/// How much of a mapping is in this process' page tables, in KiB.
fn resident(mapping: &Mapping) -> u64 {
    let wanted = format!("{:x}-", mapping.start.addr());
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut lines = smaps.lines().skip_while(|line| !line.starts_with(&wanted));
    let rss = lines.find_map(|line| line.strip_prefix("Rss:")).unwrap();
    rss.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn what_is_let_go_is_mapped_no_more_and_found_again() {
    let (_file, mapping) = made();
    assert!(read(&mapping, 0, 5 * PAGE).is_some());
    assert!(resident(&mapping) > 0);
    // Other tests of this process may read meanwhile, but not this mapping.
    let_go();
    assert_eq!(resident(&mapping), 0);
    assert!(read(&mapping, 0, 5 * PAGE) == expected(0, 5 * PAGE));
}

#[test]
fn nothing_is_left_of_one_that_is_dropped() {
    /// As no other test maps.
    const LENGTH: usize = 1237 * PAGE;
    let is_mapped = || {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let length = |line: &str| {
            let (start, end) = line.split_whitespace().next()?.split_once('-')?;
            Some(usize::from_str_radix(end, 16).ok()? - usize::from_str_radix(start, 16).ok()?)
        };
        maps.lines().any(|line| length(line) == Some(LENGTH))
    };
    let file = tempfile::tempfile().unwrap();
    file.set_len(LENGTH as u64).unwrap();
    let mapping = Mapping::on_any_file_system(file.as_fd(), LENGTH as u64).unwrap();
    assert!(is_mapped() && all().values().any(|length| *length == LENGTH));
    drop(mapping);
    assert!(!is_mapped() && all().values().all(|length| *length != LENGTH));
}

/// Readers, one that lets go, and one that makes the file shorter, wherever it likes: nothing that is taken is wrong.
#[test]
fn whatever_is_taken_while_the_file_becomes_shorter_is_right() {
    const PAGES: usize = 64;
    let all: Vec<u8> = (0..PAGES * PAGE + 100).map(content).collect();
    for round in 0..40_usize {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&all, 0).unwrap();
        let mapping = Mapping::on_any_file_system(file.as_fd(), all.len() as u64).unwrap();
        let begun = Barrier::new(3);
        thread::scope(|scope| {
            let reader = || {
                begun.wait();
                let pages = (0..PAGES).cycle().map(|page| page * 37 % PAGES * PAGE);
                // Until it is found shorter, which is soon.
                for page in pages {
                    let Some(read) = read(&mapping, page, PAGE) else {
                        return;
                    };
                    assert!(Some(read) == expected(page, PAGE), "{page}, round {round}");
                }
            };
            scope.spawn(reader);
            scope.spawn(reader);
            begun.wait();
            let_go();
            file.set_len((round * 7919 % (PAGES * PAGE)) as u64).unwrap();
        });
        assert_eq!(read(&mapping, 0, PAGE), None);
    }
}
