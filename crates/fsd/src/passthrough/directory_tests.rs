//! Directories whose entries are many, or not to be had.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ffi::CString;
use std::fs;
use std::os::fd::AsRawFd;

use fuse_backend_rs::api::filesystem::{DirEntry, Entry};

use super::tests::{Shared, Unmount, is_root};
use super::*;

#[test]
fn entries_of_a_directory_are_kept_within_the_budget_and_listed_once_beyond_it() {
    let shared = Shared::new();
    for n in 0..1000 {
        shared.file(&format!("file-{n}"), "");
    }
    let (root, handle) = (shared.root(), shared.share.opendir(shared.root()).unwrap());
    // Three names for each request, as a guest with little room has it; how much is kept after the first of them.
    let list = || {
        let (mut names, mut offset, mut kept) = (Vec::new(), 0, None);
        loop {
            let (mut room, at) = (3, offset);
            let mut add = |entry: DirEntry<'_>| {
                if room == 0 {
                    return Ok(0);
                }
                room -= 1;
                offset = entry.offset;
                names.push(entry.name.to_vec());
                Ok(1)
            };
            shared.share.readdir(root, handle, at, &mut add).unwrap();
            let file = shared.share.files.get(handle, root).unwrap();
            let now = file.listing.as_ref().unwrap().lock().unwrap().kept();
            if room == 3 {
                names.sort();
                return (names, kept.unwrap_or_default(), now);
            }
            kept = kept.or(Some(now));
        }
    };
    let (names, kept, at_the_end) = list();
    assert!(names.len() == 1002 && kept > 0 && at_the_end == 0);
    let taken: Vec<_> = std::iter::from_fn(|| shared.share.common.budget.listing()).collect();
    assert_eq!(list(), (names.clone(), 0, 0));
    drop(taken);
    assert_eq!(list(), (names, kept, 0));
}

#[test]
fn a_name_that_cannot_be_looked_up_hides_no_other() {
    if !is_root() {
        return;
    }
    let shared = Shared::new();
    for name in ["a", "dead", "z"] {
        fs::create_dir(shared.path(name)).unwrap();
    }
    // A FUSE mount whose server is gone.
    let device = match fs::File::options().read(true).write(true).open("/dev/fuse") {
        Ok(device) => device,
        Err(error) => return eprintln!("skipped: /dev/fuse cannot be opened: {error}"),
    };
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
    let options = CString::new(options).unwrap();
    let flags = rustix::mount::MountFlags::empty();
    if let Err(error) = rustix::mount::mount(c"x", shared.path("dead"), c"fuse", flags, options.as_c_str()) {
        return eprintln!("skipped: nothing can be mounted: {error}");
    }
    let _unmounted = Unmount(shared.path("dead"));
    drop(device);
    assert_eq!(shared.lookup(c"dead").unwrap_err(), Errno::NOTCONN);
    let handle = shared.share.opendir(shared.root()).unwrap();
    let mut listed = Vec::new();
    let mut add = |dirent: DirEntry<'_>, entry: Entry| {
        listed.push((dirent.name.to_vec(), dirent.ino != 0, entry.attr.st_mode != 0));
        Ok(160)
    };
    let list = shared
        .share
        .readdirplus(shared.root(), handle, 0, 1 << 20, &mut add);
    list.unwrap();
    listed.retain(|(name, ..)| !name.starts_with(b"."));
    listed.sort();
    let expected = [("a", true, true), ("dead", true, false), ("z", true, true)];
    assert_eq!(
        listed,
        expected.map(|(name, number, known)| (name.into(), number, known))
    );
}
