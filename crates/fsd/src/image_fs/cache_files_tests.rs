//! The files of a cache, by what is in them and in the directory.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;

const SIZE: u64 = 40_960;

fn open(dir: &Path) -> CacheFiles {
    CacheFiles::open(dir, "b", SIZE, 10).unwrap()
}

fn content(dir: &Path, name: &str) -> Vec<u8> {
    std::fs::read(dir.join(name)).unwrap()
}

#[test]
fn the_files_are_those_of_nydus() {
    let dir = tempfile::tempdir().unwrap();
    let files = open(dir.path());
    files.mark(0).unwrap();
    files.mark(9).unwrap();
    let map = content(dir.path(), "b.blob.data.chunk_map");
    assert_eq!(map.len(), 4096 + 2);
    assert_eq!(&map[..12], b"PAMB\x01\0\0\0PAMC");
    assert_eq!(map[4096..], [0x80, 0x40]);
    assert_eq!(content(dir.path(), "b.blob.data").len() as u64, SIZE);
    let map = nydus_storage::cache::state::IndexedChunkMap::new(
        dir.path().join("b.blob.data").to_str().unwrap(),
        10,
        true,
    );
    assert!(map.is_ok(), "nydus opens it");
}

#[test]
fn a_new_file_gets_no_map_of_the_one_that_was_there_before_whoever_made_that() {
    let dir = tempfile::tempdir().unwrap();
    let (data, old) = (dir.path().join("b.blob.data"), dir.path().join("b.chunk_map"));
    let files = open(dir.path());
    std::fs::write(&old, "of nydusd 2.2").unwrap();
    drop(open(dir.path()));
    assert!(old.exists(), "it is of this file");
    files.data().set_len(SIZE - 1).unwrap();
    drop(open(dir.path()));
    assert!(!old.exists());
    std::fs::write(&old, "of nydusd 2.2").unwrap();
    std::fs::remove_file(&data).unwrap();
    drop(open(dir.path()));
    assert!(!old.exists());
}

#[test]
fn files_made_alone_are_those_that_are_made_in_company() {
    let (alone, company) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let files = CacheFiles::open_alone(alone.path(), "b", SIZE, 10).unwrap();
    open(company.path());
    for name in ["b.blob.data", "b.blob.data.chunk_map"] {
        assert!(
            content(alone.path(), name) == content(company.path(), name),
            "{name}"
        );
    }
    files.mark(2).unwrap();
    let again = CacheFiles::open_alone(alone.path(), "b", SIZE, 10).unwrap();
    assert!(again.is_ready(2).unwrap(), "those that are there are kept");
}

/// The disk was full before the map was complete.
#[test]
fn files_left_half_made_are_replaced() {
    for (data, map) in [(0, None), (SIZE, Some(12))] {
        let dir = tempfile::tempdir().unwrap();
        let make = |name: &str, len| {
            let file = File::create_new(dir.path().join(name)).unwrap();
            file.set_len(len).unwrap();
        };
        make("b.blob.data", data);
        if let Some(len) = map {
            make("b.blob.data.chunk_map", len);
        }
        let files = CacheFiles::open_alone(dir.path(), "b", SIZE, 10).unwrap();
        assert!(files.is_whole().unwrap() && files.is_sound().unwrap());
    }
}

#[test]
fn another_process_sees_what_is_marked() {
    let dir = tempfile::tempdir().unwrap();
    let (one, other) = (open(dir.path()), open(dir.path()));
    one.write(&[7; 4096], 8192).unwrap();
    one.mark(2).unwrap();
    assert!(other.is_ready(2).unwrap() && !other.is_ready(3).unwrap());
    assert!(one.mark(10).is_err());
}

#[test]
fn after_a_restart_of_the_machine_what_was_settled_is_there_still() {
    let dir = tempfile::tempdir().unwrap();
    let files = open(dir.path());
    files.write(&[7; 4096], 8192).unwrap();
    files.mark(2).unwrap();
    let found = CacheFiles::find(dir.path(), "b", SIZE, 10).unwrap();
    found.unwrap().settle().unwrap();
    files.mark(9).unwrap();
    // The note's boot, as `settled.rs` has it.
    files.map.write_all_at(b"another", 520).unwrap();
    let after = open(dir.path());
    assert!(after.is_ready(2).unwrap() && !after.is_ready(9).unwrap());
    after.data().set_len(SIZE - 1).unwrap();
    assert!(CacheFiles::find(dir.path(), "b", SIZE, 10).unwrap().is_none());
}

#[test]
fn when_a_cache_was_used_is_seen_by_its_access_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("b.blob.data");
    let long_ago = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1);
    let forget = || {
        let file = File::open(&path).unwrap();
        file.set_times(std::fs::FileTimes::new().set_accessed(long_ago))
            .unwrap();
    };
    let accessed = || std::fs::metadata(&path).unwrap().accessed().unwrap();
    drop(open(dir.path()));
    forget();
    let files = open(dir.path());
    assert!(accessed() > long_ago);
    forget();
    drop(files);
    assert!(accessed() > long_ago);
}

#[test]
fn a_truncated_data_file_is_replaced_not_extended() {
    let dir = tempfile::tempdir().unwrap();
    let before = open(dir.path());
    before.write(&[7; 4096], 8192).unwrap();
    before.mark(2).unwrap();
    before.data().set_len(4096).unwrap();
    assert!(matches!(
        before.write(&[1; 4096], 36_864),
        Err(WriteError::Truncated)
    ));
    let after = open(dir.path());
    assert!(!after.is_ready(2).unwrap(), "the new files start empty");
    assert!(after.is_whole().unwrap() && !before.is_whole().unwrap());
}

#[test]
fn a_data_file_that_is_gone_takes_its_map_with_it() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path()).mark(2).unwrap();
    std::fs::remove_file(dir.path().join("b.blob.data")).unwrap();
    assert!(!open(dir.path()).is_ready(2).unwrap());
}

#[test]
fn a_map_of_the_wrong_size_or_kind_is_replaced() {
    for spoil in [|f: &File| f.set_len(4097), |f: &File| f.write_all_at(b"ELF!", 0)] {
        let dir = tempfile::tempdir().unwrap();
        let before = open(dir.path());
        before.mark(2).unwrap();
        spoil(&before.map).unwrap();
        let after = open(dir.path());
        assert!(!after.is_ready(2).unwrap());
        assert!(!is_at(&before.data, &dir.path().join("b.blob.data")).unwrap());
    }
}

#[test]
fn a_map_truncated_under_us_says_that_nothing_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let files = open(dir.path());
    files.mark(2).unwrap();
    files.map.set_len(0).unwrap();
    assert!(!files.is_ready(2).unwrap());
    assert_eq!(files.ready_bits().unwrap(), [0, 0]);
}
