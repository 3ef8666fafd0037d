//! A responder that does nothing but answer: shows what the driver itself can do.
//!
//! A daemon whose figure comes near this one is limited by the benchmark, not by itself.

use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::thread;

use vm_memory::{GuestMemory, GuestMemoryMmap, GuestMemoryRegion, VolatileMemory};

use super::BenchError;
use super::call;
use super::driver::{Check, DriveError, Load, Until, Wait, drive};
use super::plan::Plan;
use crate::guest::GuestError;
use crate::guest::mem::GuestRam;
use crate::guest::queue::SplitQueue;
use crate::guest::ring::{DESC_WRITE, RingLayout};

const QUEUE_SIZE: u16 = 128;

/// Requests a second with 64 GETATTR in flight that are answered without looking at them: the best of some runs.
pub(super) fn ceiling(plan: &Plan) -> Result<f64, BenchError> {
    (0..plan.rounds).try_fold(0.0, |best, _| Ok(f64::max(best, once(plan)?)))
}

fn once(plan: &Plan) -> Result<f64, BenchError> {
    let failed = |source: DriveError| BenchError::Run {
        row: "driver",
        contender: "the null responder".into(),
        source,
    };
    let guest = |e: GuestError| failed(e.into());
    let reserved = SplitQueue::footprint(0, QUEUE_SIZE).map_err(guest)?;
    let mut ram = GuestRam::new(usize::try_from(reserved).unwrap_or(0), 1 << 20, 4096).map_err(guest)?;
    let mut queue = SplitQueue::new(0, QUEUE_SIZE, true, true).map_err(guest)?;
    queue.reset(&ram).map_err(guest)?;
    let (memory, layout) = (ram.share(), *queue.layout());
    let calls: Vec<_> = (1..=512).map(|node| call::getattr(node, 0)).collect();
    let load = [Load {
        shape: call::GETATTR,
        depth: 64,
        calls: &calls,
    }];
    let stop = AtomicBool::new(false);
    let samples = thread::scope(|scope| {
        scope.spawn(|| respond(&memory, &layout, &stop));
        let how = (Wait::Spin, Check::Spot, Until::Elapsed(plan.span));
        let samples = drive((&mut ram, &mut queue), &load, how);
        stop.store(true, Ordering::Relaxed);
        samples
    });
    Ok(samples.map_err(failed)?[0].per_second())
}

/// Answers everything with success until told to stop, or until the ring cannot be read.
fn respond(memory: &GuestMemoryMmap, layout: &RingLayout, stop: &AtomicBool) -> Option<()> {
    let regions: Vec<_> = memory
        .iter()
        .map(|region| Some((region.start_addr().0, region.as_volatile_slice().ok()?)))
        .collect::<Option<_>>()?;
    let place = |address: u64| {
        let (start, slice) = regions.iter().rev().find(|(start, _)| *start <= address)?;
        Some((slice, usize::try_from(address - start).ok()?))
    };
    let (rings, _) = place(layout.desc)?;
    let at = |address: u64| usize::try_from(address - regions[0].0).unwrap_or(0);
    let avail_idx: &AtomicU16 = rings.get_atomic_ref(at(layout.avail_idx())).ok()?;
    let used_idx: &AtomicU16 = rings.get_atomic_ref(at(layout.used_idx())).ok()?;
    let mut next = 0_u16;
    while !stop.load(Ordering::Relaxed) {
        let avail = avail_idx.load(Ordering::Acquire);
        while next != avail {
            let head: u16 = rings.get_ref(at(layout.avail_entry(next))).ok()?.load();
            let (table, offset) = place(rings.get_ref(at(layout.descriptor(head))).ok()?.load())?;
            let reply = (0..8).find_map(|i| {
                let flags: u16 = table.get_ref(offset + 16 * i + 12).ok()?.load();
                let buffer: u64 = table.get_ref(offset + 16 * i).ok()?.load();
                (flags & DESC_WRITE != 0).then_some(buffer)
            })?;
            let (reply, offset) = place(reply)?;
            // `len`, and no error.
            reply.get_ref(offset).ok()?.store(120_u64);
            let entry: u32 = head.into();
            rings.get_ref(at(layout.used_entry(next))).ok()?.store(entry);
            next = next.wrapping_add(1);
            used_idx.store(next, Ordering::Release);
        }
        std::hint::spin_loop();
    }
    Some(())
}
