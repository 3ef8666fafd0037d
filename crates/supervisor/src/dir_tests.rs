//! The directory's lock and its treatment of what it finds.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::mount::{MountFlags, UnmountFlags};

use super::*;
use crate::own_mounts::own_mounts;

fn place() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state/s1");
    (dir, path)
}

/// The directory of a sandbox whose supervisor was killed.
fn left() -> (tempfile::TempDir, PathBuf) {
    let (keep, path) = place();
    SandboxDir::claim(&path).unwrap().leave();
    (keep, path)
}

/// Everything that is in a directory, with modes and contents.
fn listing(dir: &Path) -> Vec<(PathBuf, u32, Vec<u8>)> {
    let mut found = Vec::new();
    let mut next = vec![dir.to_owned()];
    while let Some(path) = next.pop() {
        let metadata = std::fs::symlink_metadata(&path).unwrap();
        let content = match metadata.is_file() {
            true => std::fs::read(&path).unwrap(),
            false => Vec::new(),
        };
        if metadata.is_dir() {
            next.extend(
                std::fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        }
        found.push((path, metadata.permissions().mode(), content));
    }
    found.sort();
    found
}

#[test]
fn a_claimed_directory_is_private_and_goes_completely() {
    let (_keep, path) = place();
    let dir = SandboxDir::claim(&path).unwrap();
    assert_eq!(
        std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777,
        0o700
    );
    std::fs::write(dir.file(LOG), "x").unwrap();
    assert!(dir.remove().is_empty());
    assert!(!path.exists());
}

#[test]
fn a_second_claim_says_who_holds_it() {
    let (_keep, path) = place();
    let first = SandboxDir::claim(&path).unwrap();
    match SandboxDir::claim(&path) {
        Err(DirError::Held { holder, .. }) => assert_eq!(holder, Some(std::process::id())),
        other => panic!("{other:?}"),
    }
    drop(first);
    assert!(!path.exists());
    assert!(SandboxDir::claim(&path).is_ok());
}

/// Between fork and exec a child has all that its parent had.
#[test]
fn a_child_of_a_dead_holder_is_waited_for() {
    let (_keep, path) = place();
    let first = SandboxDir::claim(&path).unwrap();
    let lock = first.lock.as_ref().unwrap().try_clone().unwrap();
    let mut dead = Command::new("true").spawn().unwrap();
    let pid = dead.id();
    dead.wait().unwrap();
    std::fs::write(path.join(LOCK), format!("nydusbox sandbox\n{pid}\n")).unwrap();
    let mut child = Command::new("sleep").arg("0.05").stdin(lock).spawn().unwrap();
    // As if it were killed: nothing is removed.
    first.leave();
    assert!(SandboxDir::claim(&path).is_ok());
    child.wait().unwrap();
}

#[test]
fn a_live_api_socket_is_refused_and_stays() {
    let (_keep, path) = left();
    let _api = UnixListener::bind(path.join(API_SOCKET)).unwrap();
    match SandboxDir::claim(&path) {
        Err(DirError::SocketInUse { holder, path }) => {
            assert_eq!(holder, Some(std::process::id()));
            assert!(path.exists());
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_live_vhost_socket_is_refused_without_being_connected_to() {
    let (_keep, path) = left();
    let vhost = UnixListener::bind(path.join(VHOST_SOCKET)).unwrap();
    vhost.set_nonblocking(true).unwrap();
    assert!(matches!(
        SandboxDir::claim(&path),
        Err(DirError::SocketInUse { .. })
    ));
    assert_eq!(vhost.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
}

#[test]
fn sockets_of_a_dead_daemon_are_removed() {
    let (_keep, path) = left();
    for name in [API_SOCKET, VHOST_SOCKET] {
        drop(UnixListener::bind(path.join(name)).unwrap());
        assert!(path.join(name).exists());
    }
    let _dir = SandboxDir::claim(&path).unwrap();
    assert!(!path.join(API_SOCKET).exists() && !path.join(VHOST_SOCKET).exists());
}

#[test]
fn what_is_not_ours_stays_and_is_reported() {
    let (_keep, path) = place();
    let dir = SandboxDir::claim(&path).unwrap();
    std::fs::write(path.join("precious"), "x").unwrap();
    match dir.remove().as_slice() {
        [Leftover::Path { path: left, .. }] => assert_eq!(left, &path),
        other => panic!("{other:?}"),
    }
    assert!(path.join("precious").exists());
}

#[test]
fn a_symlink_is_not_followed() {
    let (keep, path) = place();
    let elsewhere = keep.path().join("elsewhere");
    std::fs::create_dir_all(&elsewhere).unwrap();
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    symlink(&elsewhere, &path).unwrap();
    assert!(matches!(SandboxDir::claim(&path), Err(DirError::Io { .. })));
}

/// Directories that were never a sandbox's, whatever the names in them: kept byte for byte and mode for mode.
#[test]
fn what_nothing_shows_to_be_a_sandboxs_is_not_touched() {
    type Files<'a> = &'a [(&'a str, &'a str)];
    const PRIVATE: u32 = 0o700;
    let all: Vec<_> = FILES
        .iter()
        .chain(&[LOCK])
        .map(|name| (*name, "precious"))
        .collect();
    let cases: &[(&str, u32, Files<'_>)] = &[
        ("names-of-ours", 0o755, &all),
        ("names-of-ours-in-private", PRIVATE, &all),
        ("one-name", PRIVATE, &[(CERTIFICATES, "")]),
        ("empty-document", PRIVATE, &[(STATE, "")]),
        ("pid", PRIVATE, &[(LOCK, "4242\n")]),
        ("lock-for-all", 0o755, &[(LOCK, "")]),
        ("lock-and-more", PRIVATE, &[(LOCK, ""), ("index", "")]),
        ("lock-and-log", PRIVATE, &[(LOCK, ""), (LOG, "")]),
        ("other-document", PRIVATE, &[(LOCK, ""), (STATE, "{}")]),
        ("no-lock", PRIVATE, &[("main.rs", "precious")]),
    ];
    let state = tempfile::tempdir().unwrap();
    for (name, mode, files) in cases {
        let dir = state.path().join(name);
        std::fs::create_dir(&dir).unwrap();
        for (file, content) in *files {
            std::fs::write(dir.join(file), content).unwrap();
            std::fs::set_permissions(dir.join(file), PermissionsExt::from_mode(0o600)).unwrap();
        }
        std::fs::set_permissions(&dir, PermissionsExt::from_mode(*mode)).unwrap();
    }
    // A lock that is none of ours could be.
    for name in ["lock-is-a-link", "lock-is-a-directory"] {
        std::fs::create_dir(state.path().join(name)).unwrap();
    }
    symlink("../pid/lock", state.path().join("lock-is-a-link/lock")).unwrap();
    std::fs::create_dir(state.path().join("lock-is-a-directory/lock")).unwrap();
    let before = listing(state.path());
    for entry in std::fs::read_dir(state.path()).unwrap() {
        let path = entry.unwrap().path();
        for opened in [
            SandboxDir::look(&path).map(drop),
            SandboxDir::enter(&path).map(drop),
            SandboxDir::claim(&path).map(drop),
        ] {
            assert!(
                matches!(opened, Err(DirError::Foreign { .. })),
                "{path:?} {opened:?}"
            );
        }
    }
    for dry_run in [true, false] {
        let report = crate::sweep(state.path(), dry_run).unwrap();
        assert_eq!(report.foreign.len(), cases.len() + 2);
        assert!(report.sandboxes.is_empty() && !report.is_clean(), "{report:?}");
    }
    assert_eq!(listing(state.path()), before);
}

#[test]
fn a_strangers_file_in_a_sandboxs_directory_is_named_and_everything_stays() {
    let (keep, path) = left();
    std::fs::write(path.join(LOG), "log").unwrap();
    std::fs::write(path.join("precious"), "x").unwrap();
    let before = listing(keep.path());
    for opened in [
        SandboxDir::enter(&path).map(drop),
        SandboxDir::claim(&path).map(drop),
    ] {
        match opened {
            Err(DirError::Stranger { path: stranger }) => assert_eq!(stranger, path.join("precious")),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(listing(keep.path()), before);
    std::fs::remove_file(path.join("precious")).unwrap();
    assert!(SandboxDir::claim(&path).is_ok());
}

/// Its owner is still named, and its mode is what it was.
#[test]
fn a_directory_that_is_not_taken_after_all_is_as_it_was() {
    let (keep, path) = left();
    std::fs::write(path.join(LOCK), "nydusbox sandbox\n42\n").unwrap();
    std::fs::write(path.join(STATE), "{}").unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o750)).unwrap();
    let before = listing(keep.path());
    assert!(matches!(SandboxDir::claim(&path), Err(DirError::State { .. })));
    drop(SandboxDir::enter(&path).unwrap());
    assert!(matches!(
        crate::sweep(path.parent().unwrap(), false).unwrap().sandboxes[0].verdict,
        crate::SweepVerdict::Kept { .. }
    ));
    assert_eq!(listing(keep.path()), before);
    std::fs::remove_file(path.join(STATE)).unwrap();
    let dir = SandboxDir::claim(&path).unwrap();
    let text = std::fs::read_to_string(path.join(LOCK)).unwrap();
    assert_eq!(lock_owner(&text), Some(std::process::id()));
    assert!(dir.remove().is_empty());
}

#[test]
fn a_claim_without_room_leaves_nothing() {
    if !own_mounts() {
        return;
    }
    let keep = tempfile::tempdir().unwrap();
    rustix::mount::mount(
        "tmpfs",
        keep.path(),
        "tmpfs",
        MountFlags::empty(),
        Some(c"size=4k"),
    )
    .unwrap();
    let (path, empty) = (keep.path().join("s1"), keep.path().join("s2"));
    std::fs::write(keep.path().join("full"), [b'x'; 4096]).unwrap();
    std::fs::create_dir(&empty).unwrap();
    for path in [&path, &empty] {
        assert!(matches!(SandboxDir::claim(path), Err(DirError::Io { .. })));
    }
    assert!(!path.exists());
    assert_eq!(std::fs::read_dir(&empty).unwrap().count(), 0);
    rustix::mount::unmount(keep.path(), UnmountFlags::DETACH).unwrap();
}

/// For a start any empty directory will do; a sweep takes one only if we could have made it.
#[test]
fn of_empty_directories_only_a_private_one_is_taken_for_a_remnant() {
    let (_keep, path) = place();
    std::fs::create_dir_all(&path).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    assert!(matches!(SandboxDir::enter(&path), Err(DirError::Foreign { .. })));
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o700)).unwrap();
    assert!(matches!(SandboxDir::enter(&path), Ok(Entered::Locked(_))));
    std::fs::remove_file(path.join(LOCK)).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    drop(SandboxDir::claim(&path).unwrap());
    assert!(!path.exists());
}

/// Claiming and removing in a race: whoever has the claim is alone, and nothing is left at the end.
#[test]
fn claims_exclude_each_other_while_directories_come_and_go() {
    let (_keep, path) = place();
    let (inside, claims) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while claims.load(Ordering::Relaxed) < 400 {
                    match SandboxDir::claim(&path) {
                        Ok(dir) => {
                            assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                            std::fs::write(dir.file(LOG), "x").unwrap();
                            claims.fetch_add(1, Ordering::Relaxed);
                            inside.fetch_sub(1, Ordering::SeqCst);
                            drop(dir);
                        }
                        Err(DirError::Held { .. }) => {}
                        Err(error) => panic!("{error:?}"),
                    }
                }
            });
        }
    });
    assert!(!path.exists());
}
