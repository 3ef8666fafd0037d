//! Which cached blobs go, so that the rest is within a quota.
//!
//! Pure: from what there is to what goes. Who asks is `cache.rs`.

use std::time::SystemTime;

/// A blob's files in a cache directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CachedBlob {
    pub(super) id: String,
    /// What they take on the disk.
    pub(super) bytes: u64,
    pub(super) last_used: SystemTime,
    /// Somebody has the image mounted; stays.
    pub(super) in_use: bool,
}

/// The blobs that go, those that were used the longest ago first, and no more than it takes.
pub(super) fn plan(blobs: &[CachedBlob], quota_bytes: u64) -> Vec<&CachedBlob> {
    let mut left: u64 = blobs.iter().map(|blob| blob.bytes).sum();
    let mut idle: Vec<_> = blobs.iter().filter(|blob| !blob.in_use).collect();
    idle.sort_by(|a, b| (a.last_used, &a.id).cmp(&(b.last_used, &b.id)));
    let mut going = Vec::new();
    for blob in idle {
        if left <= quota_bytes {
            break;
        }
        left -= blob.bytes;
        going.push(blob);
    }
    going
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn blobs() -> impl Strategy<Value = Vec<CachedBlob>> {
        vec((0_u64..100, 0_u64..10, any::<bool>()), 0..12).prop_map(|blobs| {
            let blob = |(number, (bytes, seconds, in_use))| CachedBlob {
                id: format!("{number}"),
                bytes,
                last_used: SystemTime::UNIX_EPOCH + Duration::from_secs(seconds),
                in_use,
            };
            blobs.into_iter().enumerate().map(blob).collect()
        })
    }

    /// One after the other, each time the oldest of what is left, looked for anew.
    fn model(mut blobs: Vec<CachedBlob>, quota: u64) -> Vec<String> {
        let mut gone = Vec::new();
        while blobs.iter().map(|blob| blob.bytes).sum::<u64>() > quota {
            let idle = blobs.iter().enumerate().filter(|(_, blob)| !blob.in_use);
            let Some((at, _)) = idle.min_by_key(|(_, blob)| (blob.last_used, blob.id.clone())) else {
                break;
            };
            gone.push(blobs.remove(at).id);
        }
        gone
    }

    proptest! {
        #[test]
        fn the_least_recently_used_go_until_the_rest_fits(blobs in blobs(), quota in 0_u64..600) {
            let going: Vec<_> = plan(&blobs, quota).iter().map(|blob| blob.id.clone()).collect();
            prop_assert_eq!(&going, &model(blobs.clone(), quota));
            let stays = |blob: &&CachedBlob| !going.contains(&blob.id);
            let left: u64 = blobs.iter().filter(stays).map(|blob| blob.bytes).sum();
            prop_assert!(left <= quota || blobs.iter().filter(stays).all(|blob| blob.in_use));
            prop_assert!(blobs.iter().filter(|blob| blob.in_use).all(|blob| stays(&blob)));
        }
    }
}
