//! The supervisor with the daemon this executable carries: the whole life, a thousand times, and cut off anywhere.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use common::Dir;
use nydusbox::protocol::{ContainerId, MountPoint, SandboxId};
use nydusbox::{
    ArgumentError, CallError, ExitCause, MountError, MountOutcome, MountRequest, Program, Sandbox,
    SandboxConfig, StartCause, StopOutcome, StopStep, UnmountOutcome,
};

fn config(dir: &Dir, id: &str) -> SandboxConfig {
    let program = Program::embedded(env!("CARGO_BIN_EXE_nydusbox")).unwrap();
    SandboxConfig::new(SandboxId::new(id).unwrap(), dir.mkdir("state"), program)
        .unwrap()
        .with_share(dir.mkdir("share"))
        .unwrap()
}

/// It ended because it was asked, orderly, and nothing is left.
fn assert_orderly(outcome: &StopOutcome) {
    let status = ExitCause::Code(0);
    assert_eq!(outcome.step, StopStep::Exited { status }, "{outcome:?}");
    assert!(
        outcome.leftovers.is_empty() && outcome.unmount_failures.is_empty(),
        "{outcome:?}"
    );
}

/// Nothing in the state directory, no child of this process (each test has one of its own under nextest).
fn assert_clean(dir: &Dir) {
    assert_eq!(std::fs::read_dir(dir.join("state")).unwrap().count(), 0);
    let own = format!("PPid:\t{}\n", std::process::id());
    let children: Vec<_> = std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter(|e| std::fs::read_to_string(e.path().join("status")).is_ok_and(|s| s.contains(&own)))
        .map(|e| e.file_name())
        .collect();
    assert!(children.is_empty(), "{children:?}");
}

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// It prints a line, and is asked at once.
#[tokio::test]
async fn a_vmm_that_comes_and_goes_is_seen_before_the_next_look_is_due() {
    let dir = Dir::new();
    let config = config(&dir, "s1").with_health_interval(Some(Duration::from_hours(1)));
    let sandbox = Sandbox::start(config).await.unwrap();
    let mut status = sandbox.status();
    status.wait_for(|s| s.vmm_attached == Some(false)).await.unwrap();
    for _ in 0..2 {
        let frontend = UnixStream::connect(sandbox.vhost_socket().as_path()).unwrap();
        status.wait_for(|s| s.vmm_attached == Some(true)).await.unwrap();
        drop(frontend);
        status.wait_for(|s| s.vmm_attached == Some(false)).await.unwrap();
    }
    assert_orderly(&sandbox.stop().await);
    assert_clean(&dir);
}

/// The supervisor does not ask this daemon for its options: it has a list, and this is the list's check.
#[tokio::test]
async fn the_options_the_supervisor_knows_are_those_the_command_has() {
    let dir = Dir::new();
    let program = Program::embedded(env!("CARGO_BIN_EXE_nydusbox"))
        .unwrap()
        .with_args(["--no-such-option"]);
    let config = SandboxConfig::new(SandboxId::new("s1").unwrap(), dir.mkdir("state"), program).unwrap();
    let error = Sandbox::start(config).await.unwrap_err();
    let StartCause::Argument(ArgumentError::Unknown { known, .. }) = *error.cause else {
        panic!("{error:?}")
    };
    let help = std::process::Command::new(env!("CARGO_BIN_EXE_nydusbox"))
        .args(["virtiofs", "--help"])
        .output()
        .unwrap();
    let mut options: Vec<String> = String::from_utf8(help.stdout)
        .unwrap()
        .lines()
        .filter_map(|line| {
            let line = line.trim_start();
            let (_, long) = line.starts_with('-').then(|| line.split_once("--"))??;
            Some(long.split([' ', '=']).next()?.to_owned())
        })
        .collect();
    options.sort_unstable();
    assert_eq!(known, options);
    assert_clean(&dir);
}

#[tokio::test]
async fn a_whole_life() {
    let dir = Dir::new();
    let sandbox = Sandbox::start(config(&dir, "s1")).await.unwrap();
    let at = MountPoint::new("/more").unwrap();
    let request = MountRequest::passthrough(at.clone(), dir.mkdir("more")).unwrap();
    assert_eq!(
        sandbox.mount(request.clone()).await.unwrap(),
        MountOutcome::Mounted
    );
    assert_eq!(
        sandbox.mount(request).await.unwrap(),
        MountOutcome::AlreadyMounted
    );
    let missing = MountRequest::passthrough(MountPoint::new("/bad").unwrap(), dir.join("none")).unwrap();
    match sandbox.mount(missing).await {
        Err(MountError::Daemon {
            source: CallError::BadSource { .. },
            ..
        }) => {}
        other => panic!("{other:?}"),
    }
    std::fs::write(dir.join("random"), vec![0x5a; 20_000]).unwrap();
    let container = ContainerId::new("c1").unwrap();
    let image = |config: &str| MountRequest::rafs(&container, dir.join("random"), config).unwrap();
    match sandbox.mount(image("not json")).await {
        Err(MountError::Daemon {
            source: CallError::BadConfig { .. },
            ..
        }) => {}
        other => panic!("{other:?}"),
    }
    let rafs = format!(
        r#"{{"version":2,"backend":{{"type":"localfs","localfs":{{"dir":"{0}"}}}},"cache":{{"type":"blobcache","filecache":{{"work_dir":"{0}"}}}},"rafs":{{"mode":"direct"}}}}"#,
        dir.mkdir("blobs").display()
    );
    match sandbox.mount(image(&rafs)).await {
        Err(MountError::Daemon {
            source: CallError::BadImage { .. },
            ..
        }) => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(
        sandbox.unmount(at.clone()).await.unwrap(),
        UnmountOutcome::Unmounted
    );
    assert_eq!(sandbox.unmount(at).await.unwrap(), UnmountOutcome::WasNotMounted);
    assert_orderly(&sandbox.stop().await);
    assert_clean(&dir);
}

/// A frontend that connects is a connection to our daemon like any other: stopping does not wait for it.
#[tokio::test]
async fn stops_in_time_before_with_and_after_a_frontend() {
    let dir = Dir::new();
    for state in ["before", "with", "after"] {
        let sandbox = Sandbox::start(config(&dir, state)).await.unwrap();
        let connect = || UnixStream::connect(sandbox.vhost_socket().as_path()).unwrap();
        let frontend = (state != "before").then(connect);
        let frontend = frontend.filter(|_| state == "with");
        let begun = Instant::now();
        assert_orderly(&sandbox.stop().await);
        println!("stop {state} a frontend: {:?}", begun.elapsed());
        drop(frontend);
        assert_clean(&dir);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_at_once() {
    let dir = std::sync::Arc::new(Dir::new());
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..20 {
        let dir = dir.clone();
        tasks.spawn(async move {
            let sandbox = Sandbox::start(config(&dir, &format!("s{n}"))).await.unwrap();
            let at = MountPoint::new("/more").unwrap();
            let request = MountRequest::passthrough(at, dir.mkdir("more")).unwrap();
            sandbox.mount(request).await.unwrap();
            assert_orderly(&sandbox.stop().await);
        });
    }
    while let Some(result) = tasks.join_next().await {
        result.unwrap();
    }
    assert_clean(&dir);
}

#[tokio::test]
async fn a_thousand_cycles_leave_nothing() {
    let dir = Dir::new();
    let mut starts = Vec::new();
    let mut stops = Vec::new();
    let mut files = 0;
    for cycle in 0..1000 {
        let begun = Instant::now();
        let sandbox = Sandbox::start(config(&dir, "s1")).await.unwrap();
        starts.push(begun.elapsed());
        let begun = Instant::now();
        assert_orderly(&sandbox.stop().await);
        stops.push(begun.elapsed());
        if cycle == 0 {
            // The runtime's own descriptors exist from the first use on.
            files = open_files();
        }
    }
    assert_eq!(open_files(), files);
    assert_clean(&dir);
    for (what, times) in [("start", &mut starts), ("stop", &mut stops)] {
        times.sort_unstable();
        println!(
            "{what} with a share: median {:?}, 99th percentile {:?}, slowest {:?}",
            times[500], times[990], times[999]
        );
    }
}

/// In steps much finer than a start takes: from before the spawn to after the share's mount. What was started is
/// gone when `drop` returns.
#[tokio::test]
async fn a_start_that_is_dropped_anywhere_leaves_nothing() {
    let dir = Dir::new();
    let (mut dropped, mut started) = (0, 0);
    let mut limit = Duration::ZERO;
    // On until several starts in a row were too fast to be cut off.
    while started < 5 {
        match tokio::time::timeout(limit, Sandbox::start(config(&dir, "s1"))).await {
            Err(_) => dropped += 1,
            Ok(sandbox) => {
                started += 1;
                assert_orderly(&sandbox.unwrap().stop().await);
            }
        }
        assert_clean(&dir);
        limit += Duration::from_micros(200);
    }
    println!("dropped at {dropped} points");
    assert!(dropped >= 5 && !Path::new(&dir.join("state/s1")).exists());
}
