//! The workers that serve the rings: how many there are, and what they share.
//!
//! All workers wait in one epoll set; a kick wakes one of them, which serves every ring until all are empty, and runs
//! each request itself: no hand-off on the way (`worker.rs`). It may block in a request for as long as a blob takes to
//! arrive. So that it never holds up the others, the monitor (`monitor.rs`) looks every millisecond while there is
//! work: it wakes or adds a colleague where all who are awake are stuck. Workers beyond the base number leave when
//! idle.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, Thread};
use std::time::Duration;

use rustix::event::{EventfdFlags, epoll, eventfd};

use super::headcount::Headcount;
use super::ring::Ring;
use super::{monitor, worker};
use crate::fuse::FuseServer;
use crate::inflight::Inflight;
use crate::metrics::Tallies;

/// Stack of a worker, in bytes: what RAFS' deepest call takes, tenfold. Only what is used is ever backed by memory.
const WORKER_STACK: usize = 1 << 20;
/// Stack of the monitor, in bytes.
const MONITOR_STACK: usize = 128 << 10;

pub(super) const WAKE: u64 = u64::MAX;
pub(super) const STOP: u64 = u64::MAX - 1;

/// How many workers serve a device.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PoolConfig {
    /// Workers that are always there.
    pub(crate) base: usize,
    /// Workers when all others block.
    pub(crate) max: usize,
    /// How long a worker looks for the next request before it sleeps, at the most.
    pub(crate) poll: Duration,
}

impl PoolConfig {
    fn base(&self) -> usize {
        self.base.max(1)
    }

    /// Workers there may ever be at once.
    pub(crate) fn most(&self) -> usize {
        self.max.max(self.base())
    }
}

/// How the workers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Crew {
    /// How many there are.
    pub(crate) workers: usize,
    /// How many of them serve or look for requests.
    pub(crate) busy: usize,
    /// How many there may be.
    pub(crate) max: usize,
}

/// The workers of one device.
#[derive(Debug)]
pub(crate) struct Pool {
    shared: Arc<Shared>,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) epoll: OwnedFd,
    wake: OwnedFd,
    stop: OwnedFd,
    /// The kick descriptors being watched; epoll does not keep them open.
    kicks: Mutex<Vec<Option<OwnedFd>>>,
    pub(super) rings: Arc<[Ring]>,
    pub(super) fuse: Arc<FuseServer>,
    pub(super) inflight: Inflight,
    pub(super) tallies: Arc<Tallies>,
    pub(super) base: u32,
    pub(super) poll: Duration,
    pub(super) headcount: Headcount,
    /// Somebody polls; a second one would only take a processor away.
    pub(super) polling: AtomicBool,
    /// A worker was woken to help and has not come yet.
    pub(super) helper_called: AtomicBool,
    /// Requests have blocked lately: each is run with a colleague watching.
    pub(super) wary: AtomicBool,
    pub(super) stopped: AtomicBool,
    pub(super) monitor_asleep: AtomicBool,
    /// Something was done that is done seldom and leaves memory behind: starting, mounting, a new frontend.
    pub(super) untidy: AtomicBool,
    monitor: Mutex<Option<Thread>>,
}

impl Pool {
    pub(crate) fn new(
        rings: Arc<[Ring]>,
        fuse: Arc<FuseServer>,
        tallies: Arc<Tallies>,
        config: PoolConfig,
    ) -> std::io::Result<Self> {
        let base = config.base();
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let shared = Arc::new(Shared {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            wake: eventfd(0, flags)?,
            stop: eventfd(0, flags)?,
            kicks: Mutex::new((0..rings.len()).map(|_| None).collect()),
            rings,
            fuse,
            inflight: Inflight::new(config.most()),
            tallies,
            base: u32::try_from(base).unwrap_or(u32::MAX),
            poll: config.poll,
            headcount: Headcount::default(),
            polling: AtomicBool::new(false),
            helper_called: AtomicBool::new(false),
            wary: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            monitor_asleep: AtomicBool::new(true),
            untidy: AtomicBool::new(true),
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
            .stack_size(MONITOR_STACK)
            .spawn(move || monitor::run(&weak))?;
        *pool.shared.monitor.lock().unwrap_or_else(PoisonError::into_inner) = Some(monitor.thread().clone());
        Ok(pool)
    }

    /// The requests being served now.
    pub(crate) fn inflight(&self) -> &Inflight {
        &self.shared.inflight
    }

    /// How the workers are now.
    pub(crate) fn crew(&self) -> Crew {
        let count = self.shared.headcount.now();
        let number = |of: u32| usize::try_from(of).unwrap_or(usize::MAX);
        Crew {
            workers: number(count.threads),
            busy: number(count.awake()),
            max: self.shared.inflight.slots(),
        }
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

    /// Has memory given back that is no longer needed, as soon as no request is served.
    pub(crate) fn tidy(&self) {
        self.shared.untidy.store(true, Ordering::SeqCst);
        self.shared.wake_monitor();
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
    pub(super) fn wake_one(&self) {
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    /// For a worker that will take requests: if one of them blocks, somebody has to see it.
    pub(super) fn rouse_monitor(&self) {
        if self.monitor_asleep.load(Ordering::SeqCst) {
            self.wake_monitor();
        }
    }

    pub(super) fn wake_monitor(&self) {
        if let Some(thread) = &*self.monitor.lock().unwrap_or_else(PoisonError::into_inner) {
            self.monitor_asleep.store(false, Ordering::SeqCst);
            thread.unpark();
        }
    }
}

/// Adds a worker, unless there are as many as there may be.
pub(super) fn spawn_worker(shared: &Arc<Shared>) -> std::io::Result<()> {
    let Some(slot) = shared.inflight.claim() else {
        return Ok(());
    };
    let number = slot.number();
    shared.headcount.join();
    let for_thread = Arc::clone(shared);
    let spawned = thread::Builder::new()
        .name(format!("fs-worker-{number}"))
        .stack_size(WORKER_STACK)
        .spawn(move || {
            worker::run(&for_thread, &for_thread.inflight.slot(number));
            for_thread.inflight.give_back(number);
        });
    if let Err(e) = spawned {
        shared.headcount.leave();
        shared.wake_one();
        shared.inflight.give_back(number);
        return Err(e);
    }
    Ok(())
}
