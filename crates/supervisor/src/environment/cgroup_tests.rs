//! Finding the parent from the files of several kinds of machine, and real leaves in a hierarchy of the test's own.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Read;
use std::process::{Command, Stdio};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::*;
use crate::own_mounts::own_mounts;

const UNIFIED: &str = "24 31 0:22 / /proc rw - proc proc rw\n\
    33 24 0:28 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
const HYBRID: &str = "30 25 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
    31 30 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
    40 30 0:36 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
const V1: &str = "31 30 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
/// A container without a cgroup namespace: a part of the hierarchy is bound.
const BOUND: &str = "33 24 0:28 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup rw\n";

#[test]
fn the_parent_is_beside_the_own_cgroup() {
    for (mountinfo, cgroup, expected) in [
        (
            UNIFIED,
            "0::/system.slice/x.service\n",
            Some("/sys/fs/cgroup/system.slice"),
        ),
        (UNIFIED, "0::/x\n", Some("/sys/fs/cgroup")),
        (UNIFIED, "0::/\n", Some("/sys/fs/cgroup")),
        (HYBRID, "4:memory:/a/b\n0::/\n", Some("/sys/fs/cgroup/unified")),
        (V1, "4:memory:/a/b\n0::/\n", None),
        (HYBRID, "4:memory:/a/b\n", None),
        (BOUND, "0::/docker/abc/x/y\n", Some("/sys/fs/cgroup/x")),
        (BOUND, "0::/elsewhere\n", None),
        ("", "", None),
        ("garbage - cgroup2", "0::", None),
    ] {
        assert_eq!(
            parent(mountinfo, cgroup).as_deref(),
            expected.map(Path::new),
            "{mountinfo}{cgroup}"
        );
    }
}

#[test]
fn counters_are_found_by_their_whole_name() {
    let events = "low 0\noom 3\noom_kill 2\noom_group_kill 1\n";
    assert_eq!(counter(events, "oom_kill"), Some(2));
    assert_eq!(counter(events, "kill"), None);
}

/// A cgroup v2 hierarchy, in a mount namespace that ends with the test's thread.
struct Hierarchy {
    dir: tempfile::TempDir,
}

impl Hierarchy {
    /// `None`, said aloud, where mounting is not permitted.
    fn mounted() -> Option<Self> {
        if !own_mounts() {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        mount("cgroup2", dir.path(), "cgroup2", MountFlags::empty(), None).unwrap();
        Some(Self { dir })
    }

    fn root(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Hierarchy {
    fn drop(&mut self) {
        let _ = unmount(self.root(), UnmountFlags::DETACH);
    }
}

macro_rules! hierarchy_or_skip {
    () => {
        match Hierarchy::mounted() {
            Some(hierarchy) => hierarchy,
            None => return,
        }
    };
}

/// A shell in the leaf that has left its process group, and reads from the pipe whose other end is kept.
#[test]
fn what_is_in_a_leaf_goes_with_it() {
    let hierarchy = hierarchy_or_skip!();
    let parent = hierarchy.root();
    let name = format!("nydusbox-test-{}", std::process::id());
    let leaf = Leaf::create(parent, &name).unwrap();
    let mut child = Command::new("/bin/sh")
        .args(["-c", "read -r _; setsid -f sleep 1000; exit 0"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    leaf.place(Pid::from_child(&child)).unwrap();
    let mut output = child.stdout.take().unwrap();
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
    assert!(std::fs::remove_dir(leaf.path()).is_err(), "the sleeper is in it");

    let second = Leaf::create(parent, &name).unwrap();
    assert_ne!(second.path(), leaf.path(), "one in use is not touched");
    second.remove().unwrap();

    let path = leaf.path().to_owned();
    leaf.remove().unwrap();
    assert!(!path.exists());
    // The sleeper held the pipe: end of file means that it is gone.
    let mut rest = Vec::new();
    output.read_to_end(&mut rest).unwrap();
}

#[test]
fn an_empty_leaf_of_a_predecessor_is_replaced() {
    let hierarchy = hierarchy_or_skip!();
    let parent = hierarchy.root();
    let name = format!("nydusbox-empty-{}", std::process::id());
    let path = parent.join(&name);
    std::fs::create_dir(&path).unwrap();
    let leaf = Leaf::create(parent, &name).unwrap();
    assert_eq!(leaf.path(), path);
    drop(leaf);
    assert!(!path.exists());
}

/// Each in its own state directory, started at the same moment.
#[test]
fn sandboxes_of_the_same_id_have_leaves_of_their_own() {
    let hierarchy = hierarchy_or_skip!();
    let id = SandboxId::new(format!("same{}", std::process::id())).unwrap();
    let make = || {
        let dir = tempfile::tempdir().unwrap();
        let leaf = Leaf::create(hierarchy.root(), &leaf_name(&id, dir.path()).unwrap()).unwrap();
        (dir, leaf)
    };
    let (_dir, first) = make();
    let (_dir, second) = make();
    let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
    first.place(Pid::from_child(&child)).unwrap();
    second.remove().unwrap();
    assert!(child.try_wait().unwrap().is_none());
    assert_eq!(
        leaf_of(first.path(), Pid::from_child(&child)),
        Some(first.inode())
    );
    first.remove().unwrap();
    assert!(!child.wait().unwrap().success());
}

/// Whoever may write to the parent has put it there.
#[test]
fn nothing_is_written_to_another_leaf_of_the_same_path() {
    let hierarchy = hierarchy_or_skip!();
    let name = format!("nydusbox-over-{}", std::process::id());
    let was = Leaf::create(hierarchy.root(), &name).unwrap();
    std::fs::remove_dir(was.path()).unwrap();
    let others = Leaf::create(hierarchy.root(), &name).unwrap();
    let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
    let pid = Pid::from_child(&child);
    was.place(pid).unwrap_err();
    was.set("cgroup.max.descendants", 1).unwrap_err();
    assert_eq!(leaf_of(others.path(), pid), None);
    others.set("cgroup.max.descendants", 1).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Somebody has made it since.
#[test]
fn another_leaf_of_the_same_name_is_left_alone() {
    let hierarchy = hierarchy_or_skip!();
    let parent = hierarchy.root();
    let name = format!("nydusbox-again-{}", std::process::id());
    let mut was = Leaf::create(parent, &name).unwrap();
    was.removed = true;
    std::fs::remove_dir(was.path()).unwrap();
    let others = Leaf::create(parent, &name).unwrap();
    let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
    let pid = Pid::from_child(&child);
    assert_eq!(leaf_of(others.path(), pid), None);
    others.place(pid).unwrap();
    assert_eq!(leaf_of(others.path(), pid), Some(others.inode()));

    was.clear().unwrap();
    remove_leaf(was.path(), Some(was.inode())).unwrap();
    // Nor is one with processes in it that is known by its path only.
    let busy = remove_leaf(was.path(), None).unwrap_err();
    assert_eq!(busy.kind(), io::ErrorKind::ResourceBusy);
    assert!(child.try_wait().unwrap().is_none() && others.path().exists());

    let (path, inode) = (others.path().to_owned(), others.inode());
    remove_leaf(&path, Some(inode)).unwrap();
    assert!(!child.wait().unwrap().success() && !path.exists());
    remove_leaf(&path, None).unwrap();
}

#[test]
fn a_controller_that_is_not_there_is_told_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write("cgroup.controllers", "cpu memory\n");
    write("cgroup.subtree_control", "cpu\n");
    assert!(matches!(
        ensure_controller(dir.path(), "pids"),
        Err(LimitError::NoController {
            controller: "pids",
            ..
        })
    ));
    ensure_controller(dir.path(), "cpu").unwrap();
    ensure_controller(dir.path(), "memory").unwrap();
    assert_eq!(
        std::fs::read_to_string(dir.path().join("cgroup.subtree_control")).unwrap(),
        "+memory"
    );
}
