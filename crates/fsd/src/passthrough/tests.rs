//! A share without a guest: what it keeps, what it refuses, and that nothing is lost or left.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ffi::CStr;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;

use fuse_backend_rs::abi::fuse_abi::{CreateIn, SetattrValid};
use fuse_backend_rs::api::filesystem::{Context, Entry, ListxattrReply, ZeroCopyReader};
use fuse_backend_rs::file_buf::FileVolatileSlice;
use fuse_backend_rs::file_traits::FileReadWriteVolatile;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use vm_memory::VolatileSlice;

use super::*;

pub(super) const RDWR: u32 = 2;
const APPEND: u32 = 0o2000;
const EXCL: u32 = 0o200;

pub(super) struct Shared {
    pub(super) share: Share,
    dir: tempfile::TempDir,
}

impl Shared {
    pub(super) fn with(options: ShareOptions, files: usize, inodes: usize) -> Self {
        Self::within(options, Budget::new(files, inodes, 1000))
    }

    pub(super) fn within(options: ShareOptions, budget: Budget) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("share")).unwrap();
        let common = Common {
            budget,
            knows_groups: AtomicBool::new(true),
            knows_submounts: AtomicBool::new(false),
        };
        let share = Share::new(&dir.path().join("share"), options, Arc::new(common)).unwrap();
        Self { share, dir }
    }

    pub(super) fn new() -> Self {
        Self::with(ShareOptions::default(), 100, 100)
    }

    pub(super) fn root(&self) -> u64 {
        self.share.inodes.root().nodeid
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("share").join(name)
    }

    pub(super) fn file(&self, name: &str, content: &str) -> PathBuf {
        fs::write(self.path(name), content).unwrap();
        self.path(name)
    }

    pub(super) fn lookup(&self, name: &CStr) -> Result<Entry> {
        self.share.lookup(self.root(), name)
    }

    pub(super) fn create(&self, name: &CStr, flags: u32) -> Result<(Entry, u64)> {
        self.share.create(&root(), self.root(), name, &create_in(flags))
    }

    fn names(&self, offset: u64, handle: u64, most: usize) -> Vec<(String, u64, u64)> {
        let mut names = Vec::new();
        self.share
            .readdir(self.root(), handle, offset, &mut |entry| {
                if names.len() == most {
                    return Ok(0);
                }
                names.push((
                    String::from_utf8_lossy(entry.name).into_owned(),
                    entry.offset,
                    entry.ino,
                ));
                Ok(1)
            })
            .unwrap();
        names
    }
}

pub(super) fn root() -> Context {
    Context::new()
}

fn user(uid: u32, gid: u32) -> Context {
    let mut context = Context::new();
    (context.uid, context.gid) = (uid, gid);
    context
}

pub(super) fn create_in(flags: u32) -> CreateIn {
    CreateIn {
        flags,
        mode: 0o644,
        ..CreateIn::default()
    }
}

pub(super) fn is_root() -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    eprintln!("skipped: needs root");
    false
}

/// What a guest writes.
struct Bytes(Vec<u8>);

impl io::Read for Bytes {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Ok(0)
    }
}

impl ZeroCopyReader for Bytes {
    fn read_to(
        &mut self,
        file: &mut dyn FileReadWriteVolatile,
        count: usize,
        offset: u64,
    ) -> io::Result<usize> {
        let slice = VolatileSlice::from(&mut self.0[..count]);
        file.write_vectored_at_volatile(&[FileVolatileSlice::from_volatile_slice(&slice)], offset)
    }
}

pub(super) fn write(
    share: &Share,
    (nodeid, handle): (u64, u64),
    offset: u64,
    text: &str,
    flags: u32,
    fuse_flags: u32,
) -> usize {
    let mut bytes = Bytes(text.as_bytes().to_vec());
    let len = u32::try_from(text.len()).unwrap();
    share
        .write(nodeid, handle, &mut bytes, len, offset, flags, fuse_flags, false)
        .unwrap()
}

#[test]
fn an_inode_is_known_until_each_lookup_is_forgotten_and_keeps_its_number() {
    let shared = Shared::new();
    shared.file("file", "x");
    let first = shared.lookup(c"file").unwrap();
    assert_eq!(shared.lookup(c"file").unwrap().inode, first.inode);
    shared.share.forget(first.inode, 1);
    shared.share.getattr(first.inode).unwrap();
    shared.share.forget(first.inode, 1);
    assert_eq!(shared.share.getattr(first.inode).unwrap_err(), Errno::BADF);
    let again = shared.lookup(c"file").unwrap();
    assert_eq!((again.inode, again.attr.st_ino), (first.inode, first.inode));
    // And READDIR shows the same number.
    let handle = shared.share.opendir(shared.root()).unwrap();
    let listed = shared.names(0, handle, usize::MAX);
    assert!(
        listed
            .iter()
            .any(|(name, _, ino)| name == "file" && *ino == first.inode)
    );
}

#[test]
fn every_inode_goes_back_to_the_budget() {
    let shared = Shared::with(ShareOptions::default(), 2, 2);
    for round in 0..10 {
        let name = std::ffi::CString::new(format!("file-{round}")).unwrap();
        let (entry, handle) = shared.create(&name, RDWR).unwrap();
        shared.share.release(entry.inode, handle).unwrap();
        shared.share.forget(entry.inode, 1);
    }
    // Of ten entries the guest takes one; the others are not known, and cost nothing.
    let handle = shared.share.opendir(shared.root()).unwrap();
    for _ in 0..10 {
        let mut taken = Vec::new();
        shared
            .share
            .readdirplus(shared.root(), handle, 0, 1 << 20, &mut |_, entry| {
                if taken.iter().filter(|inode| **inode != shared.root()).count() == 2 {
                    return Ok(0);
                }
                taken.push(entry.inode);
                Ok(160)
            })
            .unwrap();
        for inode in taken {
            shared.share.forget(inode, 1);
        }
    }
    assert!(shared.lookup(c"file-1").is_ok() && shared.lookup(c"file-2").is_ok());
}

#[test]
fn beyond_the_budget_a_file_is_neither_opened_nor_made() {
    let shared = Shared::with(ShareOptions::default(), 1, 100);
    shared.file("file", "x");
    let inode = shared.lookup(c"file").unwrap().inode;
    let handle = shared.share.open(inode, 0, 0).unwrap();
    assert_eq!(shared.share.open(inode, 0, 0).unwrap_err(), Errno::NFILE);
    assert_eq!(shared.create(c"new", RDWR).unwrap_err(), Errno::NFILE);
    assert!(!shared.path("new").exists());
    shared.share.release(inode, handle).unwrap();
    shared.create(c"new", RDWR).unwrap();
}

#[test]
fn inodes_beyond_the_budget_are_kept_by_handle() {
    let shared = Shared::with(ShareOptions::default(), 10, 0);
    if !shared.share.handles_work {
        eprintln!("skipped: file handles need root and a file system that has them");
        return;
    }
    for n in 0..100 {
        shared.file(&format!("file-{n}"), "content");
    }
    // A hundred inodes with ten descriptors.
    let inodes: Vec<u64> = (0..100)
        .map(|n| {
            let name = std::ffi::CString::new(format!("file-{n}")).unwrap();
            shared.lookup(&name).unwrap().inode
        })
        .collect();
    fs::rename(shared.path("file-7"), shared.path("moved")).unwrap();
    assert_eq!(shared.lookup(c"moved").unwrap().inode, inodes[7]);
    assert_eq!(shared.share.getattr(inodes[7]).unwrap().st_size, 7);
    let handle = shared.share.open(inodes[7], RDWR, 0).unwrap();
    assert_eq!(write(&shared.share, (inodes[7], handle), 0, "C", RDWR, 0), 1);
    assert_eq!(fs::read_to_string(shared.path("moved")).unwrap(), "Content");
    let mut buffer = Vec::new();
    for inode in &inodes {
        buffer.push(shared.share.getattr(*inode).unwrap().st_ino);
    }
    assert_eq!(buffer, inodes);
}

#[test]
fn an_inode_number_that_is_used_again_is_another_inode() {
    let shared = Shared::with(ShareOptions::default(), 10, 0);
    if !shared.share.handles_work {
        eprintln!("skipped: file handles need root and a file system that has them");
        return;
    }
    for attempt in 0..200 {
        let ino = fs::metadata(shared.file("old", "old")).unwrap().ino();
        let old = shared.lookup(c"old").unwrap();
        fs::remove_file(shared.path("old")).unwrap();
        if fs::metadata(shared.file("new", "new!")).unwrap().ino() == ino {
            let new = shared.lookup(c"new").unwrap();
            assert_ne!(new.inode, old.inode);
            assert_eq!(shared.share.getattr(old.inode).unwrap_err(), Errno::STALE);
            assert_eq!(shared.share.getattr(new.inode).unwrap().st_size, 4);
            assert_eq!(shared.lookup(c"new").unwrap().inode, new.inode);
            shared.share.forget(old.inode, 1);
            assert_eq!(
                shared.lookup(c"new").unwrap().inode,
                new.inode,
                "attempt {attempt}"
            );
            return;
        }
        shared.share.forget(old.inode, 1);
        fs::remove_file(shared.path("new")).unwrap();
    }
    eprintln!("skipped: this file system does not use inode numbers again soon");
}

#[test]
fn a_guest_that_may_only_read_changes_nothing() {
    let options = ShareOptions {
        read_only: true,
        xattrmap: None,
    };
    let shared = Shared::with(options, 100, 100);
    let file = shared.file("file", "content");
    let inode = shared.lookup(c"file").unwrap().inode;
    let (share, root_inode) = (&shared.share, shared.root());
    let attr = share.getattr(inode).unwrap();
    let handle = share.open(inode, 0, 0).unwrap();
    let mut bytes = Bytes(b"other".to_vec());
    let written = share.write(inode, handle, &mut bytes, 5, 0, 0, 0, false);
    assert_eq!(
        written.unwrap_err().raw_os_error(),
        Some(Errno::ROFS.raw_os_error())
    );
    let before = fs::metadata(&file).unwrap();
    for refused in [
        share.open(inode, RDWR, 0).map(drop),
        share.open(inode, 0o1000, 0).map(drop),
        shared.create(c"new", RDWR).map(drop),
        share.tmpfile(&root(), root_inode, &create_in(RDWR)).map(drop),
        share.mkdir(&root(), root_inode, c"new", 0o755).map(drop),
        share.mknod(&root(), root_inode, c"new", 0o100_644, 0).map(drop),
        share.symlink(&root(), c"x", root_inode, c"new").map(drop),
        share.link(inode, root_inode, c"new").map(drop),
        share.unlink(root_inode, c"file"),
        share.rmdir(root_inode, c"file"),
        share.rename((root_inode, c"file"), (root_inode, c"new"), 0),
        share.setattr(inode, &attr, None, SetattrValid::MODE).map(drop),
        share.setxattr(inode, c"user.x", b"x", 0),
        share.removexattr(inode, c"user.x"),
        share.access(&root(), inode, 2),
        share.fallocate(inode, handle, 0, 0, 10),
        share
            .copy_range((inode, handle, 0), (inode, handle, 5), 2)
            .map(drop),
    ] {
        assert_eq!(refused.unwrap_err(), Errno::ROFS);
    }
    assert_eq!(fs::read_dir(shared.path(".")).unwrap().count(), 1);
    assert_eq!(fs::metadata(&file).unwrap().ctime_nsec(), before.ctime_nsec());
    share.release(inode, handle).unwrap();
}

#[test]
fn what_a_guest_calls_its_attributes_is_mapped_on_the_host() {
    let options = ShareOptions {
        read_only: false,
        xattrmap: Some(":map:trusted.:user.guest.:".parse().unwrap()),
    };
    let shared = Shared::with(options, 100, 100);
    shared.file("file", "");
    let inode = shared.lookup(c"file").unwrap().inode;
    let share = &shared.share;
    share.setxattr(inode, c"trusted.x", b"value", 0).unwrap();
    let refused = share.setxattr(inode, c"user.guest.trusted.x", b"", 0);
    assert_eq!(refused.unwrap_err(), Errno::PERM);
    let mut value = [0; 5];
    let len = rustix::fs::getxattr(shared.path("file"), c"user.guest.trusted.x", &mut value).unwrap();
    assert_eq!((len, &value), (5, b"value"));
    let ListxattrReply::Names(names) = share.listxattr(inode, 1000).unwrap() else {
        panic!("no names");
    };
    assert_eq!(names, b"trusted.x\0");
    let hidden = share.getxattr(inode, c"user.guest.trusted.x", 100).map(drop);
    assert_eq!(hidden.unwrap_err(), Errno::NODATA);
    share.removexattr(inode, c"trusted.x").unwrap();
}

#[test]
fn no_name_leads_out_of_the_directory() {
    let shared = Shared::new();
    fs::write(shared.dir.path().join("secret"), "").unwrap();
    fs::create_dir(shared.path("dir")).unwrap();
    symlink("..", shared.path("up")).unwrap();
    let dir = shared.lookup(c"dir").unwrap().inode;
    let up = shared.lookup(c"up").unwrap().inode;
    assert_eq!(shared.lookup(c"..").unwrap().inode, shared.root());
    assert_eq!(shared.share.lookup(dir, c"..").unwrap().inode, shared.root());
    for name in [c"../secret", c"dir/../../secret", c"/etc/passwd"] {
        assert_eq!(shared.lookup(name).unwrap_err(), Errno::INVAL);
    }
    assert_eq!(shared.share.lookup(up, c"secret").unwrap_err(), Errno::NOTDIR);
    assert_eq!(shared.share.open(up, 0, 0).unwrap_err(), Errno::LOOP);
    assert_eq!(shared.share.opendir(up).unwrap_err(), Errno::NOTDIR);
    // The host moves a directory out while the guest is in it.
    fs::rename(shared.path("dir"), shared.dir.path().join("outside")).unwrap();
    assert_eq!(shared.share.lookup(dir, c"..").unwrap_err(), Errno::NOENT);
}

#[test]
fn what_is_no_file_or_directory_is_not_opened() {
    let shared = Shared::new();
    mknodat(
        CWD,
        shared.path("fifo"),
        FileType::Fifo,
        Mode::from_raw_mode(0o666),
        0,
    )
    .unwrap();
    let fifo = shared.lookup(c"fifo").unwrap().inode;
    assert_eq!(shared.share.open(fifo, 0, 0).unwrap_err(), Errno::BADF);
}

#[test]
fn a_listing_goes_on_where_it_was_left_and_begins_anew() {
    let shared = Shared::new();
    for n in 0..300 {
        shared.file(&format!("file-{n}"), "");
    }
    let handle = shared.share.opendir(shared.root()).unwrap();
    let all = shared.names(0, handle, usize::MAX);
    assert_eq!(all.len(), 302);
    assert!(shared.names(all.last().unwrap().1, handle, usize::MAX).is_empty());
    let first = shared.names(0, handle, 7);
    let rest = shared.names(first[6].1, handle, usize::MAX);
    assert_eq!([first.clone(), rest].concat(), all);
    // A place in the middle that was not the last, and one at the start, where something new shows.
    assert_eq!(shared.names(first[2].1, handle, 4), all[3..7]);
    shared.file("late", "");
    assert_eq!(shared.names(0, handle, usize::MAX).len(), 303);
    assert_eq!(
        shared.share.readdir(shared.root(), handle + 1, 0, &mut |_| Ok(1)),
        Err(Errno::BADF)
    );
}

#[test]
fn appending_does_not_overwrite_what_the_host_appended() {
    let shared = Shared::new();
    let file = shared.file("log", "one\n");
    let inode = shared.lookup(c"log").unwrap().inode;
    let handle = shared.share.open(inode, RDWR | APPEND, 0).unwrap();
    fs::write(&file, "one\ntwo\n").unwrap();
    // The guest believes the file to be four bytes long.
    assert_eq!(
        write(&shared.share, (inode, handle), 4, "three\n", RDWR | APPEND, 0),
        6
    );
    assert_eq!(fs::read_to_string(file).unwrap(), "one\ntwo\nthree\n");
}

#[test]
fn setuid_goes_when_the_guest_says_so() {
    if !is_root() {
        return;
    }
    let shared = Shared::new();
    let file = shared.file("program", "content");
    let set = || fs::set_permissions(&file, fs::Permissions::from_mode(0o6755)).unwrap();
    let mode = || fs::metadata(&file).unwrap().mode() & 0o7777;
    set();
    let inode = shared.lookup(c"program").unwrap().inode;
    let handle = shared.share.open(inode, RDWR, 0).unwrap();
    let kill = 4;
    write(&shared.share, (inode, handle), 0, "x", RDWR, 0);
    assert_eq!(mode(), 0o6755, "root in the guest keeps them");
    write(&shared.share, (inode, handle), 0, "x", RDWR, kill);
    assert_eq!(mode(), 0o755);
    set();
    let attr = shared.share.getattr(inode).unwrap();
    let size = SetattrValid::SIZE | SetattrValid::KILL_SUIDGID;
    shared.share.setattr(inode, &attr, None, size).unwrap();
    assert_eq!(mode(), 0o755);
    set();
    shared.share.open(inode, RDWR | 0o1000, 1).unwrap();
    assert_eq!(mode(), 0o755);
    set();
    shared
        .share
        .setattr(inode, &attr, None, SetattrValid::UID)
        .unwrap();
    assert_eq!(mode(), 0o755, "as by any chown");
}

#[test]
fn a_user_makes_files_where_a_group_of_his_may() {
    if !is_root() {
        return;
    }
    let shared = Shared::new();
    fs::create_dir(shared.path("team")).unwrap();
    std::os::unix::fs::chown(shared.path("team"), Some(0), Some(77)).unwrap();
    fs::set_permissions(shared.path("team"), fs::Permissions::from_mode(0o770)).unwrap();
    let team = shared.lookup(c"team").unwrap().inode;
    let make = |name| shared.share.mkdir(&user(1234, 5678), team, name, 0o755);
    assert_eq!(make(c"a").unwrap_err(), Errno::ACCESS);
    let entry = with_groups(&[77], || make(c"b")).unwrap();
    assert_eq!((entry.attr.st_uid, entry.attr.st_gid), (1234, 5678));
    assert_eq!(
        make(c"c").unwrap_err(),
        Errno::ACCESS,
        "the group was for one request"
    );
    // A guest that cannot name groups has checked them itself.
    shared.share.common.knows_groups.store(false, Ordering::Relaxed);
    make(c"d").unwrap();
}

#[test]
fn the_mode_of_a_new_file_is_the_guests_whatever_our_umask() {
    let shared = Shared::new();
    let before = rustix::process::umask(Mode::from_raw_mode(0o077));
    let made = std::thread::scope(|scope| {
        let thread = scope.spawn(|| shared.share.mkdir(&root(), shared.root(), c"dir", 0o777).unwrap());
        thread.join().unwrap()
    });
    assert_eq!(made.attr.st_mode & 0o7777, 0o777);
    assert_eq!(
        rustix::process::umask(before),
        Mode::from_raw_mode(0o077),
        "other threads keep theirs"
    );
}

#[test]
fn a_file_without_a_name_gets_one_by_link() {
    let shared = Shared::new();
    let (entry, handle) = match shared.share.tmpfile(&root(), shared.root(), &create_in(RDWR)) {
        Ok(made) => made,
        Err(Errno::OPNOTSUPP) => return eprintln!("skipped: no O_TMPFILE here"),
        Err(error) => panic!("{error}"),
    };
    assert_eq!(entry.attr.st_nlink, 0);
    write(&shared.share, (entry.inode, handle), 0, "text", RDWR, 0);
    assert_eq!(fs::read_dir(shared.path(".")).unwrap().count(), 0);
    let linked = shared.share.link(entry.inode, shared.root(), c"named").unwrap();
    assert_eq!((linked.inode, linked.attr.st_nlink), (entry.inode, 1));
    assert_eq!(fs::read_to_string(shared.path("named")).unwrap(), "text");
}

#[test]
fn a_range_is_copied_on_the_host() {
    let shared = Shared::new();
    shared.file("from", "0123456789");
    let to = shared.file("to", "abcdefghij");
    let (from_inode, to_inode) = (
        shared.lookup(c"from").unwrap().inode,
        shared.lookup(c"to").unwrap().inode,
    );
    let from = shared.share.open(from_inode, 0, 0).unwrap();
    let target = shared.share.open(to_inode, RDWR, 0).unwrap();
    let copied = shared
        .share
        .copy_range((from_inode, from, 2), (to_inode, target, 5), 3)
        .unwrap();
    assert_eq!(
        (copied, fs::read_to_string(to).unwrap().as_str()),
        (3, "abcde234ij")
    );
    shared.share.sync(None).unwrap();
    shared.share.sync(Some(from_inode)).unwrap();
}

#[test]
fn a_file_that_is_there_is_opened_unless_it_must_be_new() {
    let shared = Shared::new();
    shared.file("file", "content");
    let (entry, _) = shared.create(c"file", RDWR).unwrap();
    assert_eq!(entry.attr.st_size, 7);
    assert_eq!(shared.create(c"file", RDWR | EXCL).unwrap_err(), Errno::EXIST);
    for name in [c".", c".."] {
        assert_eq!(shared.create(name, RDWR).unwrap_err(), Errno::EXIST);
    }
}

#[test]
fn access_control_lists_are_kept_from_the_guest() {
    let shared = Shared::new();
    shared.file("file", "");
    let inode = shared.lookup(c"file").unwrap().inode;
    let refused = shared.share.setxattr(inode, c"system.posix_acl_access", b"x", 0);
    assert_eq!(refused.unwrap_err(), Errno::OPNOTSUPP);
    let refused = shared.share.getxattr(inode, c"system.posix_acl_default", 0);
    assert_eq!(refused.map(drop).unwrap_err(), Errno::OPNOTSUPP);
}

#[test]
fn a_mount_of_the_host_below_the_directory_is_announced() {
    if !is_root() {
        return;
    }
    let shared = Shared::new();
    fs::create_dir(shared.path("mnt")).unwrap();
    let flags = rustix::mount::MountFlags::empty();
    if let Err(error) = rustix::mount::mount(c"tmpfs", shared.path("mnt"), c"tmpfs", flags, None) {
        return eprintln!("skipped: nothing can be mounted: {error}");
    }
    let unmounted = Unmount(shared.path("mnt"));
    fs::write(shared.path("mnt/file"), "x").unwrap();
    let plain = shared.lookup(c"mnt").unwrap();
    // The next guest can do that.
    shared.share.reset();
    let common = &shared.share.common;
    common.knows_submounts.store(true, Ordering::Relaxed);
    let announced = shared.lookup(c"mnt").unwrap();
    let below = shared.share.lookup(announced.inode, c"file").unwrap();
    assert_eq!(
        (plain.attr_flags, announced.attr_flags, below.attr_flags),
        (0, 1, 0)
    );
    assert_eq!(plain.inode, announced.inode);
    assert_ne!(announced.inode >> 48, shared.root() >> 48);
    shared.share.sync(Some(announced.inode)).unwrap();
    // Nothing of ours keeps the host from unmounting it once the guest has forgotten it.
    shared.share.forget(below.inode, 1);
    shared.share.forget(announced.inode, 1);
    drop(unmounted);
    assert_eq!(fs::read_dir(shared.path("mnt")).unwrap().count(), 0);
}

/// Takes a mount away again.
pub(super) struct Unmount(pub(super) PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::empty()).unwrap();
    }
}
