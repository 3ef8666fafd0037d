//! Counters of what an image asks its backend for. Each is a request over a network or to a disk, so that shared
//! counters cost nothing beside it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;

use super::tally::{SIZE_CLASSES, size_class};

/// Upper bounds of the latencies that nydus tells apart, in milliseconds.
pub(super) const BOUNDS_MS: [u64; 7] = [1, 20, 50, 100, 500, 1000, 2000];
const LATENCY_CLASSES: usize = BOUNDS_MS.len() + 1;
const REASONS: usize = 3;

/// Why something was fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// A guest waits for it.
    Demand,
    /// A guest reads towards it.
    ReadAhead,
    /// The configuration or the image names it.
    Prefetch,
}

impl Reason {
    pub(super) const ALL: [Self; REASONS] = [Self::Demand, Self::ReadAhead, Self::Prefetch];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Demand => "demand",
            Self::ReadAhead => "read_ahead",
            Self::Prefetch => "prefetch",
        }
    }

    const fn index(self) -> usize {
        match self {
            Self::Demand => 0,
            Self::ReadAhead => 1,
            Self::Prefetch => 2,
        }
    }
}

#[derive(Debug, Default)]
struct ByReason {
    requests: AtomicU64,
    errors: AtomicU64,
    bytes: AtomicU64,
}

/// What one image asked for since it was mounted.
#[derive(Debug, Default)]
pub(crate) struct FetchCounters {
    by_reason: [ByReason; REASONS],
    nanoseconds: AtomicU64,
    /// By size and by latency, in nydus' classes.
    classes: [[AtomicU64; LATENCY_CLASSES]; SIZE_CLASSES],
    millis_by_size: [AtomicU64; SIZE_CLASSES],
    misses: AtomicU64,
}

impl FetchCounters {
    /// A request for so many bytes was answered.
    pub(crate) fn note(&self, reason: Reason, bytes: u64, took: Duration, failed: bool) {
        let add = |counter: &AtomicU64, by: u64| counter.fetch_add(by, Ordering::Relaxed);
        let counters = &self.by_reason[reason.index()];
        add(&counters.requests, 1);
        if failed {
            add(&counters.errors, 1);
        } else {
            add(&counters.bytes, bytes);
        }
        add(
            &self.nanoseconds,
            u64::try_from(took.as_nanos()).unwrap_or(u64::MAX),
        );
        let size = size_class(bytes);
        let latency = BOUNDS_MS.partition_point(|bound| Duration::from_millis(*bound) < took);
        add(&self.classes[size][latency], 1);
        add(
            &self.millis_by_size[size],
            u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        );
    }

    /// A READ did not find everything in the cache.
    pub(crate) fn missed(&self) {
        self.misses.fetch_add(1, Ordering::Relaxed);
    }

    /// The figures now.
    pub(crate) fn totals(&self) -> FetchTotals {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        FetchTotals {
            by_reason: self.by_reason.each_ref().map(|counters| ReasonTotals {
                requests: get(&counters.requests),
                errors: get(&counters.errors),
                bytes: get(&counters.bytes),
            }),
            nanoseconds: get(&self.nanoseconds),
            classes: self.classes.each_ref().map(|row| row.each_ref().map(get)),
            millis_by_size: self.millis_by_size.each_ref().map(get),
            misses: get(&self.misses),
        }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct ReasonTotals {
    pub(super) requests: u64,
    pub(super) errors: u64,
    pub(super) bytes: u64,
}

/// What one image asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct FetchTotals {
    pub(super) by_reason: [ReasonTotals; REASONS],
    pub(super) nanoseconds: u64,
    classes: [[u64; LATENCY_CLASSES]; SIZE_CLASSES],
    millis_by_size: [u64; SIZE_CLASSES],
    /// READs that did not find everything in the cache.
    pub(super) misses: u64,
}

impl FetchTotals {
    /// Each reason with its figures.
    pub(super) fn reasons(&self) -> impl Iterator<Item = (&'static str, &ReasonTotals)> {
        Reason::ALL.into_iter().map(Reason::name).zip(&self.by_reason)
    }

    /// How many took no longer than each of [`BOUNDS_MS`] but longer than the one before; the last, longer than all.
    pub(super) fn latency(&self) -> [u64; LATENCY_CLASSES] {
        let mut sums = [0; LATENCY_CLASSES];
        for row in &self.classes {
            for (sum, count) in sums.iter_mut().zip(row) {
                *sum += count;
            }
        }
        sums
    }

    /// The figures in the shape of nydusd's `/api/v1/metrics/backend`.
    pub(crate) fn as_nydus<'a>(&self, backend_type: &'a str) -> BackendStats<'a> {
        let sum = |of: fn(&ReasonTotals) -> u64| self.by_reason.iter().map(of).sum();
        BackendStats {
            backend_type,
            read_count: sum(|r| r.requests),
            read_errors: sum(|r| r.errors),
            read_amount_total: sum(|r| r.bytes),
            read_cumulative_latency_millis_total: self.millis_by_size.iter().sum(),
            read_cumulative_latency_millis_dist: self.millis_by_size,
            read_count_block_size_dist: self.classes.map(|row| row.iter().sum()),
            read_latency_sizes_dist: self.classes,
        }
    }
}

/// nydusd's `BackendMetrics`.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct BackendStats<'a> {
    backend_type: &'a str,
    read_count: u64,
    read_errors: u64,
    read_amount_total: u64,
    read_cumulative_latency_millis_total: u64,
    read_cumulative_latency_millis_dist: [u64; SIZE_CLASSES],
    read_count_block_size_dist: [u64; SIZE_CLASSES],
    read_latency_sizes_dist: [[u64; LATENCY_CLASSES]; SIZE_CLASSES],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_reason_size_and_latency() {
        let counters = FetchCounters::default();
        counters.note(Reason::Demand, 4096, Duration::from_millis(30), false);
        counters.note(Reason::ReadAhead, 2 << 20, Duration::from_micros(900), false);
        counters.note(Reason::Demand, 1, Duration::from_secs(9), true);
        counters.missed();
        let totals = counters.totals();
        let of = |name| totals.reasons().find(|(n, _)| *n == name).map(|(_, t)| *t);
        let figures = |requests, errors, bytes| {
            Some(ReasonTotals {
                requests,
                errors,
                bytes,
            })
        };
        assert_eq!(of("demand"), figures(2, 1, 4096));
        assert_eq!(of("read_ahead"), figures(1, 0, 2 << 20));
        assert_eq!(of("prefetch"), figures(0, 0, 0));
        assert_eq!((totals.latency(), totals.misses), ([1, 0, 1, 0, 0, 0, 0, 1], 1));
        let shown = totals.as_nydus("registry");
        assert_eq!(
            (shown.read_count, shown.read_errors, shown.read_amount_total),
            (3, 1, (2 << 20) + 4096)
        );
        assert_eq!(shown.read_count_block_size_dist, [1, 0, 1, 0, 0, 0, 0, 1]);
        assert_eq!(shown.read_latency_sizes_dist[2][2], 1);
        assert_eq!(shown.read_cumulative_latency_millis_total, 9030);
    }
}
