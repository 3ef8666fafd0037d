//! A mount's figures in the shape of nydusd's `/api/v1/metrics`. Pure.

use serde::Serialize;

use super::operation::{READ, kind};
use super::tally::{BOUNDS_NS, OperationTotals, SIZE_CLASSES, Totals};

/// What is recorded besides, as the mount's configuration says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Recording {
    pub(crate) files: bool,
    pub(crate) access_pattern: bool,
    pub(crate) latest_read_files: bool,
}

impl Recording {
    /// Whether there is anything.
    pub(crate) fn any(self) -> bool {
        self.files || self.access_pattern || self.latest_read_files
    }
}

/// The requests nydus counts, by opcode, in the order of its `StatsFop`.
const FOPS: [u32; 15] = [3, 5, 14, 18, 15, 17, 22, 23, 27, 1, 28, 44, 34, 2, 42];
const OPEN: usize = 2;
const RELEASE: usize = 3;
/// Upper bounds of the latencies that nydus tells apart, in nanoseconds.
const LATENCIES_NS: [u64; 7] = [
    200_000,
    1_000_000,
    20_000_000,
    50_000_000,
    500_000_000,
    1_000_000_000,
    2_000_000_000,
];
const LATENCY_CLASSES: usize = LATENCIES_NS.len() + 1;

/// nydusd's `FsIoStats`.
#[derive(Debug, Serialize)]
pub(crate) struct FsStats<'a> {
    files_account_enabled: bool,
    access_pattern_enabled: bool,
    record_latest_read_files_enabled: bool,
    measure_latency: bool,
    id: &'a str,
    nr_opens: u64,
    data_read: u64,
    block_count_read: [u64; SIZE_CLASSES],
    fop_hits: [u64; FOPS.len()],
    fop_errors: [u64; FOPS.len()],
    /// In microseconds.
    fop_cumulative_latency_total: [u64; FOPS.len()],
    read_latency_dist: [u64; LATENCY_CLASSES],
}

impl<'a> FsStats<'a> {
    /// The figures of the mount `id`.
    pub(crate) fn of(id: &'a str, totals: &Totals, recording: Recording) -> Self {
        let fops = FOPS.map(|opcode| totals.of(kind(opcode)));
        let read = totals.of(READ);
        let mut sizes = read.sizes;
        // nydus counts READs that brought nothing as small.
        sizes[0] += read.count().saturating_sub(read.sizes.iter().sum());
        Self {
            files_account_enabled: recording.files,
            access_pattern_enabled: recording.access_pattern,
            record_latest_read_files_enabled: recording.latest_read_files,
            measure_latency: true,
            id,
            nr_opens: successes(&fops[OPEN]).saturating_sub(successes(&fops[RELEASE])),
            data_read: read.bytes,
            block_count_read: sizes,
            fop_hits: fops.each_ref().map(successes),
            fop_errors: fops.map(|fop| fop.errors),
            fop_cumulative_latency_total: fops.map(|fop| fop.nanoseconds / 1000),
            read_latency_dist: latencies(&read),
        }
    }
}

fn successes(totals: &OperationTotals) -> u64 {
    totals.count().saturating_sub(totals.errors)
}

fn latencies(totals: &OperationTotals) -> [u64; LATENCY_CLASSES] {
    let mut classes = [0; LATENCY_CLASSES];
    for (bucket, count) in totals.latency.iter().enumerate() {
        let bound = BOUNDS_NS.get(bucket).copied().unwrap_or(u64::MAX);
        classes[LATENCIES_NS.partition_point(|class| *class < bound)] += count;
    }
    classes
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::super::tally::{Answered, Tallies};
    use super::*;

    #[test]
    fn every_bound_of_nydus_is_one_of_ours() {
        assert!(LATENCIES_NS.iter().all(|bound| BOUNDS_NS.contains(bound)));
    }

    #[test]
    fn figures_are_where_nydus_has_them() {
        let tallies = Tallies::new(1);
        let began = Instant::now();
        let count = |opcode, failed, bytes, us| {
            let answered = Answered {
                nodeid: 1 << 56 | 1,
                opcode,
                began,
                failed,
                bytes,
            };
            tallies.count(tallies.worker(0), &answered, began + Duration::from_micros(us));
        };
        count(15, false, 4096, 150);
        count(15, false, 1 << 20, 30_000);
        count(15, true, 0, 3_000_000);
        count(14, false, 0, 10);
        count(14, false, 0, 10);
        count(18, false, 0, 10);
        count(3, false, 0, 10);
        let stats = FsStats::of("/m", &tallies.totals(1), Recording::default());
        assert_eq!((stats.nr_opens, stats.data_read), (1, 4096 + (1 << 20)));
        assert_eq!(stats.block_count_read, [1, 0, 1, 0, 0, 0, 0, 1]);
        assert_eq!(
            (stats.fop_hits[4], stats.fop_errors[4], stats.fop_hits[0]),
            (2, 1, 1)
        );
        assert_eq!(stats.fop_cumulative_latency_total[4], 3_030_150);
        assert_eq!(stats.read_latency_dist, [1, 0, 0, 1, 0, 0, 0, 1]);
    }
}
