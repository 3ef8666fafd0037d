//! The device as a whole: its session, its rings and the workers that serve them.
//!
//! The session thread (`listener.rs`) changes it, the workers (`pool.rs`) run on it. Lock order: session, then
//! ring.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

use super::memory::MemoryTable;
use super::pool::{Pool, PoolConfig};
use super::ring::Ring;
use super::session::Session;
use crate::fuse::FuseServer;
use crate::metrics::Tallies;

/// One virtio-fs device.
#[derive(Debug)]
pub(crate) struct Device {
    session: Mutex<Session>,
    rings: Arc<[Ring]>,
    pool: Pool,
    fuse: Arc<FuseServer>,
    attached: AtomicBool,
    stopping: AtomicBool,
}

impl Device {
    /// A device with one high-priority and `request_queues` request queues, and its first workers.
    pub(crate) fn new(
        fuse: Arc<FuseServer>,
        request_queues: usize,
        tallies: Arc<Tallies>,
        pool: PoolConfig,
    ) -> std::io::Result<Arc<Self>> {
        let rings: Arc<[Ring]> = (0..=request_queues).map(|_| Ring::default()).collect();
        let pool = Pool::new(Arc::clone(&rings), Arc::clone(&fuse), tallies, pool)?;
        Ok(Arc::new(Self {
            session: Mutex::new(Session::new(rings.len(), fuse.negotiated())),
            rings,
            pool,
            fuse,
            attached: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
        }))
    }

    pub(crate) fn session(&self) -> MutexGuard<'_, Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn rings(&self) -> &[Ring] {
        &self.rings
    }

    /// The requests being served now.
    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Whether a frontend is connected.
    pub(crate) fn attached(&self) -> bool {
        self.attached.load(Ordering::Relaxed)
    }

    pub(crate) fn set_attached(&self, attached: bool) {
        self.attached.store(attached, Ordering::Relaxed);
        self.pool.tidy();
    }

    /// Ends waits for requests in flight; from now on the device only winds down.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.pool.stop();
    }

    /// Changes the guest's memory, whatever lies there meanwhile.
    pub(crate) fn change_memory<T>(&self, change: impl FnOnce(&mut MemoryTable) -> T) -> T {
        let changed = change(&mut self.session().memory);
        // A kick that came while a ring lay in no memory was consumed without effect, and what was done there has not
        // been shown.
        self.pool.wake_one();
        changed
    }

    pub(crate) fn enable_ring(&self, index: usize, enabled: bool) {
        self.session().rings[index].enabled = enabled;
        self.rings[index].set_enabled(enabled);
        // A kick that came while the ring was disabled was consumed without effect.
        self.pool.wake_one();
    }

    pub(crate) fn start_ring(&self, index: usize, kick: OwnedFd) -> rustix::io::Result<()> {
        let mut session = self.session();
        let ring = &self.rings[index];
        ring.set_memory(session.memory.handle());
        ring.start(session.features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0);
        session.rings[index].started = true;
        drop(session);
        self.pool.watch(index, kick)?;
        self.pool.wake_one();
        Ok(())
    }

    pub(crate) fn stop_ring(&self, index: usize) -> u16 {
        self.pool.unwatch(index);
        let base = self.rings[index].stop(&|| self.stopping.load(Ordering::SeqCst));
        let mut session = self.session();
        session.rings[index].started = false;
        session.rings[index].base = base;
        base
    }

    /// The frontend is gone: waits for its requests, then forgets what it negotiated.
    pub(crate) fn reset_session(&self) {
        for index in 0..self.rings.len() {
            self.stop_ring(index);
        }
        for ring in self.rings.iter() {
            ring.reset();
        }
        tracing::debug!(session = ?*self.session(), "session ends");
        self.fuse.reset();
        *self.session() = Session::new(self.rings.len(), self.fuse.negotiated());
    }
}
