//! The guest under load: one thread that keeps a number of requests in flight and measures each.
//!
//! Chains are laid out once; for a request the driver writes a node, an argument and one ring entry, so that it
//! costs less than any daemon does (`null.rs` shows how much less). It checks the header and the length of every
//! answer, and the content of every answer or of one in [`SPOT_CHECK`]. Next: `call.rs` for what is sent.

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU16, Ordering, fence};
use std::time::{Duration, Instant};

use vm_memory::{Bytes, VolatileArrayRef, VolatileMemory, VolatileSlice};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::call::{Call, Outcome, Shape};
use super::histogram::{Latencies, Sample};
use crate::guest::GuestError;
use crate::guest::mem::GuestRam;
use crate::guest::queue::{Segment, SplitQueue};
use crate::guest::request::{IN_HEADER, OUT_HEADER};
use crate::guest::ring::{USED_NO_NOTIFY, need_event};

/// Of so many answers, one is compared in full when not all are.
pub const SPOT_CHECK: u64 = 1024;
/// Where the argument is in a slot's first chunk, behind the header.
const ARG_AT: usize = 64;
/// What the header of an answer is before there is one.
const UNANSWERED: u64 = u64::MAX;
/// A daemon that answers nothing for so long is stuck.
const STUCK: Duration = Duration::from_secs(30);
/// Looks at the ring between two looks at the clock.
const SPINS: u32 = 1 << 12;

/// How the guest learns that something was used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// It looks, all the time, and asks for no interrupt.
    Spin,
    /// It sleeps until the call descriptor is signalled.
    Interrupt,
}

/// Which answers are compared in full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// All.
    Every,
    /// One in [`SPOT_CHECK`].
    Spot,
}

/// When a run ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// After so long; calls are repeated.
    Elapsed(Duration),
    /// When every call of the first load was answered; other loads repeat theirs.
    FirstDone,
}

/// Requests of one shape, so many of them in flight.
#[derive(Debug)]
pub struct Load<'c> {
    /// The common shape.
    pub shape: Shape,
    /// Requests in flight.
    pub depth: usize,
    /// What is sent, in this order.
    pub calls: &'c [Call],
}

/// Why a run failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DriveError {
    /// The guest's own machinery.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// A piece of guest memory.
    #[error("access to guest memory")]
    Memory(#[from] vm_memory::VolatileMemoryError),
    /// The daemon answered with an error, or with another length than it should.
    #[error(
        "opcode {opcode} for node {nodeid:#x} was answered with error {error} and {len} bytes, not {expected}"
    )]
    BadAnswer {
        /// The request's opcode.
        opcode: u32,
        /// Its node.
        nodeid: u64,
        /// `fuse_out_header.error`.
        error: i32,
        /// `fuse_out_header.len`.
        len: u32,
        /// What `len` should be.
        expected: u32,
    },
    /// The answer holds something else than it should.
    #[error("opcode {opcode} for node {nodeid:#x}: the answer differs from what is on the host at byte {at}")]
    WrongContent {
        /// The request's opcode.
        opcode: u32,
        /// Its node.
        nodeid: u64,
        /// Offset in the answer's body.
        at: usize,
    },
    /// Nothing was answered for a long time.
    #[error("nothing answered for {STUCK:?}, {in_flight} requests in flight")]
    Stuck {
        /// How many were waiting.
        in_flight: usize,
    },
}

/// A chain that is used again and again.
struct Slot<'m> {
    load: usize,
    head: u16,
    nodeid: VolatileSlice<'m>,
    arg: VolatileSlice<'m>,
    /// `fuse_out_header`: `len` in the lower half, `error` in the upper.
    answer: VolatileSlice<'m>,
    reply: VolatileSlice<'m>,
    pages: Vec<VolatileSlice<'m>>,
    call: usize,
    sent: Instant,
}

/// One load's progress.
struct Progress {
    next: usize,
    answered: usize,
    bytes: u64,
    latencies: Latencies,
}

struct Ring<'m> {
    avail_idx: &'m AtomicU16,
    avail: VolatileArrayRef<'m, u16>,
    used_event: &'m AtomicU16,
    used_flags: &'m AtomicU16,
    used_idx: &'m AtomicU16,
    /// Pairs of id and length.
    used: VolatileArrayRef<'m, u32>,
    avail_event: &'m AtomicU16,
    mask: u16,
    event_idx: bool,
    next_avail: u16,
    kicked: u16,
    next_used: u16,
}

/// Runs loads side by side on one queue; what each measured, in their order.
///
/// # Errors
/// [`DriveError`]; what is still in flight then stays so, and the guest is good for nothing more.
pub fn drive(
    (ram, queue): (&mut GuestRam, &mut SplitQueue),
    loads: &[Load<'_>],
    (wait, check, until): (Wait, Check, Until),
) -> Result<Vec<Sample>, DriveError> {
    let mut chunks = Vec::new();
    let plans = loads
        .iter()
        .enumerate()
        .flat_map(|(index, load)| std::iter::repeat_n((index, load.shape), load.depth))
        .map(|(index, shape)| lay_out(ram, queue, &mut chunks, index, shape))
        .collect::<Result<Vec<_>, _>>()?;
    let (next_avail, next_used, outcome) = {
        let mut slots: Vec<Option<Slot<'_>>> = Vec::new();
        for (number, plan) in plans.iter().enumerate() {
            let head = usize::from(plan.head);
            slots.resize_with(slots.len().max(head + 1), || None);
            slots[head] = Some(plan.slot(ram, &loads[plan.load].shape, number)?);
        }
        let layout = *queue.layout();
        let length = |from: u64, to: u64| usize::try_from(to - from).unwrap_or(0);
        let (next_avail, next_used) = queue.indexes();
        let avail = ram.slice(layout.avail, length(layout.avail, layout.used))?;
        let used = ram.slice(layout.used, length(layout.used, layout.end))?;
        let size = usize::from(layout.size());
        let ring = Ring {
            avail_idx: avail.get_atomic_ref(2)?,
            avail: avail.get_array_ref(4, size)?,
            used_event: avail.get_atomic_ref(4 + 2 * size)?,
            used_flags: used.get_atomic_ref(0)?,
            used_idx: used.get_atomic_ref(2)?,
            used: used.get_array_ref(4, 2 * size)?,
            avail_event: used.get_atomic_ref(4 + 8 * size)?,
            mask: layout.size() - 1,
            event_idx: queue.event_idx(),
            next_avail,
            kicked: next_avail,
            next_used,
        };
        let calls = Epoll::new().map_err(GuestError::os("epoll_create1"))?;
        let edge = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, 0);
        calls
            .ctl(ControlOperation::Add, queue.call_fd().as_raw_fd(), edge)
            .map_err(GuestError::os("epoll_ctl"))?;
        let mut driver = Driver {
            ring,
            slots,
            queue,
            calls,
            loads,
            check,
            progress: loads
                .iter()
                .map(|_| Progress {
                    next: 0,
                    answered: 0,
                    bytes: 0,
                    latencies: Latencies::default(),
                })
                .collect(),
            in_flight: 0,
            seen: 0,
            body: Vec::with_capacity(
                loads
                    .iter()
                    .map(|l| l.shape.reply + l.shape.data)
                    .max()
                    .unwrap_or(0),
            ),
        };
        let outcome = driver.run(wait, until);
        (driver.ring.next_avail, driver.ring.next_used, outcome)
    };
    let samples = outcome?;
    queue.resume(next_avail, next_used);
    for plan in plans {
        queue.withdraw(plan.head);
    }
    ram.give_back(chunks);
    Ok(samples)
}

/// Where a slot's chain is.
struct Plan {
    load: usize,
    head: u16,
    request: u64,
    reply: u64,
    pages: Vec<Segment>,
}

fn lay_out(
    ram: &mut GuestRam,
    queue: &mut SplitQueue,
    chunks: &mut Vec<u64>,
    load: usize,
    shape: Shape,
) -> Result<Plan, DriveError> {
    let limit = ram.chunk_count();
    let mut take = |ram: &mut GuestRam| {
        let chunk = ram.take().ok_or(GuestError::TooBig {
            what: "chunks of memory",
            need: 1,
            limit,
        });
        chunks.extend(chunk.as_ref().ok());
        chunk
    };
    let segment = |addr, len| Segment {
        addr,
        len: u32::try_from(len).unwrap_or(u32::MAX),
    };
    let (request, reply) = (take(ram)?, take(ram)?);
    let mut left = shape.data;
    let mut pages = Vec::new();
    while left > 0 {
        let len = left.min(ram.chunk_size());
        pages.push(segment(take(ram)?, len));
        left -= len;
    }
    // As Linux lays them out: header, argument; header, fixed part, pages.
    let readable = [
        segment(request, IN_HEADER),
        segment(request + ARG_AT as u64, shape.arg),
    ];
    let mut writable = vec![segment(reply, OUT_HEADER)];
    writable.extend((shape.reply > 0).then(|| segment(reply + OUT_HEADER as u64, shape.reply)));
    writable.extend(&pages);
    let head = queue
        .place(ram, &readable, &writable)?
        .ok_or(GuestError::TooBig {
            what: "descriptors",
            need: 1,
            limit: 0,
        })?;
    Ok(Plan {
        load,
        head,
        request,
        reply,
        pages,
    })
}

impl Plan {
    fn slot<'m>(&self, ram: &'m GuestRam, shape: &Shape, number: usize) -> Result<Slot<'m>, DriveError> {
        let header = ram.slice(self.request, IN_HEADER)?;
        let len = u32::try_from(IN_HEADER + shape.arg).unwrap_or(u32::MAX);
        header.write_slice(&[0; IN_HEADER], 0)?;
        header.write_obj(len.to_le(), 0)?;
        header.write_obj(shape.opcode.to_le(), 4)?;
        header.write_obj((number as u64 * 2 + 2).to_le(), 8)?;
        Ok(Slot {
            load: self.load,
            head: self.head,
            nodeid: ram.slice(self.request + 16, 8)?,
            arg: ram.slice(self.request + ARG_AT as u64, shape.arg)?,
            answer: ram.slice(self.reply, 8)?,
            reply: ram.slice(self.reply + OUT_HEADER as u64, shape.reply)?,
            pages: self
                .pages
                .iter()
                .map(|s| ram.slice(s.addr, s.len as usize))
                .collect::<Result<_, _>>()?,
            call: 0,
            sent: Instant::now(),
        })
    }
}

struct Driver<'m, 'c> {
    ring: Ring<'m>,
    slots: Vec<Option<Slot<'m>>>,
    queue: &'c SplitQueue,
    calls: Epoll,
    loads: &'c [Load<'c>],
    check: Check,
    progress: Vec<Progress>,
    in_flight: usize,
    seen: u64,
    /// An answer that is compared; kept, because what a request allocates is measured with this driver.
    body: Vec<u8>,
}

impl Driver<'_, '_> {
    fn run(&mut self, wait: Wait, until: Until) -> Result<Vec<Sample>, DriveError> {
        let start = Instant::now();
        for head in 0..self.slots.len() {
            self.send(head, start, until)?;
        }
        self.publish()?;
        let mut last = start;
        while self.in_flight > 0 {
            let now = self.await_used(wait, last)?;
            last = now;
            let over = match until {
                Until::Elapsed(span) => now - start >= span,
                Until::FirstDone => false,
            };
            let used = self.ring.used_idx.load(Ordering::Acquire);
            while self.ring.next_used != used {
                let head = self.reap(now)?;
                let first_done =
                    until == Until::FirstDone && self.progress[0].answered == self.loads[0].calls.len();
                if !over && !first_done {
                    self.send(head, now, until)?;
                }
            }
            self.publish()?;
        }
        let took = last - start;
        Ok(self
            .progress
            .iter()
            .map(|p| Sample::new(&p.latencies, p.bytes, took))
            .collect())
    }

    /// Waits for used entries; the time at which there are some.
    fn await_used(&mut self, wait: Wait, since: Instant) -> Result<Instant, DriveError> {
        loop {
            match wait {
                Wait::Spin => {
                    for _ in 0..SPINS {
                        if self.ring.has_used() {
                            return Ok(Instant::now());
                        }
                        std::hint::spin_loop();
                    }
                }
                Wait::Interrupt => {
                    if self.ring.arm() {
                        return Ok(Instant::now());
                    }
                    // Edge-triggered: there is no count to read.
                    match self.calls.wait(1000, &mut [EpollEvent::default()]) {
                        Ok(_) => {}
                        Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                        Err(e) => return Err(GuestError::os("epoll_wait")(e).into()),
                    }
                }
            }
            if since.elapsed() > STUCK {
                return Err(DriveError::Stuck {
                    in_flight: self.in_flight,
                });
            }
        }
    }

    /// Puts a slot's next request into the ring, if its load has one.
    fn send(&mut self, head: usize, now: Instant, until: Until) -> Result<(), DriveError> {
        let Some(slot) = self.slots[head].as_mut() else {
            return Ok(());
        };
        let (load, progress) = (&self.loads[slot.load], &mut self.progress[slot.load]);
        if progress.next == load.calls.len() {
            if until == Until::FirstDone && slot.load == 0 {
                return Ok(());
            }
            progress.next = 0;
        }
        let call = &load.calls[progress.next];
        slot.call = progress.next;
        progress.next += 1;
        slot.nodeid.get_ref(0)?.store(call.nodeid.to_le());
        slot.arg.copy_from(&call.arg);
        // What is not overwritten by the daemon fails the check.
        slot.answer.get_ref(0)?.store(UNANSWERED);
        slot.sent = now;
        self.ring.push(slot.head);
        self.in_flight += 1;
        Ok(())
    }

    fn publish(&mut self) -> Result<(), DriveError> {
        if self.ring.publish() {
            self.queue.kick_fd().write(1).map_err(GuestError::os("kick"))?;
        }
        Ok(())
    }

    /// Takes one used entry, checks and counts it; the slot that is free now.
    fn reap(&mut self, now: Instant) -> Result<usize, DriveError> {
        let id = self.ring.take_used();
        let head = usize::try_from(id).unwrap_or(usize::MAX);
        let Some(slot) = self.slots.get(head).and_then(Option::as_ref) else {
            return Err(GuestError::Violation {
                what: "used a chain that is not in flight",
                value: id.into(),
            }
            .into());
        };
        self.in_flight -= 1;
        let load = &self.loads[slot.load];
        let progress = &mut self.progress[slot.load];
        progress.answered += 1;
        progress
            .latencies
            .record(now.saturating_duration_since(slot.sent));
        progress.bytes += load.shape.data as u64;
        self.seen += 1;
        let call = &load.calls[slot.call];
        slot.check_header(&load.shape, call)?;
        if self.check == Check::Every || self.seen.is_multiple_of(SPOT_CHECK) {
            slot.check_content(&load.shape, call, &mut self.body)?;
        }
        Ok(head)
    }
}

impl Slot<'_> {
    fn check_header(&self, shape: &Shape, call: &Call) -> Result<(), DriveError> {
        let answer = u64::from_le(self.answer.get_ref(0)?.load());
        let (expected, wanted) = match shape.outcome {
            Outcome::Answer => {
                let len = u32::try_from(OUT_HEADER + shape.reply + shape.data).unwrap_or(u32::MAX);
                (len, u64::from(len))
            }
            Outcome::Error(errno) => {
                let len = u32::try_from(OUT_HEADER).unwrap_or(u32::MAX);
                let error = u64::from(errno.wrapping_neg().cast_unsigned());
                (len, error << 32 | u64::from(len))
            }
            Outcome::Silence => (u32::MAX, UNANSWERED),
        };
        if answer == wanted {
            return Ok(());
        }
        let [len, error] = [answer & 0xffff_ffff, answer >> 32].map(|half| u32::try_from(half).unwrap_or(0));
        Err(DriveError::BadAnswer {
            opcode: shape.opcode,
            nodeid: call.nodeid,
            error: error.cast_signed(),
            len,
            expected,
        })
    }

    fn check_content(&self, shape: &Shape, call: &Call, body: &mut Vec<u8>) -> Result<(), DriveError> {
        if shape.outcome != Outcome::Answer {
            return Ok(());
        }
        body.clear();
        body.resize(shape.reply + shape.data, 0);
        self.reply.read_slice(&mut body[..shape.reply], 0)?;
        let mut at = shape.reply;
        for page in &self.pages {
            page.read_slice(&mut body[at..at + page.len()], 0)?;
            at += page.len();
        }
        let wanted = call.expected.bytes();
        let got = body.get(call.expected.at..).unwrap_or_default();
        match wanted
            .iter()
            .zip(got.iter().chain(std::iter::repeat(&0)))
            .position(|(w, g)| w != g)
        {
            None => Ok(()),
            Some(offset) => Err(DriveError::WrongContent {
                opcode: shape.opcode,
                nodeid: call.nodeid,
                at: call.expected.at + offset,
            }),
        }
    }
}

impl Ring<'_> {
    fn has_used(&self) -> bool {
        u16::from_le(self.used_idx.load(Ordering::Acquire)) != self.next_used
    }

    fn push(&mut self, head: u16) {
        self.avail
            .store(usize::from(self.next_avail & self.mask), head.to_le());
        self.next_avail = self.next_avail.wrapping_add(1);
    }

    /// Shows the daemon what was pushed; whether it has to be kicked.
    fn publish(&mut self) -> bool {
        if self.kicked == self.next_avail {
            return false;
        }
        self.avail_idx.store(self.next_avail.to_le(), Ordering::Release);
        // Without this the load of avail_event may be older than the store of avail.idx: a lost kick.
        fence(Ordering::SeqCst);
        let wanted = if self.event_idx {
            let event = u16::from_le(self.avail_event.load(Ordering::Relaxed));
            need_event(event, self.next_avail, self.kicked)
        } else {
            u16::from_le(self.used_flags.load(Ordering::Relaxed)) & USED_NO_NOTIFY == 0
        };
        self.kicked = self.next_avail;
        wanted
    }

    fn take_used(&mut self) -> u32 {
        let id = self.used.load(2 * usize::from(self.next_used & self.mask));
        self.next_used = self.next_used.wrapping_add(1);
        u32::from_le(id)
    }

    /// Asks for an interrupt at the next used entry; true if there is one already.
    fn arm(&self) -> bool {
        if self.event_idx {
            self.used_event.store(self.next_used.to_le(), Ordering::Release);
        }
        fence(Ordering::SeqCst);
        self.has_used()
    }
}

#[cfg(test)]
#[path = "driver_tests.rs"]
mod tests;
