//! The directory's lock and its treatment of what it finds.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

fn place() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state/s1");
    (dir, path)
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
    let lock = first._lock.as_ref().unwrap().try_clone().unwrap();
    let mut dead = Command::new("true").spawn().unwrap();
    let pid = dead.id();
    dead.wait().unwrap();
    std::fs::write(path.join(LOCK), pid.to_string()).unwrap();
    let mut child = Command::new("sleep").arg("0.05").stdin(lock).spawn().unwrap();
    // As if it were killed: nothing is removed.
    first.leave();
    assert!(SandboxDir::claim(&path).is_ok());
    child.wait().unwrap();
}

#[test]
fn a_live_api_socket_is_refused_and_stays() {
    let (_keep, path) = place();
    std::fs::create_dir_all(&path).unwrap();
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
    let (_keep, path) = place();
    std::fs::create_dir_all(&path).unwrap();
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
    let (_keep, path) = place();
    std::fs::create_dir_all(&path).unwrap();
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
