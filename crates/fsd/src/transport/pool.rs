//! The workers that serve the rings.
//!
//! All workers wait in one epoll set; a kick wakes one of them. It takes a request, wakes a colleague if more are
//! waiting, and runs the request itself: no hand-off on the way. A worker may block in its request for as long as
//! a blob takes to arrive. So that it never holds up the others, the monitor adds a worker whenever all of them
//! have been at the same requests for a tick, up to a limit; workers beyond the base number leave when idle.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::{self, Thread};
use std::time::Duration;

use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};

use super::ring::{Popped, Ring};
use crate::fuse::FuseServer;
use crate::inflight::{Inflight, Slot};

/// How long all workers must be busy with the same requests before one is added. Long against a warm request
/// (tens of µs), short against what a guest feels.
const STALL_TICK: Duration = Duration::from_millis(1);
/// After this many ticks without work the monitor sleeps until a worker wakes it.
const IDLE_TICKS: u32 = 50;
/// How long a worker above the base number stays without work.
const RETIRE_AFTER: Timespec = Timespec {
    tv_sec: 10,
    tv_nsec: 0,
};

const WAKE: u64 = u64::MAX;
const STOP: u64 = u64::MAX - 1;

/// How many workers serve a device.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PoolConfig {
    /// Workers that are always there.
    pub(crate) base: usize,
    /// Workers when all others block.
    pub(crate) max: usize,
}

/// The workers of one device.
#[derive(Debug)]
pub(crate) struct Pool {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    epoll: OwnedFd,
    wake: OwnedFd,
    stop: OwnedFd,
    /// The kick descriptors being watched; epoll does not keep them open.
    kicks: Mutex<Vec<Option<OwnedFd>>>,
    rings: Arc<[Ring]>,
    fuse: Arc<FuseServer>,
    inflight: Inflight,
    base: usize,
    threads: AtomicUsize,
    idle: AtomicUsize,
    stopped: AtomicBool,
    monitor_asleep: AtomicBool,
    monitor: Mutex<Option<Thread>>,
}

impl Pool {
    pub(crate) fn new(
        rings: Arc<[Ring]>,
        fuse: Arc<FuseServer>,
        config: PoolConfig,
    ) -> std::io::Result<Self> {
        let base = config.base.max(1);
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let shared = Arc::new(Shared {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            wake: eventfd(0, flags)?,
            stop: eventfd(0, flags)?,
            kicks: Mutex::new((0..rings.len()).map(|_| None).collect()),
            rings,
            fuse,
            inflight: Inflight::new(config.max.max(base)),
            base,
            threads: AtomicUsize::new(0),
            idle: AtomicUsize::new(0),
            stopped: AtomicBool::new(false),
            monitor_asleep: AtomicBool::new(true),
            monitor: Mutex::new(None),
        });
        // Edge-triggered: each write wakes one waiting worker and nobody has to read the counter back.
        let edge = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&shared.epoll, &shared.wake, epoll::EventData::new_u64(WAKE), edge)?;
        // Level-triggered: every worker sees it.
        epoll::add(
            &shared.epoll,
            &shared.stop,
            epoll::EventData::new_u64(STOP),
            epoll::EventFlags::IN,
        )?;
        let pool = Self { shared };
        for _ in 0..base {
            spawn_worker(&pool.shared)?;
        }
        let weak = Arc::downgrade(&pool.shared);
        let monitor = thread::Builder::new()
            .name("fs-monitor".into())
            .spawn(move || monitor(&weak))?;
        *pool.shared.monitor.lock().unwrap_or_else(PoisonError::into_inner) = Some(monitor.thread().clone());
        Ok(pool)
    }

    /// The requests being served now.
    pub(crate) fn inflight(&self) -> &Inflight {
        &self.shared.inflight
    }

    /// Serves ring `index` whenever `kick` is written.
    pub(crate) fn watch(&self, index: usize, kick: OwnedFd) -> rustix::io::Result<()> {
        let mut kicks = self.shared.kicks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(old) = kicks[index].take() {
            epoll::delete(&self.shared.epoll, &old)?;
        }
        let edge = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(
            &self.shared.epoll,
            &kick,
            epoll::EventData::new_u64(index as u64),
            edge,
        )?;
        kicks[index] = Some(kick);
        Ok(())
    }

    /// No longer watches ring `index`.
    pub(crate) fn unwatch(&self, index: usize) {
        let mut kicks = self.shared.kicks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(old) = kicks[index].take()
            && let Err(e) = epoll::delete(&self.shared.epoll, &old)
        {
            tracing::warn!(ring = index, error = %e, "kick descriptor could not be taken out of the epoll set");
        }
    }

    /// Has one worker look at all rings.
    pub(crate) fn wake_one(&self) {
        self.shared.wake_one();
    }

    /// Has every worker leave once its present request is done.
    pub(crate) fn stop(&self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        // An eventfd takes 2^64 - 2 of these before it would block.
        let _ = rustix::io::write(&self.shared.stop, &1u64.to_ne_bytes());
        self.shared.wake_monitor();
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn wake_one(&self) {
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    fn wake_monitor(&self) {
        if let Some(thread) = &*self.monitor.lock().unwrap_or_else(PoisonError::into_inner) {
            self.monitor_asleep.store(false, Ordering::SeqCst);
            thread.unpark();
        }
    }

    /// Takes and runs requests until ring `index` is empty.
    fn drain(&self, index: usize, slot: &Slot) {
        let ring = &self.rings[index];
        while let Popped::Request { chain, more } = ring.pop() {
            if more && self.idle.load(Ordering::SeqCst) > 0 {
                self.wake_one();
            }
            if self.monitor_asleep.load(Ordering::Relaxed) {
                self.wake_monitor();
            }
            let head = chain.head_index();
            let written = self.fuse.serve(&chain, slot);
            ring.complete(head, written);
            if self.stopped.load(Ordering::Relaxed) {
                return;
            }
        }
    }

    fn drain_all(&self, slot: &Slot) {
        // Requests before forgets: nobody waits for a forget.
        for index in (0..self.rings.len()).rev() {
            self.drain(index, slot);
        }
    }

    fn run_worker(&self, slot: &Slot) {
        let mut events = [epoll::Event {
            flags: epoll::EventFlags::empty(),
            data: epoll::EventData::new_u64(0),
        }];
        // The worker may have been started because others left requests behind.
        self.drain_all(slot);
        while !self.stopped.load(Ordering::SeqCst) {
            // Idle first, then the look: whoever leaves requests behind stores the backlog first and then looks
            // for the idle, so one of the two sees the other.
            self.idle.fetch_add(1, Ordering::SeqCst);
            if self.rings.iter().any(Ring::has_backlog) {
                self.idle.fetch_sub(1, Ordering::SeqCst);
                self.drain_all(slot);
                continue;
            }
            let surplus = self.threads.load(Ordering::Relaxed) > self.base;
            let timeout = surplus.then_some(&RETIRE_AFTER);
            let got = epoll::wait(&self.epoll, &mut events, timeout);
            self.idle.fetch_sub(1, Ordering::SeqCst);
            match got {
                Ok(0) => {
                    if self.retire() {
                        return;
                    }
                }
                Ok(_) => match events[0].data.u64() {
                    STOP => break,
                    WAKE => self.drain_all(slot),
                    index => {
                        if let Ok(index) = usize::try_from(index) {
                            self.drain(index, slot);
                        }
                    }
                },
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => {
                    tracing::error!(error = %e, "worker cannot wait for requests and ends");
                    break;
                }
            }
        }
        self.threads.fetch_sub(1, Ordering::SeqCst);
    }

    /// Gives up this worker's place if there are more than the base number.
    fn retire(&self) -> bool {
        self.threads
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| {
                (n > self.base).then(|| n - 1)
            })
            .is_ok()
    }
}

fn spawn_worker(shared: &Arc<Shared>) -> std::io::Result<()> {
    let Some(slot) = shared.inflight.claim() else {
        return Ok(());
    };
    let number = slot.number();
    shared.threads.fetch_add(1, Ordering::SeqCst);
    let for_thread = Arc::clone(shared);
    let spawned = thread::Builder::new()
        .name(format!("fs-worker-{number}"))
        .spawn(move || {
            for_thread.run_worker(&for_thread.inflight.slot(number));
            for_thread.inflight.give_back(number);
        });
    if let Err(e) = spawned {
        shared.threads.fetch_sub(1, Ordering::SeqCst);
        shared.inflight.give_back(number);
        return Err(e);
    }
    Ok(())
}

/// Adds a worker whenever all of them are stuck. Holds the pool weakly: it ends with it.
fn monitor(pool: &Weak<Shared>) {
    let mut quiet_ticks = 0;
    loop {
        let nap = {
            let Some(shared) = pool.upgrade() else { return };
            if shared.stopped.load(Ordering::SeqCst) {
                return;
            }
            if shared.inflight.busy() > 0 {
                quiet_ticks = 0;
                shared.monitor_asleep.store(false, Ordering::SeqCst);
                let stuck = shared.inflight.busy_for(STALL_TICK);
                if stuck >= shared.threads.load(Ordering::SeqCst)
                    && let Err(e) = spawn_worker(&shared)
                {
                    tracing::warn!(error = %e, "no worker could be added although all are blocked");
                }
            } else {
                quiet_ticks += 1;
            }
            if quiet_ticks > IDLE_TICKS {
                shared.monitor_asleep.store(true, Ordering::SeqCst);
                // A worker wakes it with its first request. Should that be missed, because the flag was set at
                // the same moment, this look finds it.
                Duration::from_secs(1)
            } else {
                STALL_TICK
            }
        };
        thread::park_timeout(nap);
    }
}
