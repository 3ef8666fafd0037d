//! Keeps blob caches within their quotas while something that may have them grow is at work.
//!
//! A cache may be on a file system that does not answer: whoever keeps it does not wait for that longer than they can.
//!
//! What is in use is never removed. So there is something to do when an image has been unmounted, and when one that is
//! mounted has grown; the one is told by who does it, the other is looked for now and then.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nydusbox::apart;
use nydusbox_image::{BlobCache, Phase, Progress};
use tokio::time::{sleep, timeout};

/// How often it is looked what the caches take.
const INTERVAL: Duration = Duration::from_secs(60);
/// The same while they take more than they may.
const INTERVAL_ABOVE: Duration = Duration::from_secs(5);
/// How long others may be at a cache before it is left for the next time.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long one is waited for in all.
const ENDS_WITHIN: Duration = Duration::from_secs(10);
/// How long all are waited for the last time.
const LAST_WITHIN: Duration = Duration::from_secs(5);

/// Whether caches take what they may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kept {
    Within,
    /// As far as they could be brought down. Who holds what is too much may be gone soon.
    Above,
}

impl Kept {
    /// When to look again.
    pub(crate) fn pause(self) -> Duration {
        match self {
            Self::Within => INTERVAL,
            Self::Above => INTERVAL_ABOVE,
        }
    }
}

/// Keeps the cache in `dir` within its quota for as long as it is polled.
pub(crate) async fn keep_on(dir: &Path) -> Infallible {
    let dirs = BTreeSet::from([dir.to_owned()]);
    loop {
        sleep(keep(&dirs).await.pause()).await;
    }
}

/// Brings caches down to their quotas, those that have one.
pub(crate) async fn keep(dirs: &BTreeSet<PathBuf>) -> Kept {
    let mut kept = Kept::Within;
    for dir in dirs {
        let cache = BlobCache::new(dir);
        let keep = move || cache.keep_quota(&Until(Instant::now() + PATIENCE));
        let not_kept = |error: &(dyn std::error::Error + 'static)| {
            tracing::warn!(dir = %dir.display(), error, "the blob cache is not kept within its quota");
        };
        match apart(dir, ENDS_WITHIN, keep).await {
            Ok(Ok(Some(report))) if report.after_bytes > report.quota_bytes => kept = Kept::Above,
            Ok(Ok(_)) => {}
            Ok(Err(error)) => not_kept(&error),
            Err(error) => not_kept(&error),
        }
    }
    kept
}

/// The same for the last time. Nothing is left that waits for it: caches that take long are left as they are.
pub(crate) async fn keep_finally(dirs: &BTreeSet<PathBuf>) {
    let _ = timeout(LAST_WITHIN, keep(dirs)).await;
}

/// Gives up at a time.
#[derive(Debug)]
struct Until(Instant);

impl Progress for Until {
    fn begin(&self, _phase: Phase, _total: Option<u64>) {}

    fn position(&self, _position: u64) {}

    fn is_cancelled(&self) -> bool {
        Instant::now() >= self.0
    }
}
