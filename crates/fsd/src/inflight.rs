//! The requests being served, one slot a worker.
//!
//! A slot is written by its worker with plain stores and read by the monitor and the metrics, so a reader may
//! see the opcode of one request with the start of the next. It is for looking, not for deciding about a request.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

/// A request as the metrics show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub(crate) struct InflightOp {
    pub(crate) inode: u64,
    pub(crate) opcode: u32,
    pub(crate) unique: u64,
    /// Start, in seconds since the Unix epoch.
    pub(crate) timestamp_secs: u64,
    /// How long ago that was, in milliseconds. Not among what nydusd tells.
    pub(crate) age_ms: u64,
}

/// One slot; a cache line pair of its own so that workers do not slow each other.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Cell {
    claimed: AtomicBool,
    /// When the next request begins, as `since`.
    clock: AtomicU64,
    /// Nanoseconds since the epoch of the table plus one; 0 when no request is being served.
    since: AtomicU64,
    inode: AtomicU64,
    unique: AtomicU64,
    opcode: AtomicU32,
}

/// The table of slots.
#[derive(Debug)]
pub(crate) struct Inflight {
    epoch: Instant,
    cells: Box<[Cell]>,
}

/// One worker's slot.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slot<'a> {
    table: &'a Inflight,
    number: usize,
}

impl Inflight {
    pub(crate) fn new(slots: usize) -> Self {
        Self {
            epoch: Instant::now(),
            cells: (0..slots).map(|_| Cell::default()).collect(),
        }
    }

    /// How many slots there are.
    pub(crate) fn slots(&self) -> usize {
        self.cells.len()
    }

    /// Takes a free slot; `None` when all are taken.
    pub(crate) fn claim(&self) -> Option<Slot<'_>> {
        let number = self
            .cells
            .iter()
            .position(|c| !c.claimed.swap(true, Ordering::SeqCst))?;
        Some(Slot { table: self, number })
    }

    /// The slot with this number.
    pub(crate) fn slot(&self, number: usize) -> Slot<'_> {
        Slot { table: self, number }
    }

    /// Makes a slot free for the next worker.
    pub(crate) fn give_back(&self, number: usize) {
        self.cells[number].claimed.store(false, Ordering::SeqCst);
    }

    fn now(&self) -> u64 {
        self.at(Instant::now())
    }

    fn at(&self, time: Instant) -> u64 {
        // 2^64 ns are 584 years.
        u64::try_from(time.saturating_duration_since(self.epoch).as_nanos())
            .unwrap_or(u64::MAX)
            .saturating_add(1)
    }

    /// How many requests have been served for at least this long.
    pub(crate) fn busy_for(&self, age: Duration) -> usize {
        let before = self
            .now()
            .saturating_sub(u64::try_from(age.as_nanos()).unwrap_or(u64::MAX));
        self.cells
            .iter()
            .filter(|c| (1..=before).contains(&c.since.load(Ordering::Relaxed)))
            .count()
    }

    /// The requests being served, for the metrics.
    pub(crate) fn list(&self) -> Vec<InflightOp> {
        let now = self.now();
        let wall = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        self.cells
            .iter()
            .filter_map(|c| {
                let since = c.since.load(Ordering::Acquire);
                (since != 0).then(|| {
                    let age = Duration::from_nanos(now.saturating_sub(since));
                    InflightOp {
                        inode: c.inode.load(Ordering::Relaxed),
                        opcode: c.opcode.load(Ordering::Relaxed),
                        unique: c.unique.load(Ordering::Relaxed),
                        timestamp_secs: wall.saturating_sub(age).as_secs(),
                        age_ms: u64::try_from(age.as_millis()).unwrap_or(u64::MAX),
                    }
                })
            })
            .collect()
    }
}

impl Slot<'_> {
    pub(crate) fn number(&self) -> usize {
        self.number
    }

    /// When the next request begins: its worker has looked at the clock anyway.
    pub(crate) fn set_clock(&self, now: Instant) {
        let clock = &self.table.cells[self.number].clock;
        clock.store(self.table.at(now), Ordering::Relaxed);
    }

    /// A request begins; when that is.
    pub(crate) fn begin(&self, inode: u64, opcode: u32, unique: u64) -> Instant {
        let cell = &self.table.cells[self.number];
        cell.inode.store(inode, Ordering::Relaxed);
        cell.opcode.store(opcode, Ordering::Relaxed);
        cell.unique.store(unique, Ordering::Relaxed);
        let clock = cell.clock.load(Ordering::Relaxed);
        cell.since.store(clock, Ordering::Release);
        self.table.epoch + Duration::from_nanos(clock.saturating_sub(1))
    }

    /// It is done.
    pub(crate) fn end(&self) {
        self.table.cells[self.number].since.store(0, Ordering::Release);
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_claimed_once_until_it_is_given_back() {
        let table = Inflight::new(2);
        let (a, b) = (table.claim().unwrap(), table.claim().unwrap());
        assert_ne!(a.number(), b.number());
        assert!(table.claim().is_none());
        table.give_back(a.number());
        assert_eq!(table.claim().unwrap().number(), a.number());
    }

    #[test]
    fn only_what_is_being_served_is_listed() {
        let table = Inflight::new(2);
        let slot = table.claim().unwrap();
        assert_eq!(table.busy_for(Duration::ZERO), 0);
        slot.set_clock(Instant::now());
        slot.begin(7, 15, 42);
        assert_eq!(table.busy_for(Duration::from_secs(3600)), 0);
        assert_eq!(table.busy_for(Duration::ZERO), 1);
        let op = table.list()[0];
        assert_eq!((op.inode, op.opcode, op.unique), (7, 15, 42));
        slot.end();
        assert_eq!((table.busy_for(Duration::ZERO), table.list().len()), (0, 0));
    }
}
