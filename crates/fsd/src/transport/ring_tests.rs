use std::fs::File;
use std::os::unix::fs::FileExt;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, memfd_create};
use vhost::vhost_user::message::VhostUserSingleMemoryRegion;

use super::super::memory::MemoryTable;
use super::*;

const SIZE: u16 = 8;
const MEMORY_BYTES: u64 = 0x3000;
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;

/// A guest with one ring, which it has set up.
struct Guest {
    memory: File,
    table: MemoryTable,
    ring: Ring,
}

impl Guest {
    fn new(event_idx: bool) -> Self {
        let memory = File::from(memfd_create("guest", MemfdFlags::CLOEXEC).unwrap());
        memory.set_len(MEMORY_BYTES).unwrap();
        let mut guest = Self {
            memory,
            table: MemoryTable::default(),
            ring: Ring::default(),
        };
        guest.add_memory();
        let at = GuestAddress;
        assert!(guest.ring.set_size(SIZE.into()));
        assert!(guest.ring.set_addresses(at(0), at(AVAIL), at(USED)));
        guest.ring.set_enabled(true);
        guest.ring.set_memory(guest.table.handle());
        guest.ring.start(event_idx);
        guest
    }

    fn region() -> VhostUserSingleMemoryRegion {
        VhostUserSingleMemoryRegion::new(0, MEMORY_BYTES, 0, 0)
    }

    fn add_memory(&mut self) {
        let file = self.memory.try_clone().unwrap();
        self.table.add(&Self::region(), file).unwrap();
    }

    fn write_u16(&self, at: u64, value: u16) {
        self.memory.write_all_at(&value.to_le_bytes(), at).unwrap();
    }

    /// Makes requests 0 to `count` available.
    fn ask(&self, count: u16) {
        for n in 0..count {
            self.write_u16(AVAIL + 4 + 2 * u64::from(n), n);
        }
        self.write_u16(AVAIL + 2, count);
    }

    /// The requests that the guest is shown to be done.
    fn answered(&self) -> Vec<u16> {
        let mut used = [0; 4 + 8 * SIZE as usize];
        self.memory.read_exact_at(&mut used, USED).unwrap();
        let count = u16::from_le_bytes([used[2], used[3]]);
        used[4..]
            .chunks(8)
            .take(count.into())
            .map(|e| u16::from_le_bytes([e[0], e[1]]))
            .collect()
    }

    /// Takes one request.
    fn take(&self) -> u16 {
        let snapshot = self.ring.snapshot().unwrap();
        let view = snapshot.layout.view(&snapshot.memory).unwrap();
        match self.ring.next(&view, &snapshot, &mut None, false) {
            Next::Request(taken) => taken.head,
            other => panic!("{other:?}"),
        }
    }
}

fn done(head: u16) -> Done {
    Done { head, written: 16 }
}

/// What is there afterwards is another kernel's, say, before it has set up all of its rings.
#[test]
fn nothing_is_written_where_a_ring_was_that_has_stopped() {
    for event_idx in [false, true] {
        let guest = Guest::new(event_idx);
        let snapshot = guest.ring.snapshot().unwrap();
        let view = snapshot.layout.view(&snapshot.memory).unwrap();
        assert!(!guest.ring.arm(&view, &snapshot));
        assert_eq!(guest.ring.stop(&|| false), 0);
        let others = vec![0xaa; usize::try_from(MEMORY_BYTES).unwrap()];
        guest.memory.write_all_at(&others, 0).unwrap();
        // By a worker that was in the middle of it, and by one that comes later.
        assert!(guest.ring.arm(&view, &snapshot), "it looks once more");
        let next = guest.ring.next(&view, &snapshot, &mut None, true);
        assert!(matches!(next, Next::Changed), "{next:?}");
        assert!(guest.ring.snapshot().is_none());
        let mut found = vec![0; others.len()];
        guest.memory.read_exact_at(&mut found, 0).unwrap();
        assert!(found == others);
    }
}

#[test]
fn a_request_that_was_taken_is_answered_before_its_ring_stops() {
    let guest = Guest::new(true);
    guest.ask(1);
    let head = guest.take();
    std::thread::scope(|scope| {
        let stopped = scope.spawn(|| guest.ring.stop(&|| false));
        guest.ring.complete(done(head));
        assert_eq!(stopped.join().unwrap(), 1);
    });
    assert_eq!(guest.answered(), [0]);
}

/// QEMU masks an interrupt by another descriptor, and looks at that once after it has put the first back.
#[test]
fn a_descriptor_for_interrupts_that_takes_anothers_place_is_written_to() {
    let guest = Guest::new(true);
    let masked = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
    guest.ring.set_call(Some(masked));
    guest.ask(1);
    guest.ring.complete(done(guest.take()));
    let unmasked = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
    guest.ring.set_call(Some(unmasked.try_clone().unwrap()));
    assert_eq!(rustix::io::read(&unmasked, &mut [0; 8]), Ok(8));
}

#[test]
fn what_is_done_while_the_rings_memory_is_taken_away_is_answered_when_it_is_back() {
    let mut guest = Guest::new(true);
    guest.ask(3);
    let heads = [guest.take(), guest.take()];
    guest.table.remove(&Guest::region()).unwrap();
    for head in heads {
        guest.ring.complete(done(head));
    }
    guest.ring.show();
    guest.add_memory();
    assert_eq!(guest.answered(), [] as [u16; 0]);
    // Whoever serves next, and takes the third.
    assert_eq!(guest.take(), 2);
    let mut answered = guest.answered();
    answered.sort_unstable();
    assert_eq!(answered, heads);
    assert_eq!(guest.ring.stop(&|| true), 3);
}

#[test]
fn a_ring_that_runs_goes_on_when_it_gets_another_descriptor_for_kicks() {
    let guest = Guest::new(true);
    guest.ask(3);
    let snapshot = guest.ring.snapshot().unwrap();
    let view = snapshot.layout.view(&snapshot.memory).unwrap();
    let mut first = None;
    for _ in 0..2 {
        let Next::Request(taken) = guest.ring.next(&view, &snapshot, &mut first, false) else {
            panic!("nothing to take");
        };
        first = Some(done(taken.head));
    }
    assert_eq!(guest.answered(), [] as [u16; 0], "the first waits to be shown");
    guest.ring.start(true);
    guest.ring.complete(first.unwrap());
    assert_eq!(guest.answered(), [0, 1]);
}
