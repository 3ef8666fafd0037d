//! What a guest can use up, and what is then not left half-done.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ffi::CString;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::Barrier;
use std::thread;

use rustix::io::dup;

use super::tests::{RDWR, Shared, create_in, is_root, root};
use super::*;

/// A share whose guest may open so many files and know so many inodes by handle, and none by descriptor; nothing where
/// there are no handles.
fn by_handle(files: usize, handles: usize) -> Option<Shared> {
    let shared = Shared::within(ShareOptions::default(), Budget::new(files, 0, handles));
    if !shared.share.handles_work {
        eprintln!("skipped: file handles need root and a file system that has them");
        return None;
    }
    Some(shared)
}

#[test]
fn an_inode_that_is_kept_by_handle_gets_another_name() {
    let Some(shared) = by_handle(10, 10) else { return };
    let file = shared.file("file", "content");
    std::os::unix::fs::symlink("file", shared.path("link")).unwrap();
    for name in [c"file", c"link"] {
        let inode = shared.lookup(name).unwrap().inode;
        let other = CString::new(format!("other-{}", name.to_str().unwrap())).unwrap();
        let entry = shared.share.link(inode, shared.root(), &other).unwrap();
        assert_eq!((entry.inode, entry.attr.st_nlink), (inode, 2));
    }
    assert_eq!(
        fs::metadata(file).unwrap().ino(),
        fs::metadata(shared.path("other-file")).unwrap().ino()
    );
    assert!(shared.path("other-link").is_symlink());
}

#[test]
fn inodes_by_handle_end_too_and_nothing_is_made_beyond_them() {
    let Some(shared) = by_handle(10, 3) else { return };
    let (share, parent) = (&shared.share, shared.root());
    for name in [c"a", c"b", c"c"] {
        let (entry, handle) = shared.create(name, RDWR).unwrap();
        share.release(entry.inode, handle).unwrap();
        share.unlink(parent, name).unwrap();
    }
    for refused in [
        shared.create(c"new", RDWR).map(drop),
        share.tmpfile(&root(), parent, &create_in(RDWR)).map(drop),
        share.mkdir(&root(), parent, c"new", 0o755).map(drop),
        share.mknod(&root(), parent, c"new", 0o100_644, 0).map(drop),
        share.symlink(&root(), c"x", parent, c"new").map(drop),
    ] {
        assert_eq!(refused.unwrap_err(), Errno::NFILE);
    }
    assert_eq!(fs::read_dir(shared.path(".")).unwrap().count(), 0);
}

#[test]
fn another_name_for_an_inode_that_is_known_takes_nothing() {
    let shared = Shared::within(ShareOptions::default(), Budget::new(0, 1, 0));
    shared.file("file", "");
    let inode = shared.lookup(c"file").unwrap().inode;
    let linked = shared.share.link(inode, shared.root(), c"other").unwrap();
    assert_eq!(linked.inode, inode);
    // Known twice now.
    shared.share.forget(inode, 1);
    shared.share.getattr(inode).unwrap();
    shared.share.forget(inode, 1);
    assert_eq!(shared.share.getattr(inode).unwrap_err(), Errno::BADF);
}

#[test]
fn what_changes_a_file_on_the_host_takes_its_setuid_away() {
    if !is_root() {
        return;
    }
    let shared = Shared::new();
    shared.file("from", "content");
    let source = shared.lookup(c"from").unwrap().inode;
    let source = (source, shared.share.open(source, 0, 0).unwrap(), 0);
    type Change<'a> = &'a dyn Fn(u64, u64) -> Result<()>;
    let changes: [(&str, Change<'_>); 2] = [
        ("allocated", &|inode, handle| {
            shared.share.fallocate(inode, handle, 0, 0, 100)
        }),
        ("copied", &|inode, handle| {
            shared.share.copy_range(source, (inode, handle, 0), 7).map(drop)
        }),
    ];
    for (name, change) in changes {
        let path = shared.file(name, "");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o6755)).unwrap();
        let inode = shared.lookup(&CString::new(name).unwrap()).unwrap().inode;
        let handle = shared.share.open(inode, RDWR, 0).unwrap();
        change(inode, handle).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o755, "{name}");
    }
}

#[test]
fn a_listing_that_fails_midway_ends_with_what_the_guest_was_told() {
    let shared = Shared::new();
    for name in ["a", "b", "c"] {
        shared.file(name, "");
    }
    let handle = shared.share.opendir(shared.root()).unwrap();
    let mut told = Vec::new();
    let mut offset = 0;
    let mut list = |most: usize, offset: &mut u64| {
        let before = told.len();
        shared
            .share
            .readdirplus(shared.root(), handle, *offset, 1 << 20, &mut |dirent, entry| {
                if told.len() - before == most {
                    return Err(Errno::IO);
                }
                *offset = dirent.offset;
                told.push(entry.inode);
                Ok(160)
            })
    };
    assert_eq!(list(3, &mut offset), Ok(()));
    // The error is not lost.
    assert_eq!(list(0, &mut offset), Err(Errno::IO));
    assert_eq!(list(usize::MAX, &mut offset), Ok(()));
    assert_eq!(told.len(), 5);
}

/// A file with a number that no host has room for.
fn far(shared: &Shared) -> impl Fn() -> Arc<inode::Inode> {
    let id = HostId {
        ino: 1 << 60,
        ..shared.share.inodes.root().id
    };
    move || {
        let inodes = &shared.share.inodes;
        inodes.claim(&id, || Err(Errno::IO)).unwrap_or_else(|| {
            let fd = dup(&*shared.share.root_dir).unwrap();
            inodes.insert(id, FileType::RegularFile, Location::Pinned(fd, None))
        })
    }
}

#[test]
fn an_inode_without_a_number_of_the_host_has_one_number() {
    let shared = Shared::new();
    let look_up = far(&shared);
    for _ in 0..500 {
        let begin = Barrier::new(4);
        let numbers: Vec<u64> = thread::scope(|scope| {
            let threads = [(); 4].map(|()| {
                scope.spawn(|| {
                    begin.wait();
                    look_up().nodeid
                })
            });
            threads.map(|thread| thread.join().unwrap()).into()
        });
        assert!(numbers.iter().all(|number| *number == numbers[0]), "{numbers:?}");
        shared.share.forget(numbers[0], 4);
    }
}

#[test]
fn a_number_outlives_a_forget_that_a_lookup_overtakes() {
    let shared = Shared::new();
    let look_up = far(&shared);
    for _ in 0..2000 {
        let begin = Barrier::new(2);
        let old = look_up().nodeid;
        let found = thread::scope(|scope| {
            let forgetting = scope.spawn(|| {
                begin.wait();
                shared.share.forget(old, 1);
            });
            begin.wait();
            let found = look_up().nodeid;
            forgetting.join().unwrap();
            found
        });
        assert_eq!(look_up().nodeid, found);
        shared.share.forget(found, 2);
        assert!(shared.share.inodes.get(found).is_err());
    }
}
