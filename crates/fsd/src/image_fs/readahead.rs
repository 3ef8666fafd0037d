//! Recognises readers that go through a file in order, and says what to fetch before they ask. Pure.
//!
//! What is ahead of a reader is never more than twice what it has read in order so far, nor more than [`LONGEST`], and
//! all that was ever fetched ahead of it never more than three times what it has read: one that stops, or jumps, has
//! cost little that it did not use, and one that reads here and there costs nothing. Tripling is what a reader that
//! waits for each round trip gains most from: 1, 3, 9, 16 MiB instead of 1, 1, 2, 4, 8, 16. Each reader of a file has a
//! stream of its own.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// What is asked for at once ahead of a reader, in bytes of content.
pub(super) const REQUEST: u64 = 2 << 20;
/// The most that is fetched ahead of one reader, in bytes: 8 requests at once, as many as `workers.rs` makes.
const LONGEST: u64 = 8 * REQUEST;
/// How much may be ahead of a reader, as a multiple of what it has read in order.
const WINDOW: u64 = 2;
/// How much may ever be fetched ahead of a reader, likewise.
const BUDGET: u64 = 3;
/// Nothing is fetched ahead of a reader that has read less in order, in bytes.
const SHORTEST: u64 = 64 << 10;
/// How far requests of one reader may overtake each other, in bytes: a guest has several under way, and they are
/// served by several threads.
const SLACK: u64 = 512 << 10;
const SHARDS: usize = 16;
/// Readers remembered in each shard.
const STREAMS_PER_SHARD: usize = 16;

/// One reader.
#[derive(Debug, Clone)]
struct Stream {
    ino: u64,
    /// The first byte after all that was read.
    front: u64,
    /// How much was read in order, in bytes.
    run: u64,
    /// Up to where it has been fetched ahead.
    ahead: u64,
    /// How much was fetched ahead of it, in bytes.
    spent: u64,
    reads: u32,
}

impl Stream {
    fn begin(ino: u64, read: &Range<u64>) -> Self {
        Self {
            ino,
            front: read.end,
            run: read.end - read.start,
            ahead: read.end,
            spent: 0,
            // From its first byte on, a file is mostly read in order.
            reads: if read.start == 0 { 2 } else { 1 },
        }
    }

    fn continues(&self, ino: u64, read: &Range<u64>) -> bool {
        self.ino == ino && read.start <= self.front + SLACK && read.start + SLACK >= self.front
    }

    fn advance(&mut self, read: &Range<u64>) {
        self.run = self
            .run
            .saturating_add(read.end.saturating_sub(self.front.max(read.start)));
        self.front = self.front.max(read.end);
        self.ahead = self.ahead.max(self.front);
        self.reads = self.reads.saturating_add(1);
    }

    /// What to fetch now. Half a window at once while it is small, so that requests do not get small; then whole
    /// requests, as soon as there is room for one, so that as many as possible are always under way.
    fn next(&mut self, file_size: u64) -> Option<Range<u64>> {
        if self.reads < 2 || self.run < SHORTEST {
            return None;
        }
        let window = self.run.saturating_mul(WINDOW).min(LONGEST);
        let budget = self.run.saturating_mul(BUDGET).saturating_sub(self.spent);
        let mut until = self
            .front
            .saturating_add(window)
            .min(self.ahead.saturating_add(budget))
            .min(file_size);
        let mut least = window / 2;
        if window >= 2 * REQUEST {
            least = REQUEST;
            if until < file_size {
                until -= until % REQUEST;
            }
        }
        let range = self.ahead..until;
        let length = until.saturating_sub(self.ahead);
        if length == 0 || (until < file_size && length < least) {
            return None;
        }
        self.ahead = until;
        self.spent += length;
        Some(range)
    }
}

/// The readers of an image's files.
#[derive(Debug, Default)]
pub(super) struct Streams {
    /// Most recently active last.
    shards: [Mutex<Vec<Stream>>; SHARDS],
}

impl Streams {
    fn with<T>(&self, ino: u64, f: impl FnOnce(&mut Vec<Stream>) -> T) -> T {
        let shard = usize::try_from(ino).unwrap_or(0) % SHARDS;
        f(&mut self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Somebody reads a file; gives what to fetch ahead of it.
    pub(super) fn note(&self, ino: u64, read: Range<u64>, file_size: u64) -> Option<Range<u64>> {
        self.with(ino, |streams| {
            let mut stream = match streams.iter().rposition(|s| s.continues(ino, &read)) {
                Some(at) => {
                    let mut stream = streams.remove(at);
                    stream.advance(&read);
                    stream
                }
                None => Stream::begin(ino, &read),
            };
            let range = stream.next(file_size);
            if streams.len() == STREAMS_PER_SHARD {
                streams.remove(0);
            }
            streams.push(stream);
            range
        })
    }

    /// A reader had to wait for what should have been fetched ahead of it: it is fetched again from there.
    pub(super) fn fell_behind(&self, ino: u64, at: u64) {
        self.with(ino, |streams| {
            if let Some(stream) = streams.iter_mut().rfind(|s| s.ino == ino && s.front == at) {
                stream.spent = stream.spent.saturating_sub(stream.ahead.saturating_sub(at));
                stream.ahead = at;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    const K: u64 = 1 << 10;
    const M: u64 = 1 << 20;

    /// Reads of `size` from `start`, one after the other; all that is fetched ahead.
    fn read_through(streams: &Streams, start: u64, size: u64, count: u64, file: u64) -> Vec<Range<u64>> {
        (0..count)
            .filter_map(|n| streams.note(1, start + n * size..(start + (n + 1) * size).min(file), file))
            .collect()
    }

    #[test]
    fn the_window_grows_up_to_the_longest_and_covers_everything_once() {
        let ranges = read_through(&Streams::default(), 0, M, 64, 64 * M);
        assert_eq!(ranges.first(), Some(&(M..3 * M)));
        assert!(ranges.windows(2).all(|w| w[0].end == w[1].start), "{ranges:?}");
        assert_eq!(ranges.last().map(|r| r.end), Some(64 * M));
        let later = ranges.iter().filter(|r| r.start >= LONGEST);
        assert!(
            later
                .clone()
                .all(|r| r.start % REQUEST == 0 && r.end % REQUEST == 0),
            "whole requests: {ranges:?}"
        );
        assert!(
            later.count() >= 16,
            "as soon as there is room for one: {ranges:?}"
        );
    }

    /// Round trips that a reader of 128 KiB at a time waits for, in a file with chunks of 1 MiB, if nothing else takes
    /// time.
    fn round_trips(file: u64) -> u64 {
        let streams = Streams::default();
        // When each chunk is there, and when each thread that fetches ahead has nothing more to do.
        let mut lands = HashMap::new();
        let mut threads = [0; 8];
        let mut now = 0;
        for at in (0..file).step_by(128 << 10) {
            let range = streams.note(1, at..at + 128 * K, file).unwrap_or_default();
            let missing: Vec<u64> = (range.start / M..range.end.div_ceil(M))
                .filter(|chunk| !lands.contains_key(chunk))
                .collect();
            for request in missing.chunk_by(|a, b| a * M / REQUEST == b * M / REQUEST) {
                threads.sort_unstable();
                threads[0] = threads[0].max(now) + 1;
                lands.extend(request.iter().map(|chunk| (*chunk, threads[0])));
            }
            now = now.max(*lands.entry(at / M).or_insert(now + 1));
        }
        now
    }

    #[test]
    fn a_reader_in_order_waits_for_few_round_trips() {
        assert_eq!(
            [1, 4, 16, 64, 256].map(|mib| round_trips(mib * M)),
            [1, 3, 4, 7, 19]
        );
    }

    #[test]
    fn one_read_in_the_middle_fetches_nothing_ahead() {
        assert!(read_through(&Streams::default(), 5 * M, M, 1, 64 * M).is_empty());
        assert!(!read_through(&Streams::default(), 5 * M, M, 2, 64 * M).is_empty());
    }

    #[test]
    fn a_few_small_reads_fetch_nothing_ahead() {
        assert!(read_through(&Streams::default(), 0, 4 * K, 15, 64 * M).is_empty());
    }

    #[test]
    fn requests_that_overtake_each_other_are_one_reader() {
        let streams = Streams::default();
        let mut ahead = 0;
        for n in [0_u64, 2, 1, 3, 5, 4, 7, 6] {
            let read = n * 128 * K..(n + 1) * 128 * K;
            ahead += streams.note(1, read, 64 * M).map_or(0, |r| r.end - r.start);
        }
        assert!(ahead >= 512 * K, "{ahead}");
    }

    #[test]
    fn several_readers_of_one_file_are_told_apart() {
        let streams = Streams::default();
        let mut ahead = [0; 4];
        for n in 0..8 {
            for (reader, ahead) in (0..).zip(&mut ahead) {
                let at = reader * 100 * M + n * M;
                *ahead += streams
                    .note(1, at..at + M, 400 * M)
                    .map_or(0, |r| r.end - r.start);
            }
        }
        assert!(ahead.iter().all(|a| *a >= 4 * M), "{ahead:?}");
    }

    #[test]
    fn a_reader_that_fell_behind_is_caught_up_with() {
        let streams = Streams::default();
        let before = read_through(&streams, 0, M, 4, 64 * M);
        streams.fell_behind(1, 4 * M);
        let after = streams.note(1, 4 * M..5 * M, 64 * M);
        assert!(after.is_some_and(|r| r.start == 5 * M), "{before:?}");
    }

    proptest! {
        #[test]
        fn never_more_is_fetched_ahead_than_three_times_what_was_read(
            reads in proptest::collection::vec((0_u64..64 * 256, 1_u64..256), 1..60)
        ) {
            let streams = Streams::default();
            let (mut read, mut ahead) = (0, 0);
            for (page, pages) in reads {
                let range = page * 4 * K..((page + pages) * 4 * K).min(64 * M);
                read += range.end - range.start;
                ahead += streams.note(1, range, 64 * M).map_or(0, |r| r.end - r.start);
                prop_assert!(ahead <= read * 3, "{ahead} of {read}");
            }
        }
    }
}
