//! A daemon that was killed and does not end: a thread of it waits for a file system that does not answer.

use std::ffi::CString;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use nydusbox::{Adoption, DirError, Sandbox, StartCause, SweepVerdict, sweep};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::killed::{Scene, Supervised};
use crate::mounts::own_mounts_or_skip;

/// A file system in user space whose server takes requests and answers none, as long as this value is there.
struct Deaf(OwnedFd);

impl Deaf {
    fn mounted(at: &Path) -> Self {
        let server = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", server.as_raw_fd());
        let options = CString::new(options).unwrap();
        mount("fuse", at, "fuse", MountFlags::empty(), options.as_c_str()).unwrap();
        let deaf = Self(server);
        // Until FUSE_INIT is answered, nobody waits for anything in a way that cannot be interrupted.
        let init = deaf.take();
        let mut reply = [0; 80];
        reply[..4].copy_from_slice(&80u32.to_le_bytes());
        reply[8..16].copy_from_slice(&init[8..16]);
        // Version 7.31, read-ahead of 64 KiB, no flags, writes of 64 KiB.
        for (at, value) in [(16, 7u32), (20, 31), (24, 1 << 16), (36, 1 << 16)] {
            reply[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        assert_eq!(rustix::io::write(&deaf.0, &reply), Ok(80));
        deaf
    }

    /// Waits for a request and takes it.
    fn take(&self) -> Vec<u8> {
        let mut request = vec![0; 1 << 17];
        rustix::io::read(&self.0, &mut request).unwrap();
        request
    }
}

#[tokio::test]
async fn a_killed_daemon_that_does_not_end_keeps_its_directory() {
    own_mounts_or_skip!();
    let scene = Scene::new();
    let (deaf, bootstrap) = (scene.place.path("deaf"), scene.place.path("bootstrap"));
    fs::create_dir(&deaf).unwrap();
    let server = Deaf::mounted(&deaf);
    fs::remove_file(&bootstrap).unwrap();
    std::os::unix::fs::symlink(deaf.join("1"), &bootstrap).unwrap();
    let [program, _] = crate::programs();
    let supervised = Supervised::before(&scene.place, &program, "look", &["start"], "mount");
    // Now a thread of the daemon waits for an answer.
    server.take();
    supervised.kill();

    let state = scene.place.path("state");
    let swept = |dry_run| {
        let mut report = sweep(&state, dry_run).unwrap();
        assert!(!report.is_clean());
        let swept = report.sandboxes.pop().unwrap();
        assert_eq!(swept.verdict, SweepVerdict::Abandoned);
        (swept.processes, swept.leftovers)
    };
    let (found, left) = swept(false);
    let [pid] = found[..] else { panic!("{found:?}") };
    assert_eq!(
        left,
        [format!("end process {pid}: it was killed and is still there")]
    );
    assert_eq!(swept(true).0, [pid], "of the process one thread is left");
    let error = Sandbox::start(scene.place.config("s1", program))
        .await
        .unwrap_err();
    assert!(
        matches!(&*error.cause, StartCause::Dir(DirError::DaemonLives { pid: lives, .. }) if *lives == pid),
        "{error:?}"
    );
    match crate::adopt(&scene).await.unwrap() {
        Adoption::CleanedUp { leftovers } => assert_eq!(leftovers.len(), 1, "{leftovers:?}"),
        Adoption::Running(_) => panic!("it was killed"),
    }
    assert!(state.join("s1/state.json").exists());

    drop(server);
    assert!(sweep(&state, false).unwrap().is_clean());
    unmount(&deaf, UnmountFlags::DETACH).unwrap();
    scene.assert_clean();
}
