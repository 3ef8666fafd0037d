//! Which cached blobs go, so that the rest is within a quota.
//!
//! Pure: from what there is, and who uses it, to what goes. Who asks is `cache.rs`.

use std::collections::BTreeSet;
use std::time::SystemTime;

/// A blob's files in a cache directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CachedBlob {
    pub(super) id: String,
    /// What they take on the disk.
    pub(super) bytes: u64,
    pub(super) last_used: SystemTime,
}

/// A cache on its way down to its quota: a few blobs at a time are looked at, those first that were used the longest
/// ago, and no more than it takes.
#[derive(Debug)]
pub(super) struct Shrinking {
    /// In the order in which they go.
    blobs: Vec<CachedBlob>,
    /// How many of them were looked at.
    looked_at: usize,
    left: u64,
    quota: u64,
}

impl Shrinking {
    pub(super) fn new(mut blobs: Vec<CachedBlob>, quota_bytes: u64) -> Self {
        blobs.sort_by(|a, b| (a.last_used, &a.id).cmp(&(b.last_used, &b.id)));
        Self {
            left: blobs.iter().map(|blob| blob.bytes).sum(),
            blobs,
            looked_at: 0,
            quota: quota_bytes,
        }
    }

    /// What the cache takes without those that went.
    pub(super) fn left_bytes(&self) -> u64 {
        self.left
    }

    /// The blobs that would have to go next, at most `at_once`.
    pub(super) fn next(&self, at_once: usize) -> &[CachedBlob] {
        let waiting = &self.blobs[self.looked_at..];
        let mut left = self.left;
        let needed = waiting.iter().take(at_once).take_while(|blob| {
            let needed = left > self.quota;
            left -= blob.bytes;
            needed
        });
        &waiting[..needed.count()]
    }

    /// Those of them that go: which nobody uses.
    pub(super) fn decide(&mut self, at_once: usize, in_use: &BTreeSet<String>) -> Vec<CachedBlob> {
        let next = self.next(at_once);
        let idle = next.iter().filter(|blob| !in_use.contains(&blob.id));
        let going: Vec<_> = idle.cloned().collect();
        self.looked_at += next.len();
        self.left -= going.iter().map(|blob| blob.bytes).sum::<u64>();
        going
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// Blobs, and whether each is in use.
    fn blobs() -> impl Strategy<Value = Vec<(CachedBlob, bool)>> {
        vec((0_u64..100, 0_u64..10, any::<bool>()), 0..12).prop_map(|blobs| {
            let blob = |(number, (bytes, seconds, in_use))| {
                let blob = CachedBlob {
                    id: format!("{number}"),
                    bytes,
                    last_used: SystemTime::UNIX_EPOCH + Duration::from_secs(seconds),
                };
                (blob, in_use)
            };
            blobs.into_iter().enumerate().map(blob).collect()
        })
    }

    fn bytes_of<'b>(blobs: impl IntoIterator<Item = &'b (CachedBlob, bool)>) -> u64 {
        blobs.into_iter().map(|(blob, _)| blob.bytes).sum()
    }

    /// One after the other, each time the oldest of what is left, looked for anew.
    fn model(mut blobs: Vec<(CachedBlob, bool)>, quota: u64) -> Vec<String> {
        let mut gone = Vec::new();
        while bytes_of(&blobs) > quota {
            let idle = blobs.iter().enumerate().filter(|(_, (_, in_use))| !in_use);
            let Some((at, _)) = idle.min_by_key(|(_, (blob, _))| (blob.last_used, blob.id.clone())) else {
                break;
            };
            gone.push(blobs.remove(at).0.id);
        }
        gone
    }

    proptest! {
        #[test]
        fn the_least_recently_used_go_until_the_rest_fits(
            blobs in blobs(),
            quota in 0_u64..600,
            at_once in 1..14_usize,
        ) {
            let used = blobs.iter().filter(|(_, in_use)| *in_use);
            let in_use: BTreeSet<_> = used.map(|(blob, _)| blob.id.clone()).collect();
            let all = blobs.iter().map(|(blob, _)| blob.clone()).collect();
            let mut shrinking = Shrinking::new(all, quota);
            let mut going = Vec::new();
            while !shrinking.next(at_once).is_empty() {
                prop_assert!(shrinking.next(at_once).len() <= at_once);
                let gone = shrinking.decide(at_once, &in_use);
                going.extend(gone.into_iter().map(|blob| blob.id));
            }
            prop_assert_eq!(&going, &model(blobs.clone(), quota));
            let stays = |(blob, _): &&(CachedBlob, bool)| !going.contains(&blob.id);
            let left = bytes_of(blobs.iter().filter(stays));
            prop_assert_eq!(left, shrinking.left_bytes());
            prop_assert!(left <= quota || blobs.iter().filter(stays).all(|(_, in_use)| *in_use));
            prop_assert!(blobs.iter().filter(|(_, in_use)| *in_use).all(|blob| stays(&blob)));
        }
    }
}
