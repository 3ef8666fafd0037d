//! Guests that change what was looked at, and places for an answer that are none.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Write;

use fuse_backend_rs::api::VfsOptions;
use fuse_backend_rs::api::filesystem::ZeroCopyWriter;
use vm_memory::{
    Bytes, GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryLoadGuard, GuestMemoryMmap,
};

use super::buffers::GuestWriter;
use super::*;
use crate::transport::testing::{Buffer, with_chain};

const REQUEST: u64 = 0x8000;
const ANSWER: u64 = 0x2000;

fn message(opcode: u32, nodeid: u64, argument: &[u8]) -> Vec<u8> {
    let len = u32::try_from(40 + argument.len()).unwrap();
    let head = [len, opcode, 42, 0];
    let mut raw: Vec<u8> = head.iter().flat_map(|word| word.to_le_bytes()).collect();
    raw.extend(nodeid.to_le_bytes());
    raw.resize(40, 0);
    raw.extend(argument);
    raw
}

fn buffer(addr: u64, len: usize, write: bool) -> Buffer {
    Buffer {
        addr,
        len: u32::try_from(len).unwrap(),
        write,
    }
}

/// A guest's memory with a request in it.
fn memory(raw: &[u8]) -> GuestMemoryLoadGuard<GuestMemoryMmap> {
    let map = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
    map.write_slice(raw, GuestAddress(REQUEST)).unwrap();
    GuestMemoryAtomic::new(map).memory()
}

#[test]
fn what_a_guest_changes_after_it_was_looked_at_changes_nothing() {
    let server = FuseServer::new(Arc::new(Vfs::new(VfsOptions::default())), Arc::default());
    // Then it is a STATFS, which would succeed.
    let first = message(opcode::MKDIR, 1, b"\0\0\0\0\0\0\0\0name\0");
    let memory = memory(&first);
    let buffers = [buffer(REQUEST, first.len(), false), buffer(ANSWER, 200, true)];
    with_chain(&memory, &buffers, |chain| {
        let mut scratch = Scratch::default();
        let request = Request::read(chain, &mut scratch).unwrap();
        assert_eq!(screen::screen(&request), Verdict::Pass);
        let then = message(17, 1, &[0xff; 13]);
        memory.write_slice(&then, GuestAddress(REQUEST)).unwrap();
        assert_eq!(server.dispatch(&request, chain), reply::HEADER_LEN);
        assert_eq!(reply::errno(chain), Errno::ROFS.raw_os_error());
    });
}

#[test]
fn a_request_is_read_to_the_end_that_its_header_had() {
    // Twice as long as it says, and a WRITE, whose data stay where they are.
    for (opcode, copied) in [(opcode::LOOKUP, 40), (opcode::WRITE, 80), (opcode::UNLINK, 540)] {
        let raw = message(opcode, 1, &[7; 500]);
        let memory = memory(&raw);
        if opcode == opcode::LOOKUP {
            memory.write_obj(u32::MAX, GuestAddress(REQUEST)).unwrap();
        }
        let buffers = [buffer(REQUEST, 100, false), buffer(REQUEST + 100, 440, false)];
        with_chain(&memory, &buffers, |chain| {
            let mut scratch = Scratch::default();
            let request = Request::read(chain, &mut scratch).unwrap();
            assert_eq!(request.raw().len(), copied);
            assert_eq!(request.raw()[40..], raw[40..copied]);
        });
    }
}

#[test]
fn a_place_beyond_the_last_address_is_no_place() {
    let memory = memory(&[0; 40]);
    let buffers = [buffer(REQUEST, 40, false), buffer(u64::MAX, 8000, true)];
    with_chain(&memory, &buffers, |chain| {
        let mut writer = GuestWriter::new(chain, 16).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"content").unwrap();
        let fault = Some(Errno::FAULT.raw_os_error());
        let read = writer.write_from(&mut file, 7, 0);
        assert_eq!(read.unwrap_err().raw_os_error(), fault);
        assert_eq!(writer.write(b"content").unwrap_err().raw_os_error(), fault);
    });
}

#[test]
fn what_is_forgotten_of_no_mount_is_dropped_and_the_rest_is_not() {
    let one = |nodeid: u64, count: u64| [nodeid.to_le_bytes(), count.to_le_bytes()].concat();
    let batch = |count: u32, list: &[Vec<u8>]| {
        let argument = [[count, 0].map(u32::to_le_bytes).concat(), list.concat()].concat();
        let raw = message(opcode::BATCH_FORGET, 0, &argument);
        let memory = memory(&raw);
        with_chain(&memory, &[buffer(REQUEST, raw.len(), false)], |chain| {
            let mut scratch = Scratch::default();
            let request = Request::read(chain, &mut scratch).unwrap();
            forget::batch(&request).collect::<Vec<_>>()
        })
    };
    let list = [one(7 << 56 | 3, 1), one(5, 2)];
    assert_eq!(batch(2, &list), [(7 << 56 | 3, 1), (5, 2)]);
    assert_eq!(batch(1, &list), [(7 << 56 | 3, 1)]);
    for lie in [3, u32::MAX] {
        assert_eq!(batch(lie, &list), []);
    }
    let shares = Shares::default();
    assert!(shares.is_mounted(5) && !shares.is_mounted(7 << 56 | 3));
    shares.put(7, None, false);
    assert!(shares.is_mounted(7 << 56 | 3));
    shares.take(7);
    assert!(!shares.is_mounted(7 << 56 | 3));
}
