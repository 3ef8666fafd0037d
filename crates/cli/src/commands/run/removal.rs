//! Removes what a guest may have made: as deep as it likes, which is deeper than a process has descriptors or stack.
//!
//! A directory that is not empty is moved up, until nothing is deeper than two levels. Links are removed and never
//! followed, and nothing is touched but what is below the directory. Read `claim.rs` for when.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, openat, renameat, unlinkat};
use rustix::io::Errno;

/// Removes the directory, if it is there. Names of its own in it stay what they are until they are gone, so that what is
/// left when this fails or is killed is known for what it was.
pub(super) fn remove(dir: &Path) -> io::Result<()> {
    let top = match open_dir(CWD, dir) {
        Err(Errno::NOENT) => return Ok(()),
        other => other?,
    };
    each(&top, |name| match unlinkat(&top, name, AtFlags::empty()) {
        Err(Errno::ISDIR | Errno::PERM) => {
            flatten(&open_dir(&top, name)?)?;
            unlinkat(&top, name, AtFlags::REMOVEDIR)
        }
        other => other,
    })?;
    fs::remove_dir(dir)
}

/// Removes what is in a directory.
fn flatten(top: &OwnedFd) -> Result<(), Errno> {
    let mut moved = 0_u64;
    // What was moved up while it was looked through may have been passed over.
    while each(top, |name| remove_or_empty(top, name, &mut moved))? > 0 {}
    Ok(())
}

/// Removes what has a name in `top`, having moved directories in it up.
fn remove_or_empty(top: &OwnedFd, name: &CStr, moved: &mut u64) -> Result<(), Errno> {
    if !is_full_dir(top, name)? {
        return Ok(());
    }
    let dir = open_dir(top, name)?;
    each(&dir, |inner| {
        if is_full_dir(&dir, inner)? {
            move_up(&dir, inner, top, moved)?;
        }
        Ok(())
    })?;
    match unlinkat(top, name, AtFlags::REMOVEDIR) {
        // What was passed over comes next time.
        Err(Errno::NOTEMPTY) => Ok(()),
        other => other,
    }
}

/// Removes it, unless it is a directory with something in it.
fn is_full_dir(parent: &OwnedFd, name: &CStr) -> Result<bool, Errno> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Err(Errno::ISDIR | Errno::PERM) => {}
        other => return other.map(|()| false),
    }
    match unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(true),
        other => other.map(|()| false),
    }
}

/// Under the first number that is nobody's name there. That of an empty directory is as good.
fn move_up(from: &OwnedFd, name: &CStr, top: &OwnedFd, moved: &mut u64) -> Result<(), Errno> {
    loop {
        *moved += 1;
        match renameat(from, name, top, moved.to_string()) {
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => {}
            other => return other,
        }
    }
}

/// Calls `visit` for all names in a directory; how many there were.
fn each(dir: &OwnedFd, mut visit: impl FnMut(&CStr) -> Result<(), Errno>) -> Result<u64, Errno> {
    let mut count = 0;
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            visit(entry.file_name())?;
            count += 1;
        }
    }
    Ok(count)
}

fn open_dir(at: impl AsFd, path: impl rustix::path::Arg) -> Result<OwnedFd, Errno> {
    let at: BorrowedFd<'_> = at.as_fd();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(at, path, flags, Mode::empty())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::os::unix::fs::symlink;

    use rustix::fs::mkdirat;
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    use super::*;

    fn nest(dir: &Path, depth: usize) {
        let mut at = open_dir(CWD, dir).unwrap();
        for _ in 0..depth {
            mkdirat(&at, "1", Mode::RWXU).unwrap();
            at = open_dir(&at, "1").unwrap();
            mkdirat(&at, "2", Mode::RWXU).unwrap();
            openat(
                &at,
                "file",
                OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC,
                Mode::RUSR,
            )
            .unwrap();
        }
    }

    #[test]
    fn a_nest_deeper_than_there_are_descriptors_goes() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run-1");
        fs::create_dir_all(run.join("shared/c1/snapshotdir/fs")).unwrap();
        fs::write(run.join("ca.pem"), "").unwrap();
        nest(&run.join("shared/c1/snapshotdir/fs"), 1500);
        let limit = getrlimit(Resource::Nofile);
        let low = Rlimit {
            current: Some(256),
            ..limit
        };
        setrlimit(Resource::Nofile, low).unwrap();
        let removed = remove(&run);
        setrlimit(Resource::Nofile, limit).unwrap();
        removed.unwrap();
        assert!(!run.exists());
        remove(&run).unwrap();
    }

    #[test]
    fn what_links_lead_to_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (run, other) = (dir.path().join("run-1"), dir.path().join("other"));
        fs::create_dir_all(run.join("shared/deep/er")).unwrap();
        fs::create_dir_all(other.join("kept")).unwrap();
        for link in ["link", "shared/link", "shared/deep/link", "shared/deep/er/link"] {
            symlink(&other, run.join(link)).unwrap();
        }
        remove(&run).unwrap();
        assert!(!run.exists());
        assert!(other.join("kept").exists());
        symlink(&other, &run).unwrap();
        remove(&run).unwrap_err();
        assert!(other.join("kept").exists());
    }
}
