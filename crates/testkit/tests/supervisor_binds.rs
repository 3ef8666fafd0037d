//! Mounts with a snapshot directory: bound while the image is mounted, gone on every path, nothing of it touched.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "supervisor/mounts.rs"]
mod mounts;
mod supervisor;

use std::ffi::CString;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use mounts::{mounts_below, own_mounts_or_skip};
use nydusbox::protocol::ContainerId;
use nydusbox::{BindError, Leftover, MountError, MountOutcome, MountRequest, Program, Sandbox};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use supervisor::Place;

const FAKE: &str = env!("CARGO_BIN_EXE_fake-daemon");

fn program(behaviour: &str) -> Program {
    Program::embedded(FAKE)
        .unwrap()
        .with_env("FAKE_DAEMON", behaviour)
}

/// A snapshot as containerd has them, with a file in it.
fn snapshot(place: &Place, name: &str) -> std::path::PathBuf {
    let dir = place.path(name);
    fs::create_dir_all(dir.join("fs")).unwrap();
    fs::create_dir_all(dir.join("work")).unwrap();
    fs::write(dir.join("fs/precious"), "x").unwrap();
    dir
}

fn request(place: &Place, container: &str, snapshot: &str) -> MountRequest {
    let container = ContainerId::new(container).unwrap();
    MountRequest::rafs_with_snapshotdir(&container, place.path("bootstrap"), "{}", place.path(snapshot))
        .unwrap()
}

/// No bind is left, nor a directory made for one, and the snapshot is as it was.
fn assert_untouched(place: &Place) {
    assert_eq!(mounts_below(&place.path("")), Vec::<String>::new());
    assert_eq!(
        fs::read_dir(place.share()).unwrap().count(),
        0,
        "left in the share"
    );
    assert_eq!(
        fs::read_to_string(place.path("snapshot/fs/precious")).unwrap(),
        "x"
    );
}

async fn started(place: &Place, behaviour: &str) -> Sandbox {
    let config = place
        .config("s1", program(behaviour))
        .with_share(place.share())
        .unwrap();
    Sandbox::start(config).await.unwrap()
}

/// A file system in user space whose server does not answer, as long as this value is there.
fn hanging(at: &Path) -> OwnedFd {
    fs::create_dir(at).unwrap();
    let server = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).unwrap();
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", server.as_raw_fd());
    let options = CString::new(options).unwrap();
    mount("fuse", at, "fuse", MountFlags::empty(), options.as_c_str()).unwrap();
    server
}

#[tokio::test]
async fn a_snapshot_that_does_not_answer_holds_up_nothing_else() {
    own_mounts_or_skip!();
    let place = Place::new();
    snapshot(&place, "snapshot");
    let server = hanging(&place.path("hanging"));
    let sandbox = started(&place, "serve").await;
    let mut hangs = Box::pin(sandbox.mount(request(&place, "c1", "hanging/1")));
    let others = async {
        sandbox.mount(request(&place, "c2", "snapshot")).await.unwrap();
        sandbox
            .unmount(request(&place, "c2", "snapshot").at().clone())
            .await
            .unwrap();
    };
    tokio::select! {
        biased;
        hung = &mut hangs => panic!("{hung:?}"),
        () = others => {}
    }
    drop(hangs);
    assert!(sandbox.stop().await.leftovers.is_empty());
    drop(server);
    unmount(place.path("hanging"), UnmountFlags::DETACH).unwrap();
    assert_untouched(&place);
}

#[tokio::test]
async fn the_snapshot_is_in_the_share_while_the_image_is_mounted() {
    own_mounts_or_skip!();
    let place = Place::new();
    snapshot(&place, "snapshot");
    snapshot(&place, "other");
    let sandbox = started(&place, "serve").await;
    let first = request(&place, "c1", "snapshot");
    assert_eq!(sandbox.mount(first.clone()).await.unwrap(), MountOutcome::Mounted);
    assert!(place.path("share/c1/snapshotdir/fs/precious").exists());
    sandbox.mount(place.request("/m")).await.unwrap();
    let shown = sandbox
        .status()
        .borrow()
        .mounts
        .iter()
        .find_map(|m| m.snapshotdir.clone());
    assert_eq!(shown, Some(place.path("snapshot")));
    assert_eq!(
        sandbox.mount(first.clone()).await.unwrap(),
        MountOutcome::AlreadyMounted
    );
    let other = sandbox.mount(request(&place, "c1", "other")).await;
    assert!(matches!(other, Err(MountError::Conflict { .. })), "{other:?}");
    sandbox.unmount(first.at().clone()).await.unwrap();
    assert_untouched(&place);
    // Again, and this time the stop takes it away.
    sandbox.mount(first).await.unwrap();
    let outcome = sandbox.stop().await;
    assert!(outcome.leftovers.is_empty(), "{outcome:?}");
    assert_untouched(&place);
    place.assert_clean();
}

#[tokio::test]
async fn a_mount_that_is_refused_leaves_no_bind() {
    own_mounts_or_skip!();
    let place = Place::new();
    snapshot(&place, "snapshot");
    let sandbox = started(&place, "refuse-image").await;
    let refused = sandbox.mount(request(&place, "c1", "snapshot")).await;
    assert!(matches!(refused, Err(MountError::Daemon { .. })), "{refused:?}");
    assert_untouched(&place);
    assert!(sandbox.stop().await.leftovers.is_empty());
}

#[tokio::test]
async fn a_bind_that_cannot_be_made_mounts_nothing() {
    own_mounts_or_skip!();
    let place = Place::new();
    snapshot(&place, "snapshot");
    let sandbox = started(&place, "serve").await;
    std::os::unix::fs::symlink(place.path("snapshot"), place.path("link")).unwrap();
    match sandbox.mount(request(&place, "c1", "link")).await {
        Err(MountError::Snapshotdir {
            source: BindError::Symlink { .. },
            ..
        }) => {}
        other => panic!("{other:?}"),
    }
    // A guest that plants a symlink where the mount is to go.
    fs::create_dir(place.path("share/c1")).unwrap();
    std::os::unix::fs::symlink(place.path("snapshot"), place.path("share/c1/snapshotdir")).unwrap();
    match sandbox.mount(request(&place, "c1", "snapshot")).await {
        Err(MountError::Snapshotdir {
            source: BindError::Symlink { .. },
            ..
        }) => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(sandbox.status().borrow().mounts.len(), 1, "only the share");
    fs::remove_file(place.path("share/c1/snapshotdir")).unwrap();
    fs::remove_dir(place.path("share/c1")).unwrap();
    assert!(sandbox.stop().await.leftovers.is_empty());
    assert_untouched(&place);
}

#[tokio::test]
async fn without_a_share_there_is_nowhere_to_show_it() {
    let place = Place::new();
    snapshot(&place, "snapshot");
    let sandbox = Sandbox::start(place.config("s1", program("serve")))
        .await
        .unwrap();
    let refused = sandbox.mount(request(&place, "c1", "snapshot")).await;
    assert!(matches!(refused, Err(MountError::NoShare { .. })), "{refused:?}");
    assert!(sandbox.stop().await.leftovers.is_empty());
}

#[tokio::test]
async fn the_bind_goes_also_when_the_daemon_died_or_the_handle_is_dropped() {
    own_mounts_or_skip!();
    let place = Place::new();
    snapshot(&place, "snapshot");
    let sandbox = started(&place, "die-after-image").await;
    let exited = sandbox.exited();
    let _either = sandbox.mount(request(&place, "c1", "snapshot")).await;
    exited.await;
    assert!(sandbox.stop().await.leftovers.is_empty());
    assert_untouched(&place);

    let sandbox = started(&place, "serve").await;
    sandbox.mount(request(&place, "c1", "snapshot")).await.unwrap();
    let mut status = sandbox.status();
    drop(sandbox);
    while status.changed().await.is_ok() {}
    assert_untouched(&place);
    place.assert_clean();
}

/// What the guest wrote beside the bind is the user's: it is left, and named.
#[tokio::test]
async fn what_cannot_be_undone_is_reported_and_the_rest_is_done() {
    own_mounts_or_skip!();
    let place = Place::new();
    snapshot(&place, "snapshot");
    let sandbox = started(&place, "serve").await;
    sandbox.mount(request(&place, "c1", "snapshot")).await.unwrap();
    fs::write(place.path("share/c1/rootfs/file"), "guest").unwrap();
    let outcome = sandbox.stop().await;
    match &outcome.leftovers[..] {
        [Leftover::Path { path, .. }] => assert_eq!(*path, place.path("share/c1/rootfs")),
        other => panic!("{other:?}"),
    }
    assert_eq!(mounts_below(&place.path("")), Vec::<String>::new());
    fs::remove_dir_all(place.path("share/c1")).unwrap();
    place.assert_clean();
    assert_untouched(&place);
}
