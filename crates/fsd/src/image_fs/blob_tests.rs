//! A blob with a backend that counts, waits and fails on demand. By counts and order, never by time.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::os::unix::fs::FileExt;
use std::sync::atomic::AtomicUsize;
use std::sync::{Condvar, MutexGuard};
use std::thread;

use super::super::cache_files::CacheFiles;
use super::super::runs::tests::chunk;
use super::*;

const CHUNK: u32 = 4096;

fn content(id: u32) -> Vec<u8> {
    vec![u8::try_from(id % 251).unwrap() + 1; usize::try_from(CHUNK).unwrap()]
}

fn chunks(ids: impl IntoIterator<Item = u32>) -> Vec<Chunk> {
    let at = |id: u32| u64::from(id) * u64::from(CHUNK);
    ids.into_iter()
        .map(|id| chunk(id, at(id), CHUNK, at(id), CHUNK))
        .collect()
}

/// What the backend was asked, and what it does.
#[derive(Default)]
struct Backend {
    requests: Mutex<Vec<Vec<u32>>>,
    held: Mutex<bool>,
    changed: Condvar,
    failures: AtomicUsize,
    wrong: AtomicBool,
    /// What is damaged there.
    damaged: Mutex<Vec<u32>>,
    /// What it gives is right for another image.
    anothers: AtomicBool,
}

impl Backend {
    fn hold(&self) {
        *self.held.lock().unwrap() = true;
    }

    fn release(&self) {
        *self.held.lock().unwrap() = false;
        self.changed.notify_all();
    }

    fn requests(&self) -> MutexGuard<'_, Vec<Vec<u32>>> {
        self.requests.lock().unwrap()
    }

    fn await_requests(&self, count: usize) {
        let requests = self.requests();
        drop(self.changed.wait_while(requests, |r| r.len() < count).unwrap());
    }
}

impl Origin for Arc<Backend> {
    fn fetch(&self, chunks: &[Chunk]) -> Result<Vec<Content>, FetchError> {
        let damaged = self.damaged.lock().unwrap().clone();
        self.requests().push(chunks.iter().map(|c| c.id).collect());
        self.changed.notify_all();
        let held = self.held.lock().unwrap();
        drop(self.changed.wait_while(held, |held| *held).unwrap());
        let fails = self.failures.load(Ordering::SeqCst);
        if fails > 0 {
            self.failures.store(fails - 1, Ordering::SeqCst);
            return Err(FetchError::Backend {
                blob: "b".into(),
                offset: 0,
                why: "on demand".into(),
            });
        }
        let shift = u32::from(self.anothers.load(Ordering::SeqCst));
        let content = |chunk: &Chunk| {
            if self.wrong.load(Ordering::SeqCst) || damaged.contains(&chunk.id) {
                let (blob, chunk) = ("b".into(), chunk.id);
                return Err(FetchError::Digest { blob, chunk });
            }
            Ok(content(chunk.id + shift))
        };
        Ok(chunks.iter().map(content).collect())
    }
}

fn blob(dir: &std::path::Path, backend: &Arc<Backend>) -> Blob {
    Blob::open(BlobParts {
        id: "b".into(),
        dir: dir.to_owned(),
        size: 64 * u64::from(CHUNK),
        chunks: 64,
        layout: None,
        origin: Box::new(Arc::clone(backend)),
        compares: true,
        policy: FetchPolicy {
            retry: RetryPolicy {
                deadline: Duration::from_secs(60),
                first_pause: Duration::ZERO,
                longest_pause: Duration::ZERO,
            },
            lock_patience: Duration::from_secs(60),
            request_limit: 8 * u64::from(CHUNK),
        },
        counters: Arc::default(),
        gate: Arc::default(),
        fetches: Arc::default(),
    })
    .unwrap()
}

fn assert_stored(blob: &Blob, ids: impl IntoIterator<Item = u32>) {
    let generation = blob.generation();
    for id in ids {
        assert!(generation.has(id), "{id}");
        let mut got = content(0);
        let at = u64::from(id) * u64::from(CHUNK);
        generation.files().data().read_exact_at(&mut got, at).unwrap();
        assert!(got == content(id), "{id}");
    }
}

#[test]
fn reads_of_the_cache_leave_its_access_time_alone() {
    let (dir, backend) = (tempfile::tempdir().unwrap(), Arc::default());
    let blob = blob(dir.path(), &backend);
    blob.ensure(&chunks([0]), Urgency::Demand).unwrap();
    let generation = blob.generation();
    let data = generation.files().data();
    // Long ago: a file system that notes access times at all notes one that follows such an old one.
    let long_ago = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1);
    data.set_times(std::fs::FileTimes::new().set_accessed(long_ago))
        .unwrap();
    assert_stored(&blob, [0]);
    assert_eq!(data.metadata().unwrap().accessed().unwrap(), long_ago);
}

#[test]
fn what_others_put_there_is_here_and_still_to_be_compared() {
    let (dir, backend) = (tempfile::tempdir().unwrap(), Arc::default());
    let (one, other) = (blob(dir.path(), &backend), blob(dir.path(), &backend));
    one.ensure(&chunks([3]), Urgency::Demand).unwrap();
    other.ensure(&chunks([3, 4]), Urgency::Demand).unwrap();
    assert_eq!(*backend.requests(), [vec![3], vec![4]]);
    let (one, here) = (one.generation(), other.generation().clone());
    assert!(one.has(3) && one.is_compared(3));
    assert!(here.has(3) && !here.is_compared(3) && here.is_compared(4));
    here.note_compared(3);
    other.lost(&here, 3);
    assert!(!here.has(3) && !here.is_compared(3));
}

#[test]
fn what_was_compared_stays_whatever_a_daemon_that_believes_another_image_does() {
    let (dir, backend) = (tempfile::tempdir().unwrap(), Arc::default());
    let anothers = Arc::<Backend>::default();
    anothers.anothers.store(true, Ordering::SeqCst);
    let (one, other) = (blob(dir.path(), &backend), blob(dir.path(), &anothers));
    one.ensure(&chunks([3, 4]), Urgency::Demand).unwrap();
    for chunk in [3, 4] {
        other.lost(&other.generation(), chunk);
        other.ensure(&chunks([3, 4]), Urgency::Demand).unwrap();
        let generation = one.generation();
        assert!(generation.is_compared(3) && generation.is_compared(4));
        assert_stored(&one, [3, 4]);
    }
    let next = blob(dir.path(), &backend);
    assert!(next.generation().has(3), "the other's has the names");
    next.lost(&next.generation(), 3);
    next.ensure(&chunks([3]), Urgency::Demand).unwrap();
    assert_stored(&next, [3]);
}

#[test]
fn who_has_chunks_in_other_places_has_another_cache() {
    let (dir, backend) = (tempfile::tempdir().unwrap(), Arc::<Backend>::default());
    let [before, one, alike, other] = [(); 4].map(|()| blob(dir.path(), &backend));
    before.ensure(&chunks([3]), Urgency::Demand).unwrap();
    let note = |size| LayoutNote::of([(0, 0, size)].into_iter());
    for blob in [&one, &alike] {
        blob.lay_out(|| note(CHUNK));
        blob.ensure(&chunks([3]), Urgency::Demand).unwrap();
        assert_stored(blob, [3]);
    }
    assert_eq!(*backend.requests(), [[3]], "there was no note");
    other.lay_out(|| note(1));
    let mut anothers = chunks([5]);
    anothers[0].offset = 3 * u64::from(CHUNK);
    other.ensure(&anothers, Urgency::Demand).unwrap();
    assert_stored(&one, [3]);
    one.lost(&one.generation(), 3);
    one.ensure(&chunks([3]), Urgency::Demand).unwrap();
    assert_stored(&one, [3]);
    assert!(!one.generation().has(5), "it is not the other's");
}

#[test]
fn nothing_is_written_where_another_daemon_may_write_at_any_time_or_has() {
    let (dir, backend) = (tempfile::tempdir().unwrap(), Arc::<Backend>::default());
    let mut blob = blob(dir.path(), &backend);
    blob.parts.policy.lock_patience = Duration::ZERO;
    let other = CacheFiles::open(dir.path(), "b", 64 * u64::from(CHUNK), 64).unwrap();
    let theirs = vec![0xee; content(0).len()];
    let assert_held = |supply: Supply| {
        let held = supply.held.first().unwrap();
        assert!(held.0 == 0 && *held.1 == content(0));
        let mut there = content(0);
        other.data().read_exact_at(&mut there, 0).unwrap();
        assert!(there == theirs);
    };
    other.write(&theirs, 0).unwrap();
    let locked = RangeLock::try_take(other.data(), 0, u64::from(CHUNK)).unwrap();
    assert!(locked.is_some());
    assert_held(blob.ensure(&chunks([0]), Urgency::Demand).unwrap());
    drop(locked);
    backend.hold();
    thread::scope(|scope| {
        let reader = scope.spawn(|| blob.ensure(&chunks([0]), Urgency::Demand).unwrap());
        backend.await_requests(2);
        other.mark(0).unwrap();
        backend.release();
        assert_held(reader.join().unwrap());
    });
}

#[test]
fn a_daemon_that_does_not_move_is_waited_for_once() {
    let (dir, backend) = (tempfile::tempdir().unwrap(), Arc::<Backend>::default());
    let mut blob = blob(dir.path(), &backend);
    let stopped = CacheFiles::open(dir.path(), "b", 64 * u64::from(CHUNK), 64).unwrap();
    let _held = RangeLock::try_take(stopped.data(), 0, u64::from(CHUNK)).unwrap();
    blob.parts.policy.lock_patience = Duration::ZERO;
    blob.ensure(&chunks([0]), Urgency::Demand).unwrap();
    // The test would not end.
    blob.parts.policy.lock_patience = Duration::from_secs(86_400);
    blob.ensure(&chunks([0]), Urgency::Demand).unwrap();
    assert_eq!(*backend.requests(), [[0], [0]]);
}

#[test]
fn content_is_settled_once_it_came() {
    let (dir, backend) = (tempfile::tempdir().unwrap(), Arc::default());
    let blob = blob(dir.path(), &backend);
    assert!(!blob.generation().unsettled.load(Ordering::SeqCst));
    blob.ensure(&chunks([0]), Urgency::Demand).unwrap();
    assert!(blob.generation().unsettled.load(Ordering::SeqCst));
}

#[test]
fn neighbours_are_asked_for_in_one_request() {
    let (dir, backend) = (tempfile::tempdir().unwrap(), Arc::default());
    let blob = blob(dir.path(), &backend);
    let supply = blob.ensure(&chunks([1, 2, 3, 7, 8]), Urgency::Demand).unwrap();
    assert_eq!((supply.fetched, supply.held.len()), (5, 0));
    assert_eq!(*backend.requests(), [vec![1, 2, 3], vec![7, 8]]);
    assert_stored(&blob, [1, 2, 3, 7, 8]);
    blob.ensure(&chunks(1..10), Urgency::Demand).unwrap();
    assert_eq!(
        backend.requests()[2..],
        [vec![4, 5, 6], vec![9]],
        "only what is missing"
    );
}

#[test]
fn readers_of_a_chunk_share_one_fetch_and_others_do_not_wait_for_it() {
    let (dir, backend) = (tempfile::tempdir().unwrap(), Arc::<Backend>::default());
    let blob = &blob(dir.path(), &backend);
    backend.hold();
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| blob.ensure(&chunks([5]), Urgency::Demand).unwrap());
        }
        scope.spawn(|| blob.ensure(&chunks([6]), Urgency::Demand).unwrap());
        backend.await_requests(2);
        backend.release();
    });
    let mut requests = backend.requests().clone();
    requests.sort();
    assert_eq!(requests, [vec![5], vec![6]]);
}

#[test]
fn daemons_that_share_a_cache_fetch_a_chunk_once() {
    let (dir, backend) = (tempfile::tempdir().unwrap(), Arc::<Backend>::default());
    let daemons: Vec<Blob> = (0..4).map(|_| blob(dir.path(), &backend)).collect();
    backend.hold();
    thread::scope(|scope| {
        for daemon in &daemons {
            scope.spawn(|| daemon.ensure(&chunks(0..16), Urgency::Demand).unwrap());
        }
        backend.await_requests(1);
        backend.release();
    });
    assert_eq!(backend.requests().concat().len(), 16, "{:?}", backend.requests());
    for daemon in &daemons {
        assert_stored(daemon, 0..16);
    }
}

#[test]
fn a_daemon_that_does_not_move_is_not_waited_for_for_ever() {
    let (dir, backend) = (tempfile::tempdir().unwrap(), Arc::default());
    let mut blob = blob(dir.path(), &backend);
    blob.parts.policy.lock_patience = Duration::ZERO;
    let stopped = CacheFiles::open(dir.path(), "b", 64 * u64::from(CHUNK), 64).unwrap();
    let _held = RangeLock::try_take(stopped.data(), 0, u64::from(CHUNK))
        .unwrap()
        .unwrap();
    blob.ensure(&chunks([0]), Urgency::Ahead).unwrap();
    assert!(
        backend.requests().is_empty(),
        "nobody waits: it is left to the other"
    );
    let supply = blob.ensure(&chunks([0]), Urgency::Demand).unwrap();
    assert!(*supply.held[0].1 == content(0));
}

#[test]
fn a_backend_that_comes_back_in_time_is_not_noticed() {
    let (dir, backend) = (tempfile::tempdir().unwrap(), Arc::<Backend>::default());
    let blob = blob(dir.path(), &backend);
    backend.failures.store(5, Ordering::SeqCst);
    blob.ensure(&chunks([0]), Urgency::Demand).unwrap();
    assert_eq!(backend.requests().len(), 6);
    assert_stored(&blob, [0]);
}

#[test]
fn a_backend_that_is_gone_is_not_waited_for_once_for_each_request() {
    let (dir, backend) = (tempfile::tempdir().unwrap(), Arc::<Backend>::default());
    let mut blob = blob(dir.path(), &backend);
    blob.parts.policy.retry.deadline = Duration::ZERO;
    blob.parts.policy.retry.first_pause = Duration::from_secs(1);
    backend.failures.store(usize::MAX, Ordering::SeqCst);
    let error = blob.ensure(&chunks([1, 2, 5, 9]), Urgency::Demand).unwrap_err();
    assert!(matches!(*error, FetchError::Backend { .. }));
    assert_eq!(*backend.requests(), [[1, 2]]);
    backend.failures.store(0, Ordering::SeqCst);
    blob.ensure(&chunks([1, 2, 5, 9]), Urgency::Demand).unwrap();
    assert_stored(&blob, [1, 2, 5, 9]);
}

#[test]
fn wrong_content_fails_the_read_and_a_later_read_tries_again() {
    let (dir, backend) = (tempfile::tempdir().unwrap(), Arc::<Backend>::default());
    let blob = blob(dir.path(), &backend);
    backend.wrong.store(true, Ordering::SeqCst);
    let error = blob.ensure(&chunks([0]), Urgency::Demand).unwrap_err();
    assert!(matches!(*error, FetchError::Digest { .. }));
    assert_eq!(backend.requests().len(), 2, "once more, and no more");
    assert!(!blob.generation().has(0));
    backend.wrong.store(false, Ordering::SeqCst);
    blob.ensure(&chunks([0]), Urgency::Demand).unwrap();
    assert_stored(&blob, [0]);
}

#[test]
fn what_is_damaged_costs_nobody_what_is_not() {
    let (dir, backend) = (tempfile::tempdir().unwrap(), Arc::<Backend>::default());
    let blob = blob(dir.path(), &backend);
    *backend.damaged.lock().unwrap() = vec![2, 4];
    blob.ensure_first(&chunks([0, 1, 2, 3]), 2, Urgency::Demand)
        .unwrap();
    assert_stored(&blob, [0, 1, 3]);
    assert_eq!(*backend.requests(), [[0, 1, 2, 3]], "nobody needs 2");
    let error = blob.ensure(&chunks([4, 5]), Urgency::Demand).unwrap_err();
    assert!(matches!(*error, FetchError::Digest { chunk: 4, .. }));
    assert_stored(&blob, [5]);
    assert_eq!(backend.requests()[1..], [vec![4, 5], vec![4]]);
}

#[test]
fn who_waits_for_what_came_along_with_another_read_tries_for_itself() {
    let (dir, backend) = (tempfile::tempdir().unwrap(), Arc::<Backend>::default());
    let blob = &blob(dir.path(), &backend);
    *backend.damaged.lock().unwrap() = vec![1];
    backend.hold();
    thread::scope(|scope| {
        scope.spawn(|| blob.ensure_first(&chunks([0, 1]), 1, Urgency::Demand).unwrap());
        backend.await_requests(1);
        let waiter = scope.spawn(|| blob.ensure(&chunks([1]), Urgency::Demand).unwrap());
        backend.damaged.lock().unwrap().clear();
        // It was damaged when it was asked for first.
        backend.release();
        waiter.join().unwrap();
    });
    assert_stored(blob, [0, 1]);
}

#[test]
fn a_fetch_ahead_that_fails_is_not_the_readers_failure() {
    let (dir, backend) = (tempfile::tempdir().unwrap(), Arc::<Backend>::default());
    let blob = &blob(dir.path(), &backend);
    backend.hold();
    backend.failures.store(1, Ordering::SeqCst);
    thread::scope(|scope| {
        scope.spawn(|| blob.ensure(&chunks([3]), Urgency::Ahead).unwrap());
        backend.await_requests(1);
        let reader = scope.spawn(|| blob.ensure(&chunks([3]), Urgency::Demand).unwrap());
        backend.release();
        reader.join().unwrap();
    });
    assert_eq!(backend.requests().len(), 2);
    assert_stored(blob, [3]);
}

#[test]
fn a_cache_truncated_under_the_daemon_is_filled_again_in_a_new_file() {
    let (dir, backend) = (tempfile::tempdir().unwrap(), Arc::<Backend>::default());
    let blob = blob(dir.path(), &backend);
    blob.ensure(&chunks(0..4), Urgency::Demand).unwrap();
    let before = blob.generation();
    before.files().data().set_len(100).unwrap();
    blob.lost(&before, 2);
    assert!(!blob.generation().has(2) && !Arc::ptr_eq(&before, &blob.generation()));
    blob.ensure(&chunks(0..4), Urgency::Demand).unwrap();
    assert_stored(&blob, 0..4);
    assert_eq!(
        before.files().data().metadata().unwrap().len(),
        100,
        "the old file is never made longer"
    );
}

#[test]
fn a_truncated_cache_does_not_cost_a_fetch_under_way_its_content() {
    let (dir, backend) = (tempfile::tempdir().unwrap(), Arc::<Backend>::default());
    let blob = blob(dir.path(), &backend);
    blob.generation().files().data().set_len(0).unwrap();
    let supply = blob.ensure(&chunks([9]), Urgency::Demand).unwrap();
    let there = supply
        .held
        .iter()
        .any(|(id, bytes)| *id == 9 && **bytes == content(9))
        || blob.generation().has(9);
    assert!(there && blob.generation().files().is_whole().unwrap());
}

#[test]
fn a_chunk_that_is_lost_is_fetched_again_by_everybody() {
    let (dir, backend) = (tempfile::tempdir().unwrap(), Arc::<Backend>::default());
    let blob = blob(dir.path(), &backend);
    blob.ensure(&chunks([1]), Urgency::Demand).unwrap();
    blob.lost(&blob.generation(), 1);
    blob.ensure(&chunks([1]), Urgency::Demand).unwrap();
    assert_eq!(*backend.requests(), [vec![1], vec![1]]);
    assert_stored(&blob, [1]);
}
