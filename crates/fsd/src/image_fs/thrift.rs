//! How much is fetched that no reader has asked for: neighbours of what one waits for save round trips, and are lost
//! where nobody comes to read them. Pure.
//!
//! With them, no more is fetched than a share of what was read: of the blob, which is what goes over the network, and
//! of content, which is more where it is stored compressed. Where neighbours get read, that makes room for more.

use std::ops::{Add, Sub};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::chunk::Chunk;

/// What may be fetched of blobs, in eighths of what was read.
const STORED: u64 = 9;
/// And of content.
const CONTENT: u64 = 32;
/// What of blobs may be fetched beyond that, in bytes, and twice as much of content: the first files that are read are
/// small, and so are their neighbours.
const ADVANCE: u64 = 64 << 10;
/// The part of what was read that comes along with one request at the most, besides that: who has read little may not
/// read on, and whether what came along was of use is only known later.
const AT_ONCE: u64 = 8;

/// An amount of chunks, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Amount {
    /// In the blob.
    pub(super) stored: u64,
    /// In files.
    pub(super) content: u64,
}

impl Amount {
    pub(super) fn of(chunks: &[Chunk]) -> Self {
        let all = chunks.iter().map(Self::of_one);
        all.fold(Self::default(), Add::add)
    }

    pub(super) fn of_one(chunk: &Chunk) -> Self {
        Self {
            stored: u64::from(chunk.blob_size),
            content: u64::from(chunk.size),
        }
    }

    /// Whether neither is more than `most` has.
    pub(super) fn fits(self, most: Self) -> bool {
        self.stored <= most.stored && self.content <= most.content
    }
}

impl Add for Amount {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            stored: self.stored.saturating_add(other.stored),
            content: self.content.saturating_add(other.content),
        }
    }
}

/// Nothing is less than nothing.
impl Sub for Amount {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self {
            stored: self.stored.saturating_sub(other.stored),
            content: self.content.saturating_sub(other.content),
        }
    }
}

/// What was read of an image, and what was fetched for it.
#[derive(Debug, Default)]
pub(super) struct Thrift {
    read: AtomicU64,
    fetched: Mutex<Amount>,
}

impl Thrift {
    /// So many bytes of files are read.
    pub(super) fn read(&self, bytes: u64) {
        self.read.fetch_add(bytes, Ordering::Relaxed);
    }

    /// So much is fetched that a reader will need soon.
    pub(super) fn fetch_ahead(&self, needed: Amount) {
        let mut fetched = self.fetched.lock().unwrap_or_else(PoisonError::into_inner);
        *fetched = *fetched + needed;
    }

    /// So much is fetched that a reader needs; how much more may come along, `most` bytes of the blob at the most. That
    /// counts until it is given back.
    pub(super) fn fetch(&self, needed: Amount, most: u64) -> Amount {
        let mut fetched = self.fetched.lock().unwrap_or_else(PoisonError::into_inner);
        let read = self.read.load(Ordering::Relaxed);
        let eighths = |share: u64| read.saturating_mul(share) / 8;
        let may = Amount {
            stored: eighths(STORED).saturating_add(ADVANCE),
            content: eighths(CONTENT).saturating_add(2 * ADVANCE),
        };
        let mut beside = may - (*fetched + needed);
        beside.stored = beside.stored.min(most).min(read / AT_ONCE + ADVANCE);
        *fetched = *fetched + needed + beside;
        beside
    }

    /// Of what was to be fetched, what is not here was not, and takes nothing from what may come along next time.
    pub(super) fn give_back_missing(&self, wanted: &[Chunk], is_here: impl Fn(&Chunk) -> bool) {
        let missing = wanted.iter().filter(|chunk| !is_here(chunk)).map(Amount::of_one);
        self.give_back(missing.fold(Amount::default(), Add::add));
    }

    /// So much did not come along.
    pub(super) fn give_back(&self, unused: Amount) {
        let mut fetched = self.fetched.lock().unwrap_or_else(PoisonError::into_inner);
        *fetched = *fetched - unused;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::runs::tests::chunk;
    use super::*;

    const K: u64 = 1 << 10;

    /// Files one after the other, of which as many come along as may; how many requests that takes.
    fn requests(file: Amount, files: u64) -> u64 {
        let thrift = Thrift::default();
        let (mut here, mut requests) = (0, 0);
        for _ in 0..files {
            thrift.read(file.content);
            if here > 0 {
                here -= 1;
                continue;
            }
            requests += 1;
            let mut beside = thrift.fetch(file, 1024 * K);
            while file.fits(beside) {
                beside = beside - file;
                here += 1;
            }
            thrift.give_back(beside);
        }
        requests
    }

    #[test]
    fn who_reads_what_came_along_gets_more_of_it() {
        let file = |stored, content| Amount {
            stored: stored * K,
            content: content * K,
        };
        assert!(requests(file(4, 10), 1000) < 20, "compressed");
        assert!(requests(file(10, 10), 1000) < 40, "not compressed");
        assert!(requests(file(500, 1000), 20) < 15, "large ones");
    }

    #[test]
    fn an_outage_costs_no_neighbours_afterwards() {
        let thrift = Thrift::default();
        let wanted = [
            chunk(0, 0, 1 << 20, 0, 1 << 20),
            chunk(1, 1 << 20, 4096, 1 << 20, 4096),
        ];
        let offered = || {
            thrift.read(4 * K);
            let beside = thrift.fetch(Amount::of(&wanted[..1]), 1024 * K);
            thrift.give_back(beside - Amount::of(&wanted[1..]));
            beside
        };
        thrift.read(4096 * K);
        let before = offered();
        thrift.give_back_missing(&wanted, |_| false);
        for _ in 0..100 {
            assert!(before.fits(offered()));
            thrift.give_back_missing(&wanted, |_| false);
        }
        for _ in 0..4 {
            offered();
            thrift.give_back_missing(&wanted, |chunk| chunk.id == 0);
        }
        assert!(offered().stored < before.stored, "what came counts");
    }

    proptest! {
        #[test]
        fn no_more_is_fetched_for_what_comes_along_than_a_share_of_what_was_read(
            reads in proptest::collection::vec(
                (1_u64..256, 0_u64..100, 0_u64..200, 0_u64..1024, 0_u64..4), 1..60)
        ) {
            let thrift = Thrift::default();
            let (mut read, mut fetched) = (0, Amount::default());
            for (bytes, stored, content, most, used) in reads {
                thrift.read(bytes * K);
                read += bytes * K;
                let needed = Amount { stored: stored * K, content: content * K };
                let beside = thrift.fetch(needed, most * K);
                prop_assert!(beside.stored <= most * K);
                let used = Amount { stored: beside.stored * used / 4, content: beside.content * used / 4 };
                thrift.give_back(beside - used);
                fetched = fetched + needed + used;
                prop_assert!(used.stored == 0 || fetched.stored <= read * STORED / 8 + ADVANCE);
                prop_assert!(used.content == 0 || fetched.content <= read * CONTENT / 8 + 2 * ADVANCE);
            }
        }
    }
}
