//! Counters of what guests ask, by mount and kind of request.
//!
//! Each worker writes its own, with plain loads and stores; whoever wants figures adds them up. Counters only grow: a
//! mount's figures are what was added since it was mounted (`namespace`), so that a place in the VFS that is used
//! again begins at nothing without a moment at which it is set to that.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::operation::{self, KINDS};

/// Places of the VFS; 0 is the namespace itself.
const PLACES: usize = 256;
/// Where the VFS puts the place of a mount in the number of an inode.
const PLACE_SHIFT: u32 = 56;
/// The root of what the guest sees.
const ROOT: u64 = 1;

/// Upper bounds of the latencies that are told apart, in nanoseconds. Those of nydus are among them.
pub(super) const BOUNDS_NS: [u64; 16] = [
    5_000,
    10_000,
    20_000,
    50_000,
    100_000,
    200_000,
    500_000,
    1_000_000,
    5_000_000,
    20_000_000,
    50_000_000,
    100_000_000,
    500_000_000,
    1_000_000_000,
    2_000_000_000,
    10_000_000_000,
];
const BUCKETS: usize = BOUNDS_NS.len() + 1;
/// Upper bounds of the sizes that nydus tells apart, exclusive, in bytes.
const SIZES: [u64; 7] = [
    1 << 10,
    4 << 10,
    16 << 10,
    64 << 10,
    128 << 10,
    512 << 10,
    1 << 20,
];
/// How many sizes that are.
pub(super) const SIZE_CLASSES: usize = SIZES.len() + 1;

/// Which of the sizes this is.
pub(super) fn size_class(bytes: u64) -> usize {
    SIZES.partition_point(|bound| *bound <= bytes)
}

/// A request that was served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Answered {
    pub(crate) nodeid: u64,
    pub(crate) opcode: u32,
    pub(crate) began: Instant,
    /// The answer is an error that is not an answer like any other (`fuse/outcome.rs`).
    pub(crate) failed: bool,
    /// Content that was read or written, in bytes.
    pub(crate) bytes: u64,
}

/// One kind of request at one mount; cache lines of its own.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Cell {
    errors: AtomicU64,
    nanoseconds: AtomicU64,
    bytes: AtomicU64,
    latency: [AtomicU64; BUCKETS],
    sizes: [AtomicU64; SIZE_CLASSES],
}

impl Cell {
    fn note(&self, answered: &Answered, took: Duration) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        bump(&self.latency[BOUNDS_NS.partition_point(|bound| *bound < ns)], 1);
        bump(&self.nanoseconds, ns);
        if answered.failed {
            bump(&self.errors, 1);
        } else if answered.bytes > 0 {
            bump(&self.bytes, answered.bytes);
            bump(&self.sizes[size_class(answered.bytes)], 1);
        }
    }
}

/// Only one thread writes a counter, so that this needs no atomic addition.
fn bump(counter: &AtomicU64, by: u64) {
    counter.store(
        counter.load(Ordering::Relaxed).wrapping_add(by),
        Ordering::Relaxed,
    );
}

/// The kinds of requests at one mount; made as they come.
#[derive(Debug)]
struct Row([OnceLock<Box<Cell>>; KINDS]);

/// One worker's counters.
#[derive(Debug)]
pub(crate) struct Tally(Box<[OnceLock<Box<Row>>]>);

impl Tally {
    fn new() -> Self {
        Self((0..PLACES).map(|_| OnceLock::new()).collect())
    }

    fn cell(&self, place: u8, kind: usize) -> &Cell {
        let row = self.0[usize::from(place)]
            .get_or_init(|| Box::new(Row(std::array::from_fn(|_| OnceLock::new()))));
        row.0[kind].get_or_init(Box::default)
    }
}

/// The counters of all workers.
#[derive(Debug)]
pub(crate) struct Tallies {
    workers: Box<[OnceLock<Tally>]>,
    /// The mount at `/`, whose root the guest calls by the namespace's number; 0 if there is none.
    at_root: AtomicU8,
}

impl Tallies {
    /// For so many workers.
    pub(crate) fn new(workers: usize) -> Self {
        Self {
            workers: (0..workers).map(|_| OnceLock::new()).collect(),
            at_root: AtomicU8::new(0),
        }
    }

    /// The counters of the worker with this number. They are one thread's to write at a time.
    pub(crate) fn worker(&self, number: usize) -> &Tally {
        self.workers[number].get_or_init(Tally::new)
    }

    /// Something is mounted at `/`, or with 0 nothing any more.
    pub(crate) fn set_at_root(&self, place: u8) {
        self.at_root.store(place, Ordering::Relaxed);
    }

    /// The place that an inode belongs to.
    pub(crate) fn place_of(&self, nodeid: u64) -> u8 {
        if nodeid == ROOT {
            return self.at_root.load(Ordering::Relaxed);
        }
        u8::try_from(nodeid >> PLACE_SHIFT).unwrap_or(0)
    }

    /// Counts a request with a worker's counters.
    pub(crate) fn count(&self, tally: &Tally, answered: &Answered, now: Instant) {
        let took = now.saturating_duration_since(answered.began);
        tally
            .cell(self.place_of(answered.nodeid), operation::kind(answered.opcode))
            .note(answered, took);
    }

    /// Everything ever counted at a place.
    pub(crate) fn totals(&self, place: u8) -> Totals {
        let mut totals = Totals::default();
        let rows = self.workers.iter().filter_map(OnceLock::get);
        for row in rows.filter_map(|tally| tally.0[usize::from(place)].get()) {
            for (kind, cell) in row.0.iter().enumerate() {
                if let Some(cell) = cell.get() {
                    totals.0.entry(kind).or_default().add(cell);
                }
            }
        }
        totals
    }
}

/// The figures of one kind of request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct OperationTotals {
    pub(super) errors: u64,
    pub(super) nanoseconds: u64,
    pub(super) bytes: u64,
    /// How many took no longer than each of [`BOUNDS_NS`] but longer than the one before; the last, longer than all.
    pub(super) latency: [u64; BUCKETS],
    pub(super) sizes: [u64; SIZE_CLASSES],
}

impl OperationTotals {
    /// How many there were.
    pub(super) fn count(&self) -> u64 {
        self.latency.iter().sum()
    }

    fn add(&mut self, cell: &Cell) {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        self.errors += get(&cell.errors);
        self.nanoseconds = self.nanoseconds.wrapping_add(get(&cell.nanoseconds));
        self.bytes += get(&cell.bytes);
        for (sum, counter) in self.latency.iter_mut().zip(&cell.latency) {
            *sum += get(counter);
        }
        for (sum, counter) in self.sizes.iter_mut().zip(&cell.sizes) {
            *sum += get(counter);
        }
    }

    fn since(mut self, before: &Self) -> Self {
        self.errors = self.errors.saturating_sub(before.errors);
        self.nanoseconds = self.nanoseconds.wrapping_sub(before.nanoseconds);
        self.bytes = self.bytes.saturating_sub(before.bytes);
        for (now, then) in self.latency.iter_mut().zip(before.latency) {
            *now = now.saturating_sub(then);
        }
        for (now, then) in self.sizes.iter_mut().zip(before.sizes) {
            *now = now.saturating_sub(then);
        }
        self
    }
}

/// The figures of one mount, by kind of request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Totals(BTreeMap<usize, OperationTotals>);

impl Totals {
    /// What was added to an earlier state.
    pub(crate) fn since(&self, before: &Self) -> Self {
        let none = OperationTotals::default();
        let kinds = self.0.iter().map(|(kind, totals)| {
            let before = before.0.get(kind).unwrap_or(&none);
            (*kind, totals.since(before))
        });
        Self(kinds.filter(|(_, totals)| totals.count() > 0).collect())
    }

    /// Each kind that there was, by name.
    pub(super) fn named(&self) -> impl Iterator<Item = (&'static str, &OperationTotals)> {
        self.0
            .iter()
            .map(|(kind, totals)| (operation::name(*kind), totals))
    }

    /// One kind.
    pub(super) fn of(&self, kind: usize) -> OperationTotals {
        self.0.get(&kind).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn answered(place: u64, opcode: u32, failed: bool, bytes: u64, began: Instant) -> Answered {
        Answered {
            nodeid: place << PLACE_SHIFT | 42,
            opcode,
            began,
            failed,
            bytes,
        }
    }

    proptest! {
        /// As if each request had been written down.
        #[test]
        fn figures_are_the_sums_of_what_was_counted(
            requests in prop::collection::vec(
                (0_usize..3, 0_u64..4, 0_u32..60, any::<bool>(), 0_u64..3_000_000, 0_u64..20_000_000_000),
                0..100,
            ),
            mounted_at in 0_usize..100,
        ) {
            let tallies = Tallies::new(3);
            let began = Instant::now();
            let mut before = Totals::default();
            let mut model: HashMap<(&str, &str), u64> = HashMap::new();
            for (n, (worker, place, opcode, failed, bytes, ns)) in requests.into_iter().enumerate() {
                if n == mounted_at {
                    before = tallies.totals(2);
                    model.clear();
                }
                let now = began + Duration::from_nanos(ns);
                tallies.count(tallies.worker(worker), &answered(place, opcode, failed, bytes, began), now);
                if place == 2 {
                    let name = operation::name(operation::kind(opcode));
                    *model.entry((name, "count")).or_default() += 1;
                    *model.entry((name, "errors")).or_default() += u64::from(failed);
                    *model.entry((name, "bytes")).or_default() += if failed { 0 } else { bytes };
                    *model.entry((name, "ns")).or_default() += ns;
                    *model.entry((name, "slow")).or_default() += u64::from(ns > 1_000_000);
                    *model.entry((name, "large")).or_default() += u64::from(!failed && bytes >= 1 << 20);
                }
            }
            let totals = tallies.totals(2).since(&before);
            let slow = BOUNDS_NS.iter().position(|b| *b == 1_000_000).unwrap_or(0) + 1;
            let mut figures = HashMap::new();
            for (name, t) in totals.named() {
                figures.insert((name, "count"), t.count());
                figures.insert((name, "errors"), t.errors);
                figures.insert((name, "bytes"), t.bytes);
                figures.insert((name, "ns"), t.nanoseconds);
                figures.insert((name, "slow"), t.latency[slow..].iter().sum());
                figures.insert((name, "large"), t.sizes[SIZE_CLASSES - 1]);
            }
            prop_assert_eq!(figures, model);
        }
    }

    #[test]
    fn the_root_of_all_is_the_root_of_what_is_mounted_there() {
        let tallies = Tallies::new(1);
        assert_eq!((tallies.place_of(ROOT), tallies.place_of(2)), (0, 0));
        tallies.set_at_root(7);
        assert_eq!((tallies.place_of(ROOT), tallies.place_of(2)), (7, 0));
        assert_eq!(tallies.place_of(9 << PLACE_SHIFT | 1), 9);
    }

    #[test]
    fn counters_of_two_workers_share_no_cache_line() {
        let tallies = Tallies::new(2);
        let [one, other] = [0, 1].map(|worker| std::ptr::from_ref(tallies.worker(worker).cell(3, 1)).addr());
        assert!(one.abs_diff(other) >= size_of::<Cell>());
        assert_eq!((one % 64, size_of::<Cell>() % 64), (0, 0));
    }

    #[test]
    fn figures_can_be_read_while_they_are_written() {
        let tallies = Tallies::new(4);
        std::thread::scope(|scope| {
            for worker in 0..4 {
                let tallies = &tallies;
                scope.spawn(move || {
                    let now = Instant::now();
                    for _ in 0..20_000 {
                        tallies.count(tallies.worker(worker), &answered(1, 15, false, 4096, now), now);
                    }
                });
            }
            let mut last = 0;
            while last < 80_000 {
                let read = tallies.totals(1).of(operation::READ);
                assert!(read.count() >= last);
                last = read.count();
            }
        });
        assert_eq!(tallies.totals(1).of(operation::READ).bytes, 80_000 * 4096);
    }
}
