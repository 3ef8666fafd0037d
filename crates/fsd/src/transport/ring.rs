//! One virtqueue, shared by the session thread that configures it and the workers that serve it.
//!
//! Workers hold the lock to return a request and take the next one, which is a few stores; requests run without it.
//! A request that is done is entered into the used ring at once and shown to the guest with others: by whoever takes
//! the last request, before a worker waits, or by the monitor. While somebody serves the ring the guest is not asked
//! to kick; [`Ring::arm`] asks for it before the last one sleeps. Next: `split.rs` for the ring's memory, `worker.rs`
//! for who serves, `handler.rs` for who configures.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering, fence};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vm_memory::GuestAddress;

use super::memory::{Guard, Memory};
use super::split::{Layout, View, need_event};

/// The largest queue accepted; what the virtio specification allows.
pub(crate) const MAX_QUEUE_SIZE: u16 = 32768;

/// Requests that are done may wait for so many others before the guest is shown them.
const BATCH: u16 = 16;

/// A request that was taken.
#[derive(Debug, Clone, Copy)]
pub(super) struct Taken {
    /// Where it was in the available ring.
    pub(super) index: u16,
    pub(super) head: u16,
    /// How many are known to wait behind it.
    pub(super) backlog: u16,
}

/// A request that is done.
#[derive(Debug, Clone, Copy)]
pub(super) struct Done {
    pub(super) head: u16,
    pub(super) written: u32,
}

/// What a look at the ring found.
#[derive(Debug)]
pub(super) enum Next {
    /// A request.
    Request(Taken),
    /// Nothing to do: empty, stopped or disabled. All that is done has been shown to the guest.
    Nothing,
    /// Memory or layout are others than in the view; nothing was done.
    Changed,
}

/// What a worker needs to serve the ring for a while.
#[derive(Debug)]
pub(super) struct Snapshot {
    pub(super) memory: Guard,
    pub(super) layout: Layout,
    generation: u64,
    epoch: u64,
}

#[derive(Debug, Default)]
struct Inner {
    layout: Layout,
    memory: Option<Memory>,
    /// Counts the starts and resets: a view of an earlier one is of no use.
    epoch: u64,
    event_idx: bool,
    call: Option<OwnedFd>,
    /// Started by SET_VRING_KICK, stopped by GET_VRING_BASE.
    started: bool,
    /// SET_VRING_ENABLE; rings are born enabled where the frontend has no PROTOCOL_FEATURES.
    enabled: bool,
    next_avail: u16,
    /// What `avail.idx` was when it was last looked at.
    seen_avail: u16,
    next_used: u16,
    /// What `used.idx` is.
    shown_used: u16,
    /// Requests taken and not yet returned.
    in_flight: u32,
    /// Done while the ring lay in no memory: it is removed and added again when the guest's memory changes. Never more
    /// than were in flight.
    kept: Vec<Done>,
    /// A broken ring is reported once: a guest cannot fill the log with it.
    reported: bool,
}

/// One virtqueue.
#[derive(Debug, Default)]
pub(crate) struct Ring {
    inner: Mutex<Inner>,
    drained: Condvar,
    /// Whether the guest will not kick for the next request, because somebody serves the ring.
    quiet: AtomicBool,
    /// `next_avail`, for a look without the lock.
    taken: AtomicU16,
}

impl Inner {
    fn is_current(&self, snapshot: &Snapshot) -> bool {
        self.epoch == snapshot.epoch
            && self
                .memory
                .as_ref()
                .is_some_and(|m| m.generation() == snapshot.generation)
    }

    fn report(&mut self, what: &str) {
        if !std::mem::replace(&mut self.reported, true) {
            tracing::warn!("a virtqueue is broken and not served until it is set up again: {what}");
        }
    }

    fn enter(&mut self, view: &View<'_>, done: Done) {
        // The head of a chain that cannot be is no driver's to get back.
        if done.head >= self.layout.size {
            return;
        }
        if view.put_used(self.next_used, done.head, done.written).is_none() {
            self.report("a request could not be returned");
            return;
        }
        self.next_used = self.next_used.wrapping_add(1);
    }

    /// Shows the guest what is done, and interrupts it if it wants that.
    fn show(&mut self, view: &View<'_>) {
        // The order of what is done means nothing.
        while let Some(done) = self.kept.pop() {
            self.enter(view, done);
        }
        let (old, new) = (self.shown_used, self.next_used);
        if old == new {
            return;
        }
        self.shown_used = new;
        if view.set_used_idx(new).is_none() {
            return self.report("the used index could not be written");
        }
        // The guest asks for an interrupt and then looks at the index; we do it the other way round.
        fence(Ordering::SeqCst);
        let wanted = if self.event_idx {
            // When in doubt, notify: a spurious interrupt costs little, a lost one hangs the guest.
            view.used_event().is_none_or(|event| need_event(event, new, old))
        } else {
            !view.interrupts_off()
        };
        if wanted {
            self.interrupt();
        }
    }

    fn interrupt(&self) {
        if let Some(call) = &self.call
            && let Err(e) = rustix::io::write(call, &1u64.to_ne_bytes())
            && e != rustix::io::Errno::AGAIN
        {
            tracing::warn!(error = %e, "guest could not be notified");
        }
    }

    /// Looks how far the guest has come; whether there is anything to take.
    fn look(&mut self, view: &View<'_>) -> bool {
        if !(self.started && self.enabled) {
            return false;
        }
        match view.avail_idx() {
            Some(idx) if idx.wrapping_sub(self.next_avail) <= self.layout.size => {
                self.seen_avail = idx;
                idx != self.next_avail
            }
            Some(_) => {
                // The guest has scribbled over its ring: no chain, no progress, no harm, and one line in the log.
                self.report("its available index jumps");
                false
            }
            None => {
                self.report("it is at an odd address");
                false
            }
        }
    }

    fn show_where_it_lies(&mut self) {
        if let Some(snapshot) = self.snapshot()
            && let Some(view) = snapshot.layout.view(&snapshot.memory)
        {
            self.show(&view);
        }
    }

    fn snapshot(&self) -> Option<Snapshot> {
        let memory = self.memory.as_ref()?;
        // The number first: should the table be replaced in between, the snapshot is newer than it claims and is
        // taken once more than needed.
        let generation = memory.generation();
        Some(Snapshot {
            memory: memory.snapshot(),
            layout: self.layout,
            generation,
            epoch: self.epoch,
        })
    }
}

impl Ring {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing in here can be left half-done by a panic: each section is a few stores.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The ring as it is now; `None` if it does not run: where it was is the guest's, for anything.
    pub(super) fn snapshot(&self) -> Option<Snapshot> {
        let inner = self.lock();
        inner.started.then(|| inner.snapshot())?
    }

    /// Returns the request that is done, if there is one, and takes the next. With `at_once` the guest is shown what
    /// is done even if more is waiting.
    pub(super) fn next(
        &self,
        view: &View<'_>,
        of: &Snapshot,
        done: &mut Option<Done>,
        at_once: bool,
    ) -> Next {
        let mut inner = self.lock();
        let inner = &mut *inner;
        if !inner.is_current(of) {
            return Next::Changed;
        }
        if let Some(done) = done.take() {
            inner.enter(view, done);
            self.leave(inner);
        }
        if !self.quiet.load(Ordering::Relaxed) {
            self.disarm(inner, view);
        }
        let waiting = inner.started && inner.enabled && inner.seen_avail != inner.next_avail;
        let found = waiting || inner.look(view);
        let shows = !found || at_once || inner.next_used.wrapping_sub(inner.shown_used) >= BATCH;
        if shows || !inner.kept.is_empty() {
            inner.show(view);
        }
        if !found {
            return Next::Nothing;
        }
        // Looked at after the index: memory that the request needs was added before it was made available.
        if !inner.is_current(of) {
            return Next::Changed;
        }
        let index = inner.next_avail;
        let Some(head) = view.head(index) else {
            return Next::Nothing;
        };
        inner.next_avail = index.wrapping_add(1);
        self.taken.store(inner.next_avail, Ordering::Relaxed);
        inner.in_flight += 1;
        Next::Request(Taken {
            index,
            head,
            backlog: inner.seen_avail.wrapping_sub(inner.next_avail),
        })
    }

    fn leave(&self, inner: &mut Inner) {
        // A ring that was reset while a request ran does not know it any more.
        inner.in_flight = inner.in_flight.saturating_sub(1);
        if inner.in_flight == 0 && !inner.started {
            self.drained.notify_all();
        }
    }

    /// Returns a request whose view has become another one.
    pub(super) fn complete(&self, done: Done) {
        let mut inner = self.lock();
        let inner = &mut *inner;
        inner.kept.push(done);
        inner.show_where_it_lies();
        self.leave(inner);
    }

    /// Shows the guest everything that is done.
    pub(super) fn show(&self) {
        let mut inner = self.lock();
        if inner.next_used != inner.shown_used || !inner.kept.is_empty() {
            inner.show_where_it_lies();
        }
    }

    fn disarm(&self, inner: &Inner, view: &View<'_>) {
        self.quiet.store(true, Ordering::Relaxed);
        if !inner.event_idx {
            // With EVENT_IDX the index asked for is left behind, which asks for nothing.
            let _odd = view.set_kicks(false);
        }
    }

    /// Asks the guest to kick for the next request; true if there is one already.
    pub(super) fn arm(&self, view: &View<'_>, of: &Snapshot) -> bool {
        let mut inner = self.lock();
        if !inner.is_current(of) {
            return true;
        }
        if inner.event_idx {
            let _odd = view.set_avail_event(inner.next_avail);
        } else {
            let _odd = view.set_kicks(true);
        }
        self.quiet.store(false, Ordering::Relaxed);
        // Or the look below could be older than the request for a kick, and the guest's older than its index.
        fence(Ordering::SeqCst);
        inner.look(view)
    }

    /// Whether the guest will not kick for the next request.
    pub(super) fn is_quiet(&self) -> bool {
        self.quiet.load(Ordering::Relaxed)
    }

    /// Whether the guest of a ring that can be served will not kick for the next request.
    pub(super) fn is_left_quiet(&self) -> bool {
        self.is_quiet() && {
            let inner = self.lock();
            let is_viewable = |snapshot: &Snapshot| snapshot.layout.view(&snapshot.memory).is_some();
            inner.started && inner.snapshot().as_ref().is_some_and(is_viewable)
        }
    }

    /// A look without the lock: whether the guest has made something available.
    pub(super) fn has_more(&self, view: &View<'_>) -> bool {
        view.avail_idx()
            .is_some_and(|idx| idx != self.taken.load(Ordering::Relaxed))
    }

    /// How many requests the guest has made available that nobody has taken.
    pub(crate) fn depth(&self) -> u16 {
        let inner = self.lock();
        let idx = inner
            .snapshot()
            .filter(|_| inner.started)
            .and_then(|snapshot| snapshot.layout.view(&snapshot.memory)?.avail_idx());
        // A guest that has scribbled over its ring has nothing in it.
        idx.map(|idx| idx.wrapping_sub(inner.next_avail))
            .filter(|depth| *depth <= inner.layout.size)
            .unwrap_or(0)
    }

    pub(crate) fn set_size(&self, size: u32) -> bool {
        match u16::try_from(size) {
            Ok(size) if size.is_power_of_two() && size <= MAX_QUEUE_SIZE => {
                self.change(|inner| inner.layout.size = size);
                true
            }
            _ => false,
        }
    }

    pub(crate) fn set_addresses(&self, desc: GuestAddress, avail: GuestAddress, used: GuestAddress) -> bool {
        let aligned = desc.0.is_multiple_of(16) && avail.0.is_multiple_of(2) && used.0.is_multiple_of(4);
        if aligned {
            self.change(|inner| {
                let layout = &mut inner.layout;
                (layout.desc, layout.avail, layout.used) = (desc.0, avail.0, used.0);
            });
        }
        aligned
    }

    /// Changes something that views know.
    fn change(&self, change: impl FnOnce(&mut Inner)) {
        let mut inner = self.lock();
        inner.epoch += 1;
        change(&mut inner);
    }

    pub(crate) fn set_memory(&self, memory: Memory) {
        self.change(|inner| inner.memory = Some(memory));
    }

    /// SET_VRING_CALL. The new descriptor is written to at once: a frontend that masks an interrupt puts another one in
    /// its place, and what came there after its last look would be lost.
    pub(crate) fn set_call(&self, call: Option<OwnedFd>) {
        let mut inner = self.lock();
        inner.call = call;
        inner.interrupt();
    }

    pub(crate) fn set_enabled(&self, enabled: bool) {
        self.lock().enabled = enabled;
    }

    /// SET_VRING_BASE: where to begin reading the avail ring.
    pub(crate) fn set_base(&self, base: u16) {
        self.change(|inner| (inner.next_avail, inner.seen_avail) = (base, base));
        self.taken.store(base, Ordering::Relaxed);
    }

    /// Begins serving. The used index is taken from the ring, which is what the guest has seen. One that runs goes on.
    pub(crate) fn start(&self, event_idx: bool) {
        self.change(|inner| {
            if inner.started {
                return;
            }
            let Some(snapshot) = inner.snapshot() else { return };
            let Some(view) = snapshot.layout.view(&snapshot.memory) else {
                return;
            };
            let Some(used) = view.used_idx() else { return };
            (inner.next_used, inner.shown_used) = (used, used);
            inner.seen_avail = inner.next_avail;
            inner.event_idx = event_idx;
            inner.started = true;
            inner.reported = false;
            inner.kept.clear();
            self.quiet.store(false, Ordering::Relaxed);
        });
    }

    /// Stops taking requests, waits until those taken are returned, and says where the next session goes on.
    /// `interrupted` is asked from time to time; once true, the wait ends and the rest is abandoned.
    pub(crate) fn stop(&self, interrupted: &dyn Fn() -> bool) -> u16 {
        let mut inner = self.lock();
        inner.started = false;
        // Nor must whoever serves it ask there for kicks.
        inner.epoch += 1;
        // A request must not write into guest memory after the guest was told that the ring has stopped, so a
        // slow one is waited for. Its backend has its own deadline.
        while inner.in_flight > 0 && !interrupted() {
            inner = self
                .drained
                .wait_timeout(inner, Duration::from_millis(20))
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        inner.show_where_it_lies();
        inner.next_avail
    }

    /// Forgets everything a session configured.
    pub(crate) fn reset(&self) {
        let mut inner = self.lock();
        *inner = Inner {
            epoch: inner.epoch + 1,
            in_flight: inner.in_flight,
            ..Inner::default()
        };
        self.taken.store(0, Ordering::Relaxed);
        self.quiet.store(false, Ordering::Relaxed);
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#[path = "ring_tests.rs"]
mod tests;
