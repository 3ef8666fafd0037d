//! The blob cache is kept small: what goes first, and each of the ways in which a blob is known to be in use.

use std::fs::{self, File, FileTimes, OpenOptions};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nydusbox_image::{BlobCache, Quiet, StoreError};

use crate::convert::Stop;
use crate::{names, temp_dir};

/// What a blob of these caches takes: its data, and a block each for map and table.
const BLOB_BYTES: u64 = (64 << 10) + 2 * 4096;

/// Files of a blob that was used so many seconds after the epoch; the data file, open.
fn make(cache: &Path, blob: &str, seconds: u64) -> File {
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    let file = |suffix: &str, bytes: usize| {
        let path = cache.join(format!("{blob}.{suffix}"));
        fs::write(&path, vec![1; bytes]).unwrap();
        let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
        file.set_times(FileTimes::new().set_accessed(time).set_modified(time))
            .unwrap();
        file
    };
    file("blob.data.chunk_map", 4096);
    file("blob.meta", 4096);
    file("blob.data", 64 << 10)
}

#[test]
fn the_blob_used_the_longest_ago_goes_first_and_whole() {
    let dir = temp_dir();
    let cache = BlobCache::new(dir.path());
    for (blob, seconds) in [("a", 30), ("b", 10), ("c", 20)] {
        make(dir.path(), blob, seconds);
    }
    fs::write(dir.path().join("notes.txt"), "not the cache's").unwrap();
    let fits = cache.shrink(3 * BLOB_BYTES, false, &Quiet).unwrap();
    assert_eq!(
        (fits.blobs.len(), fits.before_bytes, fits.after_bytes),
        (0, 3 * BLOB_BYTES, 3 * BLOB_BYTES)
    );
    let would = cache.shrink(BLOB_BYTES, true, &Quiet).unwrap();
    assert_eq!(
        (would.blobs, would.after_bytes),
        (vec!["b".to_owned(), "c".to_owned()], BLOB_BYTES)
    );
    assert_eq!(names(dir.path()).len(), 11);
    let done = cache.shrink(2 * BLOB_BYTES, false, &Quiet).unwrap();
    assert_eq!(done.blobs, ["b"]);
    assert!(names(dir.path()).iter().all(|name| !name.starts_with("b.")));
    cache.shrink(0, false, &Quiet).unwrap();
    assert_eq!(names(dir.path()), [".lock", "notes.txt"]);
}

#[test]
fn a_blob_whose_lock_a_daemon_has_stays() {
    let dir = temp_dir();
    let cache = BlobCache::new(dir.path());
    let used = make(dir.path(), "a", 10);
    make(dir.path(), "b", 20);
    let lock = libc::flock {
        l_type: libc::F_RDLCK.try_into().unwrap(),
        l_whence: libc::SEEK_SET.try_into().unwrap(),
        l_start: libc::off_t::MAX - 1,
        l_len: 1,
        l_pid: 0,
    };
    fcntl(&used, FcntlArg::F_OFD_SETLK(&lock)).unwrap();
    let done = cache.shrink(0, false, &Quiet).unwrap();
    assert_eq!(
        (done.blobs, done.in_use_bytes, done.after_bytes),
        (vec!["b".to_owned()], BLOB_BYTES, BLOB_BYTES)
    );
    drop(used);
    assert_eq!(cache.shrink(0, false, &Quiet).unwrap().blobs, ["a"]);
}

#[test]
fn a_blob_that_another_process_has_open_stays() {
    let dir = temp_dir();
    let cache = BlobCache::new(dir.path());
    let used = make(dir.path(), "a", 10);
    make(dir.path(), "b", 20);
    // Ends when its other end does: with this test, whatever happens.
    let mut reader = Command::new("cat")
        .arg("-")
        .stdin(Stdio::piped())
        .stdout(used)
        .spawn()
        .unwrap();
    let done = cache.shrink(0, false, &Quiet).unwrap();
    drop(reader.stdin.take());
    reader.wait().unwrap();
    assert_eq!(done.blobs, ["b"]);
    assert_eq!(cache.shrink(0, false, &Quiet).unwrap().blobs, ["a"]);
}

#[test]
fn of_those_that_set_a_quota_at_once_none_is_in_the_others_way() {
    let dir = temp_dir();
    let cache = BlobCache::new(&dir.path().join("cache"));
    std::thread::scope(|scope| {
        for first in [0, 1] {
            let cache = &cache;
            scope.spawn(move || {
                for bytes in 0..200 {
                    cache.set_quota(Some(2 * bytes + first)).unwrap();
                    cache.quota().unwrap();
                }
            });
        }
    });
    fs::write(dir.path().join("cache/.quota"), "").unwrap();
    cache.quota().unwrap_err();
    cache.set_quota(Some(1)).unwrap();
    assert_eq!(cache.quota().unwrap(), Some(1));
    assert_eq!(names(&dir.path().join("cache")), [".quota"]);
    cache.set_quota(None).unwrap();
    assert_eq!(cache.quota().unwrap(), None);
}

#[test]
fn nothing_is_removed_while_a_daemon_without_locks_mounts() {
    let dir = temp_dir();
    let cache = BlobCache::new(&dir.path().join("cache"));
    let mounting = cache.mounting(&Quiet).unwrap();
    let also = cache.mounting(&Quiet).unwrap();
    make(&dir.path().join("cache"), "a", 10);
    let waits = cache.shrink(0, false, &Stop).unwrap_err();
    assert!(matches!(waits, StoreError::Cancelled), "{waits}");
    drop((mounting, also));
    assert_eq!(cache.shrink(0, false, &Stop).unwrap().blobs, ["a"]);
}
