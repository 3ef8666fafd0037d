//! The supervisor with a genuine nydusd and images made by a genuine nydus-image.
//!
//! Skipped, saying so, where `cargo xtask peers` has not installed them; `NYDUSBOX_REQUIRE_PEERS=1` makes that a
//! failure.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod supervisor;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use nydusbox::protocol::{ContainerId, LogLevel, MountPoint};
use nydusbox::{
    ArgumentError, CallError, EventItem, ExitCause, MountError, MountOutcome, MountRequest, OnExit,
    PreflightError, Program, RestartPolicy, Sandbox, SandboxEvent, StartCause, StopStep, UnmountOutcome,
};
use nydusbox_testkit::peers::{Peer, require};
use supervisor::Place;

const SIGABRT: i32 = rustix::process::Signal::ABORT.as_raw();

macro_rules! nydusd_or_skip {
    () => {
        match require(Peer::Nydusd) {
            Ok(path) => Program::stock(path).unwrap(),
            Err(_) => return,
        }
    };
}

/// A RAFS image of a few files: bootstrap and configuration.
fn image(place: &Place, nydus_image: &PathBuf) -> (PathBuf, String) {
    let (source, blobs, bootstrap) = (place.path("source"), place.path("blobs"), place.path("bootstrap"));
    std::fs::create_dir(&source).unwrap();
    std::fs::create_dir(&blobs).unwrap();
    for n in 0..10u8 {
        std::fs::write(source.join(format!("file{n}")), vec![n; 100_000]).unwrap();
    }
    let output = Command::new(nydus_image)
        .args(["create", "--log-level", "error", "-B"])
        .arg(&bootstrap)
        .arg("-D")
        .arg(&blobs)
        .arg(&source)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let config = format!(
        r#"{{"version":2,"backend":{{"type":"localfs","localfs":{{"dir":"{}"}}}},"cache":{{"type":"blobcache","filecache":{{"work_dir":"{}"}}}},"rafs":{{"mode":"direct"}}}}"#,
        blobs.display(),
        place.path("cache").display()
    );
    (bootstrap, config)
}

fn container(id: &str) -> ContainerId {
    ContainerId::new(id).unwrap()
}

#[tokio::test]
async fn mounts_a_share_and_an_image_and_tells_refusals_apart() {
    let program = nydusd_or_skip!();
    let Ok(nydus_image) = require(Peer::NydusImage) else {
        return;
    };
    let place = Place::new();
    let (bootstrap, config) = image(&place, &nydus_image);
    let sandbox = Sandbox::start(place.config("s1", program).with_share(place.share()).unwrap())
        .await
        .unwrap();

    let good = MountRequest::rafs(&container("c1"), &bootstrap, config.as_str())
        .unwrap()
        .with_prefetch(["/file1"]);
    assert_eq!(sandbox.mount(good.clone()).await.unwrap(), MountOutcome::Mounted);
    assert_eq!(sandbox.mount(good).await.unwrap(), MountOutcome::AlreadyMounted);
    let other = MountRequest::rafs(&container("c1"), place.path("other"), config.as_str()).unwrap();
    assert!(matches!(
        sandbox.mount(other).await,
        Err(MountError::Conflict { .. })
    ));

    let bytes = std::fs::read(&bootstrap).unwrap();
    std::fs::write(place.path("truncated"), &bytes[..5000]).unwrap();
    std::fs::write(
        place.path("random"),
        (0..=255).cycle().take(20_000).collect::<Vec<u8>>(),
    )
    .unwrap();
    for bad in ["missing", "truncated", "random", "share"] {
        let request = MountRequest::rafs(&container("bad"), place.path(bad), config.as_str()).unwrap();
        match sandbox.mount(request).await {
            Err(MountError::Daemon {
                source: CallError::BadImage { .. },
                ..
            }) => {}
            other => panic!("{bad}: {other:?}"),
        }
    }
    for bad in [
        "not json",
        "",
        "{\"version\":2}",
        &config.replace("/blobs", "/nowhere"),
    ] {
        let request = MountRequest::rafs(&container("bad"), &bootstrap, bad).unwrap();
        match sandbox.mount(request).await {
            Err(MountError::Daemon {
                source: CallError::BadConfig { .. },
                ..
            }) => {}
            other => panic!("{bad}: {other:?}"),
        }
    }
    for bad in ["missing", "bootstrap"] {
        let request = MountRequest::passthrough(MountPoint::new("/bad").unwrap(), place.path(bad)).unwrap();
        match sandbox.mount(request).await {
            Err(MountError::Daemon {
                source: CallError::BadSource { .. },
                ..
            }) => {}
            other => panic!("{bad}: {other:?}"),
        }
    }
    // Larger than nydusd reads: never sent, so the connection and the daemon stay well.
    let large = MountRequest::rafs(&container("large"), &bootstrap, "x".repeat(52_000)).unwrap();
    assert!(matches!(
        sandbox.mount(large).await,
        Err(MountError::TooLarge { .. })
    ));

    let at = MountPoint::rafs_lowerdir(&container("c1"));
    assert_eq!(
        sandbox.unmount(at.clone()).await.unwrap(),
        UnmountOutcome::Unmounted
    );
    assert_eq!(sandbox.unmount(at).await.unwrap(), UnmountOutcome::WasNotMounted);
    let mounts = sandbox.status().borrow().mounts.len();
    assert_eq!(mounts, 1, "the share is still there");
    let outcome = sandbox.stop().await;
    assert!(
        outcome.unmount_failures.is_empty() && outcome.leftovers.is_empty(),
        "{outcome:?}"
    );
    place.assert_clean();
}

#[tokio::test]
async fn every_slot_can_be_used_and_the_next_is_refused_by_us() {
    let program = nydusd_or_skip!();
    let place = Place::new();
    let config = place.config("s1", program).with_share(place.share()).unwrap();
    let sandbox = Sandbox::start(config).await.unwrap();
    for n in 0..254 {
        sandbox.mount(place.request(&format!("/m/{n}"))).await.unwrap();
    }
    let next = sandbox.mount(place.request("/m/254")).await;
    assert!(matches!(next, Err(MountError::SlotsExhausted { .. })), "{next:?}");
    let outcome = sandbox.stop().await;
    assert!(outcome.unmount_failures.is_empty(), "{outcome:?}");
    place.assert_clean();
}

/// It would hang on SIGTERM here; the grace of a minute would show that it was asked.
#[tokio::test]
async fn before_a_frontend_came_it_is_killed_at_once() {
    let program = nydusd_or_skip!();
    let place = Place::new();
    let config = place
        .config("s1", program)
        .with_stop_grace(Duration::from_secs(60));
    let sandbox = Sandbox::start(config).await.unwrap();
    let begun = Instant::now();
    assert_eq!(sandbox.stop().await.step, StopStep::Killed);
    println!("stop before a frontend: {:?}", begun.elapsed());
    place.assert_clean();
}

/// Connects as a frontend would and waits until nydusd has taken the connection: it unlinks its socket then.
async fn connect(sandbox: &Sandbox) -> UnixStream {
    let path = sandbox.vhost_socket().as_path().to_owned();
    let frontend = UnixStream::connect(&path).unwrap();
    tokio::time::timeout(Duration::from_secs(10), async {
        while path.exists() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    frontend
}

#[tokio::test]
async fn after_the_frontend_left_it_ends_by_itself() {
    let program = nydusd_or_skip!();
    let place = Place::new();
    let config = place
        .config("s1", program)
        .with_stop_grace(Duration::from_secs(60));
    let sandbox = Sandbox::start(config).await.unwrap();
    drop(connect(&sandbox).await);
    let begun = Instant::now();
    let exited = sandbox.exited();
    let step = sandbox.stop().await.step;
    let last_lines = exited.await.last_lines.concat();
    match step {
        StopStep::Exited {
            status: ExitCause::Code(0),
        } => {}
        // In a few of 100 cases it is through with everything, and the runtime of its language trips over a thread that
        // begins as the last one ends.
        StopStep::Exited {
            status: ExitCause::Signal(SIGABRT),
        } if last_lines.contains("current thread handle already set during thread spawn") => {}
        other => panic!("{other:?}: {last_lines}"),
    }
    println!("stop after the frontend left: {:?}", begun.elapsed());
    place.assert_clean();
}

#[tokio::test]
async fn a_vmm_that_connects_and_leaves_is_told_and_shown() {
    let program = nydusd_or_skip!();
    let place = Place::new();
    let sandbox = Sandbox::start(place.config("s1", program)).await.unwrap();
    let (mut events, mut status) = (sandbox.events(), sandbox.status());
    status.wait_for(|s| s.vmm_attached == Some(false)).await.unwrap();
    let frontend = connect(&sandbox).await;
    status.wait_for(|s| s.vmm_attached == Some(true)).await.unwrap();
    // That it is still there is looked at again, and is no news.
    drop(frontend);
    status.wait_for(|s| s.vmm_attached == Some(false)).await.unwrap();
    let mut told = Vec::new();
    while let Some(EventItem::Record(record)) = events.try_next() {
        told.push(record.event);
    }
    told.retain(|event| matches!(event, SandboxEvent::VmmConnected | SandboxEvent::VmmLeft));
    assert_eq!(told, [SandboxEvent::VmmConnected, SandboxEvent::VmmLeft]);
    assert!(sandbox.stop().await.leftovers.is_empty());
    place.assert_clean();
}

#[tokio::test]
async fn while_the_frontend_is_connected_it_costs_the_grace() {
    let program = nydusd_or_skip!();
    let place = Place::new();
    let config = place
        .config("s1", program)
        .with_stop_grace(Duration::from_millis(200));
    let sandbox = Sandbox::start(config).await.unwrap();
    let mut frontend = connect(&sandbox).await;
    // Between taking a connection and serving it nydusd does end on SIGTERM. An answer shows that it serves.
    let get_features = [1u32, 1, 0].map(u32::to_le_bytes).concat();
    frontend.write_all(&get_features).unwrap();
    frontend.read_exact(&mut [0; 20]).unwrap();
    assert_eq!(sandbox.stop().await.step, StopStep::Killed);
    drop(frontend);
    place.assert_clean();
}

/// It exits with status 2 when it is given them.
/// The arguments are the first word on it, not the last.
#[tokio::test]
async fn a_log_level_that_was_changed_is_the_successors_whatever_the_arguments_said() {
    let program = nydusd_or_skip!().with_args(["--log-level=warn"]);
    let place = Place::new();
    let config = place
        .config("s1", program)
        .with_on_exit(OnExit::Restart(RestartPolicy::default()));
    let sandbox = Sandbox::start(config).await.unwrap();
    let line = |sandbox: &Sandbox| {
        let pid = sandbox.status().borrow().pid;
        std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap()
    };
    assert!(line(&sandbox).contains("--log-level\0warn\0"));
    sandbox.set_log_level(LogLevel::Debug).await.unwrap();
    let mut events = sandbox.events();
    let pid = i32::try_from(sandbox.status().borrow().pid).unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    loop {
        match events.next().await {
            Some(EventItem::Record(record)) if matches!(record.event, SandboxEvent::Recovered { .. }) => {
                break;
            }
            Some(_) => {}
            None => panic!("it is not replaced"),
        }
    }
    let line = line(&sandbox);
    assert!(line.contains("--log-level\0debug\0"), "{line:?}");
    drop(sandbox.stop().await);
    place.assert_clean();
}

#[tokio::test]
async fn katas_default_arguments_are_translated() {
    let args = [
        "--thread-pool-size=1",
        "--announce-submounts",
        "--hybrid-mode",
        "--log-level=debug",
    ];
    let program = nydusd_or_skip!().with_args(args);
    let place = Place::new();
    let sandbox = Sandbox::start(place.config("s1", program)).await.unwrap();
    let pid = sandbox.status().borrow().pid;
    let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
    assert!(
        line.contains("--log-level\0debug") && !line.contains("hybrid"),
        "{line:?}"
    );
    let mut events = sandbox.events();
    let mut changed = Vec::new();
    while let Some(EventItem::Record(record)) = events.try_next() {
        if let SandboxEvent::Degraded { what, .. } = record.event {
            changed.push(what);
        }
    }
    assert_eq!(
        changed,
        [
            "--thread-pool-size",
            "--announce-submounts",
            "--hybrid-mode",
            "--log-level"
        ]
    );
    drop(sandbox.stop().await);
    place.assert_clean();
}

#[tokio::test]
async fn an_argument_it_does_not_have_is_refused_before_anything_runs() {
    let program = nydusd_or_skip!().with_args(["--backend-source", "x"]);
    let place = Place::new();
    for _ in 0..2 {
        let error = Sandbox::start(place.config("s1", program.clone()))
            .await
            .unwrap_err();
        match *error.cause {
            StartCause::Argument(ArgumentError::Unknown { ref argument, .. }) => {
                assert_eq!(argument, "--backend-source");
            }
            ref other => panic!("{other:?}"),
        }
        assert!(!place.path("state").exists(), "nothing was made");
    }
    place.assert_clean();
}

#[tokio::test]
async fn one_without_virtiofs_is_told_so() {
    let program = Program::stock("/bin/cat").unwrap().with_args(["--id", "x"]);
    let place = Place::new();
    let error = Sandbox::start(place.config("s1", program)).await.unwrap_err();
    assert!(
        matches!(
            *error.cause,
            StartCause::Preflight(PreflightError::NoVirtiofs { .. })
        ),
        "{error:?}"
    );
    place.assert_clean();
}

#[tokio::test]
async fn arguments_it_refuses_are_shown_in_its_own_words() {
    let program = nydusd_or_skip!().with_args(["--supervisor", "/run/s"]);
    let place = Place::new();
    let error = Sandbox::start(place.config("s1", program)).await.unwrap_err();
    assert!(
        matches!(*error.cause, StartCause::Exited(ExitCause::Code(2))),
        "{error:?}"
    );
    assert!(
        error.last_lines.iter().any(|l| l.contains("--id <id>")),
        "{:?}",
        error.last_lines
    );
    place.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_at_once() {
    let program = nydusd_or_skip!();
    let place = std::sync::Arc::new(Place::new());
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..20 {
        let (place, program) = (place.clone(), program.clone());
        tasks.spawn(async move {
            let config = place
                .config(&format!("s{n}"), program)
                .with_share(place.share())
                .unwrap();
            let sandbox = Sandbox::start(config).await.unwrap();
            sandbox.mount(place.request("/m")).await.unwrap();
            assert!(sandbox.stop().await.leftovers.is_empty());
        });
    }
    while let Some(result) = tasks.join_next().await {
        result.unwrap();
    }
    place.assert_clean();
}

/// How long nydusd itself takes from being spawned to its first answer, seen by a client that never sleeps.
fn own_readiness(place: &Place, nydusd: &PathBuf) -> Duration {
    let api = place.path("own.sock");
    let begun = Instant::now();
    let mut child = Command::new(nydusd)
        .args([
            "virtiofs",
            "--log-level",
            "info",
            "--rlimit-nofile",
            "0",
            "--sock",
        ])
        .arg(place.path("own-vhost.sock"))
        .arg("--apisock")
        .arg(&api)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut stream = loop {
        match UnixStream::connect(&api) {
            Ok(stream) => break stream,
            Err(_) => std::thread::yield_now(),
        }
    };
    stream.write_all(b"GET /api/v2/daemon HTTP/1.1\r\n\r\n").unwrap();
    assert!(stream.read(&mut [0; 1024]).unwrap() > 0);
    let ready = begun.elapsed();
    child.kill().unwrap();
    child.wait().unwrap();
    std::fs::remove_file(api).unwrap();
    std::fs::remove_file(place.path("own-vhost.sock")).unwrap();
    ready
}

/// Prints both times, taken in turns; what is asserted is only that the difference is no polling interval.
#[tokio::test]
async fn a_start_takes_as_long_as_nydusd_does() {
    let program = nydusd_or_skip!();
    let place = Place::new();
    let (mut own, mut starts) = (Vec::new(), Vec::new());
    for n in 0..40 {
        own.push(own_readiness(&place, &program.exe().to_owned()));
        let config = place.config(&format!("s{n}"), program.clone());
        let begun = Instant::now();
        let sandbox = Sandbox::start(config).await.unwrap();
        starts.push(begun.elapsed());
        drop(sandbox.stop().await);
    }
    for (what, times) in [("nydusd's own readiness", &mut own), ("start", &mut starts)] {
        times.sort_unstable();
        println!(
            "{what}: fastest {:?}, median {:?}, slowest {:?}",
            times[0], times[20], times[39]
        );
    }
    assert!(
        starts[20] < own[20] + Duration::from_millis(50),
        "{own:?} {starts:?}"
    );
    place.assert_clean();
}
