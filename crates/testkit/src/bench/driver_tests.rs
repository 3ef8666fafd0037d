//! The driver against responders in the same process: right ones, wrong ones, one that is silent for a while.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::super::call;
use super::*;

const SIZE: u16 = 8;

fn machine() -> (GuestRam, SplitQueue) {
    let reserved = SplitQueue::footprint(0, SIZE).unwrap();
    let ram = GuestRam::new(usize::try_from(reserved).unwrap(), 1 << 18, 4096).unwrap();
    let mut queue = SplitQueue::new(0, SIZE, true, true).unwrap();
    queue.reset(&ram).unwrap();
    (ram, queue)
}

/// Answers `count` requests with the error given and a body that starts with the node asked for, sixteen bytes in.
fn answer(memory: &GuestMemoryMmap, queue: &crate::guest::ring::RingLayout, count: u16, error: i32) {
    for next in 0..count {
        while memory
            .load::<u16>(GuestAddress(queue.avail_idx()), Ordering::Acquire)
            .unwrap()
            == next
        {
            std::thread::yield_now();
        }
        let head: u16 = memory.read_obj(GuestAddress(queue.avail_entry(next))).unwrap();
        let table: u64 = memory.read_obj(GuestAddress(queue.descriptor(head))).unwrap();
        let buffer = |i: u64| memory.read_obj::<u64>(GuestAddress(table + 16 * i)).unwrap();
        let node: u64 = memory.read_obj(GuestAddress(buffer(0) + 16)).unwrap();
        memory.write_obj(120_u32, GuestAddress(buffer(2))).unwrap();
        memory.write_obj(error, GuestAddress(buffer(2) + 4)).unwrap();
        memory.write_obj(node, GuestAddress(buffer(3) + 24)).unwrap();
        memory
            .write_obj(u32::from(head), GuestAddress(queue.used_entry(next)))
            .unwrap();
        memory
            .store(next + 1, GuestAddress(queue.used_idx()), Ordering::Release)
            .unwrap();
    }
}

/// Drives four requests against a responder; each file is as large as its node number unless told otherwise.
fn four(error: i32, size_of: impl Fn(u64) -> u64) -> Result<Vec<Sample>, DriveError> {
    let (mut ram, mut queue) = machine();
    let (memory, layout) = (ram.share(), *queue.layout());
    let calls: Vec<_> = (1..=4).map(|node| call::getattr(node, size_of(node))).collect();
    let load = [Load {
        shape: call::GETATTR,
        depth: 2,
        calls: &calls,
    }];
    std::thread::scope(|scope| {
        let responder = scope.spawn(move || answer(&memory, &layout, if error == 0 { 4 } else { 1 }, error));
        let how = (Wait::Spin, Check::Every, Until::FirstDone);
        let outcome = drive((&mut ram, &mut queue), &load, how);
        if outcome.is_ok() {
            assert_eq!(
                queue.free_descriptors(),
                usize::from(SIZE),
                "all descriptors are back"
            );
            responder.join().unwrap();
        }
        outcome
    })
}

#[test]
fn every_call_is_answered_once_and_counted() {
    let samples = four(0, |node| node).unwrap();
    assert_eq!(samples[0].requests, 4);
}

#[test]
fn an_error_is_no_answer() {
    assert!(matches!(
        four(-5, |node| node),
        Err(DriveError::BadAnswer {
            error: -5,
            nodeid: 1,
            ..
        })
    ));
}

#[test]
fn a_wrong_content_is_found() {
    let outcome = four(0, |node| if node == 3 { 99 } else { node });
    assert!(
        matches!(
            outcome,
            Err(DriveError::WrongContent {
                nodeid: 3,
                at: 24,
                ..
            })
        ),
        "{outcome:?}"
    );
}
