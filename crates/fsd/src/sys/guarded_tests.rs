#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::env;
use std::ffi::c_int;
use std::mem::zeroed;
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};
use std::ptr::null_mut;

use libc::{SIGBUS, sigaction, siginfo_t};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use super::*;

/// Pages of a file that can be made shorter.
struct Pages {
    file: rustix::fd::OwnedFd,
    start: *mut u8,
    len: usize,
}

impl Pages {
    /// Two of them.
    fn new(fill: u8) -> Self {
        Self::many(2, fill)
    }

    fn many(count: usize, fill: u8) -> Self {
        let file = memfd_create("pages", MemfdFlags::CLOEXEC).unwrap();
        let len = count * PAGE;
        ftruncate(&file, len as u64).unwrap();
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a mapping of its own, at an address of the kernel's choice.
        let start = unsafe { libc::mmap(null_mut(), len, access, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        assert_ne!(start, libc::MAP_FAILED);
        // SAFETY: inside of the mapping just made.
        unsafe { start.cast::<u8>().write_bytes(fill, len) };
        Self {
            file,
            start: start.cast(),
            len,
        }
    }

    fn shorten(&self, len: usize) {
        ftruncate(&self.file, len as u64).unwrap();
    }

    fn at(&self, at: usize) -> *mut u8 {
        assert!(at < self.len);
        self.start.wrapping_add(at)
    }

    fn byte(&self, at: usize) -> u8 {
        // SAFETY: inside of the mapping; the tests look only where there is memory, or mean to die of it.
        unsafe { self.at(at).read_volatile() }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: what `new` has mapped.
        unsafe { libc::munmap(self.start.cast(), self.len) };
    }
}

fn copy(to: &Pages, at: usize, from: &Pages, len: usize) -> Result<(), Fault> {
    assert!(at + len <= to.len.min(from.len));
    // SAFETY: both are inside of their mappings.
    unsafe { Guard::new().unwrap().copy(to.at(at), from.at(at), len) }
}

#[test]
fn what_is_there_is_copied_and_nothing_beside_it() {
    let (from, to) = (Pages::new(7), Pages::new(1));
    for (at, len) in [(0, 0), (1, 1), (10, 5000), (PAGE - 1, 2)] {
        copy(&to, at, &from, len).unwrap();
    }
    let copied: Vec<usize> = (0..2 * PAGE).filter(|at| to.byte(*at) == 7).collect();
    assert!(copied.iter().copied().eq([1].into_iter().chain(10..5010)));
    // SAFETY: inside of the mapping.
    unsafe { Guard::new().unwrap().look(from.at(PAGE)) }.unwrap();
}

#[test]
fn a_copy_ends_where_its_source_does() {
    let (from, to) = (Pages::new(7), Pages::new(1));
    from.shorten(PAGE);
    let fault = copy(&to, PAGE - 100, &from, 200).unwrap_err();
    assert_eq!(fault.address, from.at(PAGE).addr());
    assert_eq!((to.byte(PAGE - 1), to.byte(PAGE)), (7, 1));
    // SAFETY: inside of the mapping.
    let looked = unsafe { Guard::new().unwrap().look(from.at(PAGE + 5)) };
    assert_eq!(looked.unwrap_err().address, from.at(PAGE + 5).addr());
    from.shorten(2 * PAGE);
    copy(&to, PAGE - 100, &from, 200).unwrap();
    assert_eq!(to.byte(PAGE), 0, "it goes on once there is memory again");
}

#[test]
fn a_copy_ends_where_there_is_no_room_for_it() {
    let (from, to) = (Pages::new(7), Pages::new(1));
    to.shorten(PAGE);
    let fault = copy(&to, PAGE - 100, &from, 200).unwrap_err();
    assert_eq!(fault.address, to.at(PAGE).addr());
    assert_eq!(to.byte(PAGE - 1), 7);
}

/// Four pages of a source to the pages of a destination, in this order.
fn copy_pages(to: &Pages, order: [usize; TOGETHER], from: &Pages, at: usize) -> Result<(), Fault> {
    assert!(at + TOGETHER * PAGE <= from.len);
    let places = order.map(|page| to.at(page * PAGE));
    // SAFETY: all are inside of their mappings.
    unsafe { Guard::new().unwrap().copy_pages(places, from.at(at)) }
}

fn content(at: usize) -> u8 {
    u8::try_from(at % 251).unwrap()
}

#[test]
fn pages_are_copied_to_where_each_belongs_and_nothing_beside_them() {
    let (from, to) = (Pages::many(5, 0), Pages::many(8, 0xee));
    for at in 0..from.len {
        // SAFETY: inside of the mapping.
        unsafe { from.at(at).write(content(at)) };
    }
    for skipped in [0, 1, 15, 64, 2000, PAGE] {
        let order = [6, 1, 2, 4];
        copy_pages(&to, order, &from, skipped).unwrap();
        for (number, page) in order.into_iter().enumerate() {
            let is_right = |at| to.byte(page * PAGE + at) == content(skipped + number * PAGE + at);
            assert!((0..PAGE).all(is_right), "page {number} from {skipped} on");
        }
        for page in [0, 3, 5, 7] {
            assert!(
                (0..PAGE).all(|at| to.byte(page * PAGE + at) == 0xee),
                "page {page}"
            );
        }
    }
}

#[test]
fn copying_pages_ends_where_one_of_them_is_not_there() {
    let order = [3, 0, 2, 1];
    for missing in 1..TOGETHER {
        let (from, to) = (Pages::many(4, 7), Pages::many(4, 1));
        from.shorten(missing * PAGE);
        let fault = copy_pages(&to, order, &from, 0).unwrap_err();
        assert_eq!(fault.address, from.at(missing * PAGE).addr());
        from.shorten(4 * PAGE);
        copy_pages(&to, order, &from, 0).unwrap();
        assert_eq!(
            to.byte(order[missing] * PAGE),
            0,
            "it goes on once there is memory again"
        );

        to.shorten(missing * PAGE);
        let fault = copy_pages(&to, order, &from, 0).unwrap_err();
        let page = order.iter().find(|page| **page >= missing).unwrap() * PAGE;
        assert_eq!(fault.address, to.at(page).addr());
    }
}

#[test]
fn a_copy_ends_also_where_what_is_missing_reads_as_zeros_otherwise() {
    super::super::mapped::outlive_truncation().unwrap();
    let (from, to) = (Pages::new(7), Pages::new(1));
    from.shorten(PAGE);
    copy(&to, 0, &from, 2 * PAGE).unwrap_err();
    assert_eq!(to.byte(PAGE), 1);
    from.byte(PAGE);
    copy(&to, 0, &from, 2 * PAGE).unwrap();
    assert_eq!(to.byte(PAGE), 0, "there is memory now, which is no file's");
}

#[test]
fn threads_end_their_own_copies() {
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let (from, to) = (Pages::new(7), Pages::new(1));
                let (more, places) = (Pages::many(4, 7), Pages::many(4, 1));
                for _ in 0..500 {
                    copy(&to, 0, &from, 2 * PAGE).unwrap();
                    from.shorten(PAGE);
                    copy(&to, 0, &from, 2 * PAGE).unwrap_err();
                    from.shorten(2 * PAGE);
                    copy_pages(&places, [0, 1, 2, 3], &more, 0).unwrap();
                    more.shorten(PAGE);
                    copy_pages(&places, [0, 1, 2, 3], &more, 0).unwrap_err();
                    more.shorten(4 * PAGE);
                }
            });
        }
    });
}

/// Which of `WAYS` this process is to go, if it is one that is to.
const WAY: &str = "NYDUSBOX_TEST_BUS_ERROR";
/// What a handler that was there before ends the process with.
const HANDLED: c_int = 42;

type Way = (&'static str, fn(), fn(ExitStatus) -> bool);

/// How a process gets a SIGBUS that is no copy's, and how it ends.
const WAYS: [Way; 5] = [
    (
        "a fault, nothing to handle it",
        || {
            before(libc::SIG_DFL, 0);
            fault();
        },
        by_signal,
    ),
    (
        "a signal, nothing to handle it",
        || {
            before(libc::SIG_DFL, 0);
            sent();
        },
        by_signal,
    ),
    (
        "a fault, signals ignored",
        || {
            before(libc::SIG_IGN, 0);
            sent();
            fault();
        },
        by_signal,
    ),
    (
        "a fault, a handler",
        || {
            let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = end_if_told;
            before(handler as usize, libc::SA_SIGINFO);
            fault();
        },
        |status| status.code() == Some(HANDLED),
    ),
    (
        "a signal, a simple handler",
        || {
            let handler: extern "C" fn(c_int) = end;
            before(handler as usize, 0);
            sent();
        },
        |status| status.code() == Some(HANDLED),
    ),
];

fn by_signal(status: ExitStatus) -> bool {
    status.signal() == Some(SIGBUS)
}

extern "C" fn end(_: c_int) {
    // SAFETY: what a handler may call.
    unsafe { libc::_exit(HANDLED) }
}

extern "C" fn end_if_told(signal: c_int, info: *mut siginfo_t, _: *mut c_void) {
    // SAFETY: the kernel has handed it over.
    if !unsafe { (*info).si_addr() }.is_null() {
        end(signal);
    }
}

/// Puts something in place before ours, which then has proved to work.
fn before(handler: usize, flags: c_int) {
    // SAFETY: all zeroes is a value.
    let mut action = unsafe { zeroed::<sigaction>() };
    action.sa_sigaction = handler;
    action.sa_flags = flags;
    // SAFETY: the handlers above do what handlers may.
    let put = unsafe { sigaction(SIGBUS, &raw const action, null_mut()) };
    assert_eq!(put, 0);
    let (from, to) = (Pages::new(7), Pages::new(1));
    from.shorten(PAGE);
    copy(&to, 0, &from, 2 * PAGE).unwrap_err();
}

fn fault() {
    let pages = Pages::new(7);
    pages.shorten(PAGE);
    pages.byte(PAGE);
}

fn sent() {
    // SAFETY: has no preconditions.
    unsafe { libc::raise(SIGBUS) };
}

#[test]
fn what_is_no_copys_is_as_it_would_be_without_us() {
    if let Some(way) = env::var_os(WAY) {
        let (_, go, _) = WAYS.iter().find(|(name, ..)| *name == way).unwrap();
        go();
        return;
    }
    for (name, _, is_right) in WAYS {
        let status = Command::new(env::current_exe().unwrap())
            .args([
                "--exact",
                "sys::guarded::tests::what_is_no_copys_is_as_it_would_be_without_us",
            ])
            .env(WAY, name)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert!(is_right(status), "{name}: {status}");
    }
}
