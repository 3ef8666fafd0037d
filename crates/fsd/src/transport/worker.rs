//! One worker: sleeps, serves all rings until they are empty, looks for more for a moment, sleeps again.
//!
//! The rings' memory is looked up once for such a stretch and the buffers are the worker's own, so that a request
//! costs two short locked sections and one walk of its chain, and allocates nothing. Next: `monitor.rs` for what
//! happens when a request blocks.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};
use smallvec::SmallVec;

use super::chain::{Buffers, Chain};
use super::memory::Near;
use super::polling::Patience;
use super::pool::{STOP, Shared};
use super::ring::{Done, Next, Ring, Snapshot};
use super::split::View;
use crate::fuse::Scratch;
use crate::inflight::Slot;
use crate::metrics::Tally;

/// How long a worker above the base number stays without work.
const RETIRE_AFTER: Timespec = Timespec {
    tv_sec: 10,
    tv_nsec: 0,
};
/// Work that is worth waking a colleague for. A wake-up takes some 20 µs until it helps, and on a machine that is
/// busy it only takes a processor away.
const WORTH_HELP: Duration = Duration::from_micros(200);
/// Looks at the rings between two looks at the clock.
const LOOKS: u32 = 16;

/// As many rings as most devices have; more are kept on the heap.
type PerRing<T> = SmallVec<[T; 4]>;

/// Why a stretch of serving ended.
enum Ended {
    Empty,
    Changed,
    Stopped,
    /// Others serve, and there is not enough to do for all. This worker counts as idle already.
    Superfluous,
}

struct Worker<'p> {
    shared: &'p Arc<Shared>,
    slot: &'p Slot<'p>,
    tally: &'p Tally,
    buffers: Buffers,
    scratch: Scratch,
    patience: Patience,
    /// What a request took lately, in nanoseconds.
    usual_ns: u64,
    /// When the last request was done.
    last_done: Instant,
}

/// Serves until the pool stops, or until this worker is one too many.
pub(super) fn run(shared: &Arc<Shared>, slot: &Slot<'_>) {
    let mut worker = Worker {
        shared,
        slot,
        tally: shared.tallies.worker(slot.number()),
        buffers: Buffers::default(),
        scratch: Scratch::default(),
        patience: Patience::new(shared.poll),
        usual_ns: 0,
        last_done: Instant::now(),
    };
    if !worker.until_retired() {
        shared.headcount.leave();
        // Whoever slept because this one was awake.
        shared.wake_one();
    }
}

impl Worker<'_> {
    /// True if it gave its place up.
    fn until_retired(&mut self) -> bool {
        let shared = self.shared;
        let mut events = [epoll::Event {
            flags: epoll::EventFlags::empty(),
            data: epoll::EventData::new_u64(0),
        }];
        // The worker may have been started because others left requests behind.
        while !shared.stopped.load(Ordering::SeqCst) {
            shared.rouse_monitor();
            self.serve();
            let surplus = shared.headcount.now().threads > shared.base;
            let got = epoll::wait(&shared.epoll, &mut events, surplus.then_some(&RETIRE_AFTER));
            // Out of its sleep, not awake for a moment: others would rely on it.
            if matches!(got, Ok(0)) && shared.headcount.retire(shared.base) {
                return true;
            }
            shared.headcount.wake();
            shared.helper_called.store(false, Ordering::Relaxed);
            match got {
                Ok(0) => {}
                Ok(_) => {
                    if events[0].data.u64() == STOP {
                        break;
                    }
                    self.patience.next_came_after(self.last_done.elapsed());
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => {
                    tracing::error!(error = %e, "worker cannot wait for requests and ends");
                    break;
                }
            }
        }
        false
    }

    /// Serves until all rings are empty and guests will kick, then counts itself as idle.
    fn serve(&mut self) {
        let shared = self.shared;
        loop {
            let snapshots: PerRing<Option<Snapshot>> = shared.rings.iter().map(Ring::snapshot).collect();
            let views: PerRing<Option<(View<'_>, &Snapshot)>> = snapshots
                .iter()
                .map(|snapshot| {
                    let snapshot = snapshot.as_ref()?;
                    Some((snapshot.layout.view(&snapshot.memory)?, snapshot))
                })
                .collect();
            match self.drain_and_poll(&views) {
                Ended::Empty => {
                    // Idle first, then the look that arming ends with: what comes before it is seen by it, what
                    // comes after it kicks.
                    shared.headcount.sleep();
                    if !self.arm(&views) {
                        return;
                    }
                    shared.headcount.wake();
                    // It may have found everybody idle just now.
                    shared.rouse_monitor();
                }
                Ended::Changed => {}
                Ended::Stopped => {
                    shared.headcount.sleep();
                    return;
                }
                Ended::Superfluous => return,
            }
        }
    }

    /// Asks every guest queue for a kick; true if there is something to do already.
    fn arm(&self, views: &[Option<(View<'_>, &Snapshot)>]) -> bool {
        let mut more = false;
        for (ring, known) in self.shared.rings.iter().zip(views) {
            if let Some((view, snapshot)) = known {
                more |= ring.arm(view, snapshot);
            }
        }
        more
    }

    /// Serves, and looks for more for a moment for as long as that brings some.
    fn drain_and_poll(&mut self, views: &[Option<(View<'_>, &Snapshot)>]) -> Ended {
        let mut polled = false;
        loop {
            match self.drain(views) {
                // An index that moves without anything to take is no reason to go on looking.
                (Ended::Empty, 0) if polled => return Ended::Empty,
                (Ended::Empty, _) => {}
                (ended, _) => return ended,
            }
            let Some(span) = self.patience.span() else {
                return Ended::Empty;
            };
            if self.shared.polling.swap(true, Ordering::Acquire) {
                return Ended::Empty;
            }
            let came = self.poll(views, span);
            self.shared.polling.store(false, Ordering::Release);
            if self.shared.stopped.load(Ordering::Relaxed) {
                return Ended::Stopped;
            }
            if !came {
                self.patience.was_in_vain();
                return Ended::Empty;
            }
            self.patience.paid();
            polled = true;
        }
    }

    fn poll(&self, views: &[Option<(View<'_>, &Snapshot)>], span: Duration) -> bool {
        let start = Instant::now();
        while start.elapsed() < span && !self.shared.stopped.load(Ordering::Relaxed) {
            for _ in 0..LOOKS {
                for (ring, known) in self.shared.rings.iter().zip(views) {
                    if known.as_ref().is_some_and(|(view, _)| ring.has_more(view)) {
                        return true;
                    }
                }
                std::hint::spin_loop();
            }
        }
        false
    }

    /// Takes and runs requests until all rings are empty; and how many those were.
    fn drain(&mut self, views: &[Option<(View<'_>, &Snapshot)>]) -> (Ended, u64) {
        let mut count = 0;
        // Requests before forgets: nobody waits for a forget.
        for (index, known) in views.iter().enumerate().rev() {
            if let Some((view, snapshot)) = known {
                match self.drain_ring(index, view, snapshot, &mut count) {
                    Ended::Empty => {}
                    ended => return (ended, count),
                }
            }
        }
        (Ended::Empty, count)
    }

    fn drain_ring(&mut self, index: usize, view: &View<'_>, snapshot: &Snapshot, count: &mut u64) -> Ended {
        let shared = self.shared;
        let ring = &shared.rings[index];
        let mut near = Near::new(&snapshot.memory);
        let mut done = None;
        loop {
            let wary = shared.wary.load(Ordering::Relaxed);
            let taken = match ring.next(view, snapshot, &mut done, wary) {
                Next::Request(taken) => taken,
                Next::Nothing => return Ended::Empty,
                Next::Changed => {
                    if let Some(done) = done.take() {
                        ring.complete(done);
                    }
                    return Ended::Changed;
                }
            };
            self.provide(ring, view, snapshot, taken.backlog, wary);
            self.buffers
                .collect(view, snapshot.layout.size, &near, taken.head);
            if let Some(first) = self.buffers.readable.first() {
                near.expect(first.addr);
            }

            let chain = Chain {
                buffers: &self.buffers,
                memory: &snapshot.memory,
                near,
                layout: snapshot.layout,
                index: taken.index,
                head: taken.head,
            };
            // One that follows another at once begins when that was done.
            let begun = if *count > 0 {
                self.last_done
            } else {
                Instant::now()
            };
            self.slot.set_clock(begun);
            let served = shared.fuse.serve(&chain, self.slot, &mut self.scratch);
            let written = served.written;
            self.measure(*count > 0);
            // Before the guest sees the answer: figures are never behind what it knows.
            if let Some(answered) = &served.answered {
                shared.tallies.count(self.tally, answered, self.last_done);
            }
            *count += 1;
            let head = taken.head;
            if shared.stopped.load(Ordering::Relaxed) {
                ring.complete(Done { head, written });
                return Ended::Stopped;
            }
            if self.is_superfluous(taken.backlog, wary) {
                ring.complete(Done { head, written });
                return Ended::Superfluous;
            }
            done = Some(Done { head, written });
        }
    }

    /// Whether so little is waiting that two at one ring only hinder each other; then this worker is idle from now
    /// on. Should the other one just now block, the monitor finds out.
    fn is_superfluous(&self, backlog: u16, wary: bool) -> bool {
        if wary || self.usual_ns.saturating_mul(backlog.into()) > WORTH_HELP_NS / 4 {
            return false;
        }
        self.shared.headcount.excuse()
    }

    /// Sees to what waits behind the request that is about to be run.
    fn provide(&self, ring: &Ring, view: &View<'_>, snapshot: &Snapshot, backlog: u16, wary: bool) {
        let shared = self.shared;
        if shared.headcount.now().idle == 0 {
            return;
        }
        if wary {
            // This one may block as those before it did: a colleague goes on, or the next kick wakes one.
            if ring.arm(view, snapshot) {
                shared.wake_one();
            }
        } else if self.usual_ns.saturating_mul(backlog.into()) > WORTH_HELP_NS
            && !shared.helper_called.swap(true, Ordering::Relaxed)
        {
            shared.wake_one();
        }
    }

    /// Notes when a request was done and, if it followed another one at once, how long it took: an average in which
    /// each counts an eighth.
    fn measure(&mut self, followed: bool) {
        let now = Instant::now();
        if followed {
            let took = u64::try_from((now - self.last_done).as_nanos()).unwrap_or(u64::MAX);
            // One that was preempted says nothing about the others.
            let took = took.min(self.usual_ns * 4 + 1000);
            self.usual_ns = self.usual_ns - self.usual_ns / 8 + took / 8;
        }
        self.last_done = now;
    }
}

#[expect(clippy::cast_possible_truncation, reason = "it is 200 µs")]
const WORTH_HELP_NS: u64 = WORTH_HELP.as_nanos() as u64;
