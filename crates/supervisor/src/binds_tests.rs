//! Binds as root in a mount namespace of the test's own, against what a guest or a mistake could have put there.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ffi::{CString, OsStr};
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;

use nydusbox_protocol::MountPoint;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, unmount,
};

use super::*;
use crate::own_mounts::own_mounts;

/// A share and a snapshot, in a mount namespace that ends with the test's thread.
struct Scene {
    dir: tempfile::TempDir,
}

impl Scene {
    /// `None`, said aloud, where mounting is not permitted.
    fn new() -> Option<Self> {
        if !own_mounts() {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        for name in ["share", "snapshot/fs", "snapshot/work"] {
            fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        fs::write(dir.path().join("snapshot/fs/precious"), "x").unwrap();
        Some(Self { dir })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn plan(&self) -> Result<Bind, BindError> {
        let container = ContainerId::new("c1").unwrap();
        Bind::plan(&self.path("share"), &container, &self.path("snapshot"))
    }

    fn made(&self) -> Bind {
        let mut bind = self.plan().unwrap();
        bind.make().unwrap();
        bind
    }

    /// What a successor that knows only what was planned would find.
    fn found(&self) -> Mounted {
        let mut bind = self.plan().unwrap();
        bind.mounted = Mounted::Perhaps;
        bind.find_mount();
        bind.mounted
    }

    /// Enters a bind of `snapshot` for the image of `c1`, which is not mounted, and makes it.
    fn mount_in(&self, book: &mut BindBook, snapshot: &str) -> Result<(), BindError> {
        let container = ContainerId::new("c1").unwrap();
        let at = MountPoint::rafs_lowerdir(&container);
        let share = self.path("share");
        assert!(book.enter(&at, false, &share, &container, &self.path(snapshot))?);
        book.make(&at)
    }

    fn share_is_empty(&self) -> bool {
        fs::read_dir(self.path("share")).unwrap().next().is_none()
    }

    fn mounts(&self) -> Vec<String> {
        let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let dir = self.dir.path().to_str().unwrap();
        let at = |line: &str| line.split(' ').nth(4).unwrap().to_owned();
        table.lines().map(at).filter(|m| m.starts_with(dir)).collect()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let precious = self.path("snapshot/fs/precious");
        assert!(
            std::thread::panicking() || precious.exists(),
            "the snapshot's files are gone"
        );
        for mount in self.mounts() {
            let _ = unmount(mount, UnmountFlags::DETACH);
        }
    }
}

macro_rules! scene_or_skip {
    () => {
        match Scene::new() {
            Some(scene) => scene,
            None => return,
        }
    };
}

#[test]
fn the_snapshot_appears_in_the_share_and_goes_without_a_trace() {
    let scene = scene_or_skip!();
    let mut bind = scene.made();
    assert!(matches!(bind.mounted, Mounted::As(_)));
    assert_eq!(scene.found(), bind.mounted);
    fs::write(scene.path("share/c1/snapshotdir/fs/new"), "guest").unwrap();
    assert_eq!(
        fs::read_to_string(scene.path("snapshot/fs/new")).unwrap(),
        "guest"
    );
    assert!(scene.path("share/c1/rootfs").is_dir());
    assert!(bind.undo().is_empty());
    assert!(scene.found() == Mounted::Not && scene.share_is_empty() && scene.mounts().is_empty());
    assert!(bind.undo().is_empty(), "again is no failure");
}

#[test]
fn a_file_held_open_does_not_hold_the_mount() {
    let scene = scene_or_skip!();
    let mut bind = scene.made();
    let held = fs::File::open(scene.path("share/c1/snapshotdir/fs/precious")).unwrap();
    assert!(bind.undo().is_empty());
    assert!(scene.mounts().is_empty() && scene.share_is_empty());
    drop(held);
}

#[test]
fn mounts_below_one_end_do_not_appear_at_the_other() {
    let scene = scene_or_skip!();
    mount_bind(scene.path("snapshot"), scene.path("snapshot")).unwrap();
    mount_change(scene.path("snapshot"), MountPropagationFlags::SHARED).unwrap();
    let mut bind = scene.made();
    mount_bind(
        scene.path("share/c1/rootfs"),
        scene.path("share/c1/snapshotdir/work"),
    )
    .unwrap();
    let work = scene.path("snapshot/work");
    assert!(!scene.mounts().contains(&work.to_str().unwrap().to_owned()));
    // What is mounted inside goes with the lazy unmount, and is not entered.
    assert!(bind.undo().is_empty());
    assert!(scene.share_is_empty());
}

#[test]
fn directories_that_were_there_stay() {
    let scene = scene_or_skip!();
    fs::create_dir_all(scene.path("share/c1/rootfs")).unwrap();
    let mut bind = scene.made();
    assert!(bind.undo().is_empty());
    assert!(scene.path("share/c1/rootfs").is_dir());
    assert!(!scene.path("share/c1/snapshotdir").exists());
}

#[test]
fn what_the_guest_wrote_beside_it_is_left_and_named() {
    let scene = scene_or_skip!();
    let mut bind = scene.made();
    fs::write(scene.path("share/c1/rootfs/file"), "").unwrap();
    match bind.undo().as_slice() {
        [Leftover::Path { path, .. }] => assert_eq!(path, &scene.path("share/c1/rootfs")),
        other => panic!("{other:?}"),
    }
    assert!(scene.mounts().is_empty(), "the mount goes all the same");
    assert!(scene.path("share/c1/rootfs/file").exists());
    fs::remove_file(scene.path("share/c1/rootfs/file")).unwrap();
    assert!(bind.undo().is_empty());
    assert!(scene.share_is_empty());
}

#[test]
fn a_symlink_is_refused_wherever_it_is() {
    let scene = scene_or_skip!();
    fs::create_dir(scene.path("elsewhere")).unwrap();
    symlink(scene.path("elsewhere"), scene.path("share/c1")).unwrap();
    assert!(matches!(scene.plan(), Err(BindError::Symlink { .. })));
    fs::remove_file(scene.path("share/c1")).unwrap();

    fs::create_dir(scene.path("share/c1")).unwrap();
    symlink(scene.path("elsewhere"), scene.path("share/c1/snapshotdir")).unwrap();
    assert!(matches!(
        scene.plan().unwrap().make(),
        Err(BindError::Symlink { .. })
    ));
    assert!(scene.path("share/c1/snapshotdir").is_symlink());

    symlink(scene.path("snapshot"), scene.path("link")).unwrap();
    let container = ContainerId::new("c2").unwrap();
    let plan = |source: &str| Bind::plan(&scene.path("share"), &container, &scene.path(source));
    assert!(matches!(plan("link"), Err(BindError::Symlink { .. })));
    assert!(matches!(plan("link/fs"), Err(BindError::Symlink { .. })));
    assert_eq!(fs::read_dir(scene.path("elsewhere")).unwrap().count(), 0);
    assert!(scene.mounts().is_empty());
}

#[test]
fn a_symlink_put_in_place_of_the_container_is_not_followed_by_the_clean_up() {
    let scene = scene_or_skip!();
    let mut bind = scene.made();
    fs::create_dir_all(scene.path("elsewhere/snapshotdir")).unwrap();
    fs::create_dir_all(scene.path("elsewhere/rootfs")).unwrap();
    fs::rename(scene.path("share/c1"), scene.path("share/moved")).unwrap();
    symlink(scene.path("elsewhere"), scene.path("share/c1")).unwrap();
    assert!(matches!(bind.undo().as_slice(), [Leftover::Path { .. }]));
    assert!(scene.mounts().is_empty(), "the mount is found where it went");
    assert!(scene.path("elsewhere/snapshotdir").is_dir() && scene.path("elsewhere/rootfs").is_dir());
}

#[test]
fn a_foreign_mount_is_neither_covered_nor_taken_away() {
    let scene = scene_or_skip!();
    fs::create_dir_all(scene.path("share/c1/snapshotdir")).unwrap();
    fs::create_dir(scene.path("foreign")).unwrap();
    mount_bind(scene.path("foreign"), scene.path("share/c1/snapshotdir")).unwrap();
    assert!(matches!(
        scene.plan().unwrap().make(),
        Err(BindError::Occupied { .. })
    ));
    assert_eq!(scene.mounts().len(), 1);
    unmount(scene.path("share/c1/snapshotdir"), UnmountFlags::empty()).unwrap();

    let mut bind = scene.made();
    mount_bind(scene.path("foreign"), scene.path("share/c1/snapshotdir")).unwrap();
    let left = bind.undo();
    assert!(matches!(left.first(), Some(Leftover::Mount { .. })), "{left:?}");
    assert_eq!(scene.mounts().len(), 2);
}

/// Two containers on one snapshot: undoing the one that was never made leaves the other alone.
#[test]
fn only_the_bind_that_is_meant_is_undone() {
    let scene = scene_or_skip!();
    let mut first = scene.made();
    let container = ContainerId::new("c2").unwrap();
    let mut second = Bind::plan(&scene.path("share"), &container, &scene.path("snapshot")).unwrap();
    assert!(second.undo().is_empty());
    assert_eq!(scene.found(), first.mounted);
    assert!(first.undo().is_empty());
}

#[test]
fn a_snapshot_that_was_replaced_is_not_bound() {
    let scene = scene_or_skip!();
    let mut bind = scene.plan().unwrap();
    fs::rename(scene.path("snapshot"), scene.path("old")).unwrap();
    fs::create_dir(scene.path("snapshot")).unwrap();
    assert!(matches!(bind.make(), Err(BindError::Replaced { .. })));
    assert!(scene.share_is_empty());
    fs::remove_dir(scene.path("snapshot")).unwrap();
    fs::rename(scene.path("old"), scene.path("snapshot")).unwrap();
}

/// A guest left a file, so that a directory stays in the book. What is mounted next is bound all the same.
#[test]
fn after_a_leftover_the_next_mount_is_bound_with_whatever_snapshot_it_has() {
    let scene = scene_or_skip!();
    fs::create_dir_all(scene.path("other/fs")).unwrap();
    let mut book = BindBook::default();
    for snapshot in ["snapshot", "snapshot", "other"] {
        scene.mount_in(&mut book, snapshot).unwrap();
        assert_eq!(scene.mounts().len(), 1, "{snapshot}");
        let precious = scene.path("share/c1/snapshotdir/fs/precious");
        assert_eq!(precious.exists(), snapshot == "snapshot");
        fs::write(scene.path("share/c1/rootfs/file"), "").unwrap();
        let left = book.undo_all_but(|_| false);
        assert!(matches!(&left[..], [Leftover::Path { .. }]), "{left:?}");
        assert!(scene.mounts().is_empty());
    }
    fs::remove_file(scene.path("share/c1/rootfs/file")).unwrap();
    assert!(book.undo_all_but(|_| false).is_empty());
    assert!(scene.share_is_empty(), "they are still known to be ours");
}

#[test]
fn what_could_not_be_unmounted_is_not_bound_anew() {
    let scene = scene_or_skip!();
    let mut book = BindBook::default();
    scene.mount_in(&mut book, "snapshot").unwrap();
    fs::create_dir(scene.path("foreign")).unwrap();
    mount_bind(scene.path("foreign"), scene.path("share/c1/snapshotdir")).unwrap();
    let left = book.undo_all_but(|_| false);
    assert!(left.iter().any(Leftover::needs_the_document), "{left:?}");
    assert!(matches!(
        scene.mount_in(&mut book, "snapshot"),
        Err(BindError::Occupied { .. })
    ));
    unmount(scene.path("share/c1/snapshotdir"), UnmountFlags::empty()).unwrap();
    assert!(book.undo_all_but(|_| false).is_empty());
    assert!(scene.share_is_empty() && scene.mounts().is_empty());
}

/// Two sandboxes share one directory and have the same container with the same snapshot.
#[test]
fn a_bind_that_fails_leaves_the_same_one_of_another_sandbox() {
    let scene = scene_or_skip!();
    let mut first = scene.made();
    let mut second = scene.plan().unwrap();
    assert!(matches!(second.make(), Err(BindError::Occupied { .. })));
    assert!(second.undo().is_empty());
    assert_eq!(scene.found(), first.mounted);
    // One that was bound and has gone, and another sandbox has bound the same since.
    let Mounted::As(mount) = first.mounted else {
        panic!("{first:?}")
    };
    second.mounted = Mounted::As(Mount {
        id: mount.id + 1,
        ..mount
    });
    assert!(second.undo().is_empty());
    assert_eq!(scene.found(), first.mounted);
    assert!(first.undo().is_empty());
    assert!(scene.share_is_empty());
}

/// A number is given out again once its mount is gone, here to another sandbox on the same snapshot.
#[test]
fn a_mount_that_has_got_the_number_of_ours_is_not_taken_for_it() {
    let scene = scene_or_skip!();
    let mut ours = scene.made();
    unmount(scene.path("share/c1/snapshotdir"), UnmountFlags::empty()).unwrap();
    fs::create_dir(scene.path("others")).unwrap();
    let container = ContainerId::new("c1").unwrap();
    let mut others = Bind::plan(&scene.path("others"), &container, &scene.path("snapshot")).unwrap();
    others.make().unwrap();
    let (Mounted::As(was), Mounted::As(is)) = (ours.mounted, others.mounted) else {
        panic!("{ours:?} {others:?}")
    };
    ours.mounted = Mounted::As(Mount { id: is.id, ..was });
    assert!(ours.undo().is_empty());
    assert_eq!(scene.mounts().len(), 1);
    assert!(others.undo().is_empty());
    assert!(scene.share_is_empty() && scene.mounts().is_empty());
}

/// Written down before the machine was started anew; then another sandbox has bound the same, under the same number.
#[test]
fn nothing_is_unmounted_for_a_bind_of_another_boot() {
    let scene = scene_or_skip!();
    let mut ours = scene.made();
    for known in [true, false] {
        let mut before = ours.clone();
        before.boot_id.push('x');
        if !known {
            before.mounted = Mounted::Perhaps;
        }
        assert!(!before.undo().iter().any(Leftover::needs_the_document));
        before.mounted = Mounted::Perhaps;
        before.find_mount();
        assert_eq!(before.mounted, Mounted::Not);
    }
    assert_eq!(scene.found(), ours.mounted);
    ours.boot_id.clear();
    assert!(ours.undo().is_empty(), "older documents don't say");
    assert!(scene.mounts().is_empty());
}

/// The administrator has renamed the share, or the guest the container's directory: to what is no text, or so deep that no
/// path leads there.
#[test]
fn a_mount_is_found_wherever_it_was_moved() {
    let scene = scene_or_skip!();
    let share = || fs::rename(scene.path("share"), scene.path("elsewhere")).unwrap();
    let bytes = || {
        let name = OsStr::from_bytes(b"\xff \\\n");
        fs::rename(scene.path("share/c1"), scene.path("share").join(name)).unwrap();
    };
    let deep = || {
        let open = |at: &OwnedFd, name: &str| {
            rustix::fs::openat(at, name, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap()
        };
        let share = rustix::fs::openat(CWD, scene.path("share"), OFlags::PATH, Mode::empty()).unwrap();
        let mut dir = share.try_clone().unwrap();
        let name = "d".repeat(250);
        for _ in 0..20 {
            rustix::fs::mkdirat(&dir, &*name, Mode::RWXU).unwrap();
            dir = open(&dir, &name);
        }
        rustix::fs::renameat(&share, "c1", &dir, "c1").unwrap();
    };
    let moves: [(&str, &dyn Fn()); 3] = [("bytes", &bytes), ("deep", &deep), ("share", &share)];
    for (what, moved) in moves {
        let mut bind = scene.made();
        moved();
        let left = bind.undo();
        assert!(left.is_empty(), "{what} {left:?}");
        assert!(scene.mounts().is_empty(), "{what}");
        assert_eq!(bind.mounted, Mounted::Not);
    }
}

#[test]
fn a_mount_that_was_moved_and_cannot_be_taken_away_is_a_leftover() {
    let scene = scene_or_skip!();
    let mut bind = scene.made();
    fs::create_dir(scene.path("foreign")).unwrap();
    fs::rename(scene.path("share/c1"), scene.path("share/moved")).unwrap();
    let place = scene.path("share/moved/snapshotdir");
    mount_bind(scene.path("foreign"), &place).unwrap();
    let left = bind.undo();
    assert!(left.iter().any(Leftover::needs_the_document), "{left:?}");
    assert_eq!(scene.mounts().len(), 2);
    unmount(&place, UnmountFlags::empty()).unwrap();
    assert!(bind.undo().is_empty());
    assert!(scene.mounts().is_empty());
}

/// The next mount there is of the image alone.
#[test]
fn what_is_left_of_a_bind_is_not_made_for_a_mount_without_one() {
    let scene = scene_or_skip!();
    let mut book = BindBook::default();
    let at = MountPoint::rafs_lowerdir(&ContainerId::new("c1").unwrap());
    scene.mount_in(&mut book, "snapshot").unwrap();
    assert!(book.find(&at).is_some());
    fs::write(scene.path("share/c1/rootfs/file"), "").unwrap();
    assert!(!book.undo_all_but(|_| false).is_empty());

    book.make(&at).unwrap();
    assert!(scene.mounts().is_empty());
    assert!(book.find(&at).is_none());
    // Nor does the same mount with a snapshot count as being there.
    let container = ContainerId::new("c1").unwrap();
    let (share, snapshot) = (scene.path("share"), scene.path("snapshot"));
    assert!(!book.enter(&at, true, &share, &container, &snapshot).unwrap());
    // What was planned for a request that was then refused is not made later.
    assert!(book.enter(&at, false, &share, &container, &snapshot).unwrap());
    assert!(!book.undo_all_but(|_| false).is_empty());
    book.make(&at).unwrap();
    assert!(scene.mounts().is_empty());
}

/// A file system in user space whose server does not answer, as long as this value is there.
fn hanging(at: &Path) -> OwnedFd {
    let server = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).unwrap();
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", server.as_raw_fd());
    let options = CString::new(options).unwrap();
    mount("fuse", at, "fuse", MountFlags::empty(), options.as_c_str()).unwrap();
    server
}

#[tokio::test]
async fn a_snapshot_that_does_not_answer_is_waited_for_on_another_thread_and_not_for_ever() {
    let scene = scene_or_skip!();
    fs::create_dir(scene.path("hanging")).unwrap();
    let server = hanging(&scene.path("hanging"));
    let within = Duration::from_millis(10);
    match answers(&scene.path("hanging/1"), within).await {
        Err(BindError::Io { source, .. }) => assert_eq!(source.kind(), io::ErrorKind::TimedOut),
        other => panic!("{other:?}"),
    }
    drop(server);
    let within = Duration::from_mins(1);
    for there_or_not in ["snapshot", "none"] {
        answers(&scene.path(there_or_not), within).await.unwrap();
    }
}

#[test]
fn a_bind_whose_file_system_does_not_answer_any_more_is_undone() {
    let scene = scene_or_skip!();
    fs::create_dir(scene.path("hanging")).unwrap();
    let _server = hanging(&scene.path("hanging"));
    let container = ContainerId::new("c1").unwrap();
    let mut bind = Bind::plan(&scene.path("share"), &container, &scene.path("hanging")).unwrap();
    bind.make().unwrap();
    assert!(bind.undo().is_empty());
    assert!(scene.share_is_empty());
}

/// It is refused, and then nothing of it is in the way of the sandbox's end: neither in the book nor for a successor.
#[test]
fn what_a_guest_or_another_has_put_in_the_binds_place_is_no_leftover() {
    let scene = scene_or_skip!();
    fs::create_dir_all(scene.path("elsewhere")).unwrap();
    let place = scene.path("share/c1/snapshotdir");
    let symlink = || symlink(scene.path("snapshot"), &place).unwrap();
    let file = || fs::write(&place, "guest's").unwrap();
    let foreign = || {
        fs::create_dir(&place).unwrap();
        mount_bind(scene.path("elsewhere"), &place).unwrap();
    };
    let planted: [(&str, &dyn Fn()); 3] = [("symlink", &symlink), ("file", &file), ("mount", &foreign)];
    for (what, plant) in planted {
        for before_it_is_planned in [true, false] {
            fs::create_dir(scene.path("share/c1")).unwrap();
            if before_it_is_planned {
                plant();
            }
            let mut bind = scene.plan().unwrap();
            if !before_it_is_planned {
                plant();
            }
            bind.make().unwrap_err();
            let mut recalled = bind.clone();
            recalled.mounted = Mounted::Perhaps;
            for mut bind in [bind, recalled] {
                let left = bind.undo();
                let blocks = left.iter().any(Leftover::needs_the_document);
                assert!(!blocks, "{what} {before_it_is_planned} {left:?}");
                // A directory that something is mounted on cannot be removed, whoever made it.
                assert!(left.is_empty() || what == "mount", "{what} {left:?}");
            }
            assert!(!scene.path("share/c1/rootfs").exists());
            match what {
                "mount" => {
                    assert_eq!(scene.mounts().len(), 1);
                    unmount(&place, UnmountFlags::empty()).unwrap();
                    fs::remove_dir(&place).unwrap();
                }
                _ => fs::remove_file(&place).unwrap(),
            }
            fs::remove_dir(scene.path("share/c1")).unwrap();
        }
    }
}
