//! The end of a blob whose table of chunks nobody has waited for.
//!
//! nydus fetches the table in a thread of its pool, into the work directory. If that is gone meanwhile, the fetch
//! fails, is tried again for twelve seconds, holds the blob's file or connection all that time, and with eight of
//! them no other blob gets its table. So the directory stays until nydus is through with it.

use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, LazyLock, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use nydus_storage::cache::BlobCache;

use super::factory;
use super::work_dir::WorkDir;

/// How long whoever closes an image waits for the end of all of its blobs. Fetching from this machine takes a
/// millisecond; from a backend that does not answer, nobody has to wait.
const PATIENCE: Duration = Duration::from_millis(50);

/// How long is still waited for the blobs of an image.
#[derive(Debug, Default)]
pub(super) struct Patience(OnceLock<Instant>);

impl Patience {
    fn left(&self, now: Instant) -> Duration {
        let end = self.0.get_or_init(|| now + PATIENCE);
        end.saturating_duration_since(now)
    }
}

struct Closing {
    cache: Arc<dyn BlobCache>,
    work: Arc<WorkDir>,
    done: Sender<()>,
}

/// Keeps the work directory of a blob until nydus has its table, or has given up.
pub(super) fn close(cache: Arc<dyn BlobCache>, work: Arc<WorkDir>, patience: &Patience) {
    let Some(closer) = &*CLOSER else { return };
    let (done, end) = mpsc::channel();
    if closer.send(Closing { cache, work, done }).is_ok() {
        // What takes longer goes on without us.
        let _ = end.recv_timeout(patience.left(Instant::now()));
    }
}

/// One thread, which waits for one blob after the other; `None` if there can be no thread.
static CLOSER: LazyLock<Option<Sender<Closing>>> = LazyLock::new(|| {
    let (sender, blobs) = mpsc::channel::<Closing>();
    let closer = thread::Builder::new()
        .name("image-closer".to_owned())
        .spawn(move || {
            for Closing { cache, work, done } in blobs {
                // Returns when the table is there or nydus has given up; either will do.
                let _table = cache.get_blob_meta_info();
                drop((cache, work));
                // Of a blob that its last user has left before.
                factory::drop_unused();
                let _nobody_waits_any_more = done.send(());
            }
        });
    closer.is_ok().then_some(sender)
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_blobs_are_waited_for_as_long_as_one() {
        let (patience, now) = (Patience::default(), Instant::now());
        let waits = [0, 20, 50, 70].map(|ms| patience.left(now + Duration::from_millis(ms)).as_millis());
        assert_eq!(waits, [50, 30, 0, 0]);
    }
}
