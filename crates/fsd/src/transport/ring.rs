//! One virtqueue, shared by the session thread that configures it and the workers that serve it.
//!
//! Workers hold the lock only to take a chain or to return one; requests run without it. Popping always asks the
//! guest to notify for the next chain (`avail_event` follows `next_avail`), so that a worker that then blocks in
//! its request never hides later ones. Next: `pool.rs` for who pops, `handler.rs` for who configures.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};

use super::memory::Guard;

/// The largest queue accepted; what the virtio specification allows.
pub(crate) const MAX_QUEUE_SIZE: u16 = 32768;

/// A request as it came off the ring.
pub(crate) type Chain = DescriptorChain<Guard>;

/// What a look at the ring found.
#[derive(Debug)]
pub(crate) enum Popped {
    /// A request, and whether more are waiting behind it.
    Request { chain: Chain, more: bool },
    /// Nothing to do: empty, stopped or disabled.
    Nothing,
}

#[derive(Debug)]
struct Inner {
    queue: Queue,
    memory: Option<GuestMemoryAtomic<GuestMemoryMmap>>,
    call: Option<OwnedFd>,
    /// Started by SET_VRING_KICK, stopped by GET_VRING_BASE.
    started: bool,
    /// SET_VRING_ENABLE; rings are born enabled where the frontend has no PROTOCOL_FEATURES.
    enabled: bool,
    /// Requests popped and not yet returned.
    in_flight: u32,
    /// A broken ring is reported once: a guest cannot fill the log with it.
    reported: bool,
}

/// One virtqueue.
#[derive(Debug)]
pub(crate) struct Ring {
    inner: Mutex<Inner>,
    drained: Condvar,
    /// Set when a pop saw more requests behind the one it took. A worker looks at it before it sleeps, so that
    /// what one worker left behind is never forgotten.
    backlog: AtomicBool,
}

impl Ring {
    pub(crate) fn new() -> Self {
        // The size is a power of two within the limit of the specification, the only error there is.
        let queue = Queue::new(MAX_QUEUE_SIZE).expect("the maximal queue size is valid");
        Self {
            inner: Mutex::new(Inner {
                queue,
                memory: None,
                call: None,
                started: false,
                enabled: false,
                in_flight: 0,
                reported: false,
            }),
            drained: Condvar::new(),
            backlog: AtomicBool::new(false),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing in here can be left half-done by a panic: each section is a few stores.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the next request, if there is one.
    pub(crate) fn pop(&self) -> Popped {
        let mut inner = self.lock();
        let inner = &mut *inner;
        // A backlog that cannot be served now must not keep workers awake; whoever starts or enables the ring
        // again has a worker look at it.
        self.backlog.store(false, Ordering::SeqCst);
        if !(inner.started && inner.enabled) {
            return Popped::Nothing;
        }
        let Some(memory) = inner.memory.as_ref().map(GuestAddressSpace::memory) else {
            return Popped::Nothing;
        };
        // The second round is for a request published between the look and the re-armed notification.
        for _ in 0..2 {
            let chain = match inner.queue.iter(memory.clone()) {
                Ok(mut available) => available.next(),
                // The guest has scribbled over its ring: no chain, no progress, no harm, and one line in the log.
                Err(e) => {
                    if !std::mem::replace(&mut inner.reported, true) {
                        tracing::warn!(error = %e, "a virtqueue is broken and not served until it is set up again");
                    }
                    None
                }
            };
            let more = inner.queue.enable_notification(&*memory).unwrap_or(false);
            if let Some(chain) = chain {
                inner.in_flight += 1;
                self.backlog.store(more, Ordering::SeqCst);
                return Popped::Request { chain, more };
            }
            if !more {
                break;
            }
        }
        Popped::Nothing
    }

    /// Returns a request to the guest with the number of bytes written into it.
    pub(crate) fn complete(&self, head: u16, written: u32) {
        let mut inner = self.lock();
        let inner = &mut *inner;
        inner.in_flight -= 1;
        if inner.in_flight == 0 {
            self.drained.notify_all();
        }
        let Some(memory) = inner.memory.as_ref().map(GuestAddressSpace::memory) else {
            return;
        };
        if let Err(e) = inner.queue.add_used(&*memory, head, written) {
            if !std::mem::replace(&mut inner.reported, true) {
                tracing::warn!(head, error = %e, "a request could not be returned to the guest");
            }
            return;
        }
        // When in doubt, notify: a spurious interrupt costs little, a lost one hangs the guest.
        if inner.queue.needs_notification(&*memory).unwrap_or(true)
            && let Some(call) = &inner.call
            && let Err(e) = rustix::io::write(call, &1u64.to_ne_bytes())
            && e != rustix::io::Errno::AGAIN
        {
            tracing::warn!(error = %e, "guest could not be notified");
        }
    }

    /// Whether a pop left requests behind.
    pub(crate) fn has_backlog(&self) -> bool {
        self.backlog.load(Ordering::SeqCst)
    }

    pub(crate) fn set_size(&self, size: u32) -> bool {
        let Ok(size) = u16::try_from(size) else {
            return false;
        };
        self.lock().queue.try_set_size(size).is_ok()
    }

    pub(crate) fn set_addresses(&self, desc: GuestAddress, avail: GuestAddress, used: GuestAddress) -> bool {
        let mut inner = self.lock();
        inner.queue.try_set_desc_table_address(desc).is_ok()
            && inner.queue.try_set_avail_ring_address(avail).is_ok()
            && inner.queue.try_set_used_ring_address(used).is_ok()
    }

    pub(crate) fn set_memory(&self, memory: GuestMemoryAtomic<GuestMemoryMmap>) {
        self.lock().memory = Some(memory);
    }

    pub(crate) fn set_call(&self, call: Option<OwnedFd>) {
        self.lock().call = call;
    }

    pub(crate) fn set_enabled(&self, enabled: bool) {
        self.lock().enabled = enabled;
    }

    /// SET_VRING_BASE: where to begin reading the avail ring.
    pub(crate) fn set_base(&self, base: u16) {
        self.lock().queue.set_next_avail(base);
    }

    /// Begins serving. The used index is taken from the ring, which is what the guest has seen.
    pub(crate) fn start(&self, event_idx: bool) {
        let mut inner = self.lock();
        let inner = &mut *inner;
        let Some(memory) = inner.memory.as_ref().map(GuestAddressSpace::memory) else {
            return;
        };
        if let Ok(used) = inner.queue.used_idx(&*memory, Ordering::Relaxed) {
            inner.queue.set_next_used(used.0);
        }
        inner.queue.set_event_idx(event_idx);
        inner.queue.set_ready(true);
        if !inner.queue.is_valid(&*memory) {
            inner.queue.set_ready(false);
            return;
        }
        inner.started = true;
        inner.reported = false;
    }

    /// Stops taking requests, waits until those taken are returned, and says where the next session goes on.
    /// `interrupted` is asked from time to time; once true, the wait ends and the rest is abandoned.
    pub(crate) fn stop(&self, interrupted: &dyn Fn() -> bool) -> u16 {
        let mut inner = self.lock();
        inner.started = false;
        // A request must not write into guest memory after the guest was told that the ring has stopped, so a
        // slow one is waited for. Its backend has its own deadline.
        while inner.in_flight > 0 && !interrupted() {
            inner = self
                .drained
                .wait_timeout(inner, Duration::from_millis(20))
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        inner.queue.set_ready(false);
        inner.queue.next_avail()
    }

    /// Forgets everything a session configured.
    pub(crate) fn reset(&self) {
        let mut inner = self.lock();
        inner.queue.reset();
        inner.memory = None;
        inner.call = None;
        inner.enabled = false;
        inner.started = false;
        self.backlog.store(false, Ordering::SeqCst);
    }
}
