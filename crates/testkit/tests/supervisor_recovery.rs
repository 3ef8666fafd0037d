//! What becomes of a sandbox whose daemon is killed: under each policy, with successors that misbehave, and when the
//! sandbox is stopped in the middle of it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod supervisor;

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use nydusbox::protocol::MountPoint;
use nydusbox::{
    EventItem, Events, ExitCause, GuestOutlook, MountError, MountOutcome, OnExit, Program, RestartPolicy,
    Sandbox, SandboxConfig, SandboxEvent, StatusPhase, StopStep, UnmountOutcome,
};
use supervisor::Place;

const FAKE: &str = env!("CARGO_BIN_EXE_fake-daemon");

fn embedded(behaviour: &str) -> Program {
    Program::embedded(FAKE)
        .unwrap()
        .with_env("FAKE_DAEMON", behaviour)
}

fn stock(behaviour: &str) -> Program {
    Program::stock(FAKE).unwrap().with_env("FAKE_DAEMON", behaviour)
}

/// A program whose daemons are these, one after the other; the last for all that follow.
fn script(place: &Place, name: &str, behaviours: &[&str]) -> Program {
    let file = place.path(name);
    std::fs::write(&file, behaviours.join("\n")).unwrap();
    embedded(&script_of(&file))
}

fn script_of(file: &std::path::Path) -> String {
    format!("script:{}", file.display())
}

fn restart() -> OnExit {
    let ms = Duration::from_millis;
    OnExit::Restart(RestartPolicy::default().with_delays(ms(1), ms(8)))
}

fn config(place: &Place, id: &str, program: Program) -> SandboxConfig {
    let config = place.config(id, program).with_share(place.share()).unwrap();
    config.with_on_exit(restart())
}

fn at(place: &str) -> MountPoint {
    MountPoint::new(place).unwrap()
}

fn kill(sandbox: &Sandbox) {
    let pid = i32::try_from(sandbox.status().borrow().pid).unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

/// Reads on to an event of interest, and says all that came before it.
async fn until(
    events: &mut Events,
    wanted: impl Fn(&SandboxEvent) -> bool,
) -> (Vec<SandboxEvent>, SandboxEvent) {
    let mut before = Vec::new();
    loop {
        let item = tokio::time::timeout(Duration::from_secs(60), events.next()).await;
        match item.unwrap_or_else(|_| panic!("after {before:?}")) {
            Some(EventItem::Record(record)) if wanted(&record.event) => return (before, record.event),
            Some(EventItem::Record(record)) => before.push(record.event),
            other => panic!("{other:?} after {before:?}"),
        }
    }
}

async fn recovered(events: &mut Events) -> Vec<SandboxEvent> {
    let (before, event) = until(events, |e| matches!(e, SandboxEvent::Recovered { .. })).await;
    [before, vec![event]].concat()
}

fn names(events: &[SandboxEvent]) -> Vec<String> {
    let name = |e: &SandboxEvent| {
        serde_json::to_value(e).unwrap()["event"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    events.iter().map(name).collect()
}

fn places(sandbox: &Sandbox) -> Vec<(String, bool)> {
    let status = sandbox.status().borrow().clone();
    status
        .mounts
        .iter()
        .map(|m| (m.at.to_string(), m.confirmed))
        .collect()
}

#[tokio::test]
async fn a_killed_daemon_is_replaced_and_has_its_mounts_again() {
    for program in [embedded("serve"), stock("serve")] {
        let place = Place::new();
        let sandbox = Sandbox::start(config(&place, "s1", program)).await.unwrap();
        for mount in ["/c", "/a", "/b"] {
            sandbox.mount(place.request(mount)).await.unwrap();
        }
        sandbox.unmount(at("/c")).await.unwrap();
        let (pid, mut events) = (sandbox.status().borrow().pid, sandbox.events());
        for round in 0..3 {
            kill(&sandbox);
            let told = recovered(&mut events).await;
            match &told[told.len() - 3..] {
                [
                    SandboxEvent::Exited { exit },
                    SandboxEvent::Recovering { attempt, .. },
                    SandboxEvent::Recovered {
                        pid: new,
                        mounts,
                        guest,
                    },
                ] => {
                    assert_eq!(
                        (exit.cause, *attempt, *mounts),
                        (ExitCause::Signal(9), round + 1, 3)
                    );
                    assert_ne!(*new, pid);
                    assert!(*guest != GuestOutlook::MustMountAgain, "{guest:?}");
                }
                other => panic!("{other:?}"),
            }
            let expected = ["/containers", "/a", "/b"].map(|p| (p.to_owned(), true));
            assert_eq!(places(&sandbox), expected);
            assert_eq!(sandbox.status().borrow().phase, StatusPhase::Serving);
            assert!(sandbox.vhost_socket().as_path().exists() && sandbox.api_socket().as_path().exists());
        }
        assert_eq!(
            sandbox.mount(place.request("/a")).await.unwrap(),
            MountOutcome::AlreadyMounted
        );
        for mount in ["/a", "/containers"] {
            assert_eq!(
                sandbox.unmount(at(mount)).await.unwrap(),
                UnmountOutcome::Unmounted
            );
        }
        let outcome = sandbox.stop().await;
        assert!(
            outcome.leftovers.is_empty() && outcome.unmount_failures.is_empty(),
            "{outcome:?}"
        );
        place.assert_clean();
    }
}

#[tokio::test]
async fn without_restart_the_exit_is_told_and_nothing_is_done() {
    for on_exit in [OnExit::Stop, OnExit::Report] {
        let place = Place::new();
        let config = place.config("s1", embedded("serve")).with_on_exit(on_exit);
        let sandbox = Sandbox::start(config).await.unwrap();
        let mut events = sandbox.events();
        kill(&sandbox);
        assert_eq!(sandbox.exited().await.cause, ExitCause::Signal(9));
        assert!(matches!(sandbox.status().borrow().phase, StatusPhase::Exited(_)));
        let outcome = sandbox.stop().await;
        assert!(
            matches!(outcome.step, StopStep::AlreadyGone { .. }),
            "{outcome:?}"
        );
        let (before, _) = until(&mut events, |e| matches!(e, SandboxEvent::Stopped { .. })).await;
        assert_eq!(names(&before), ["started", "exited", "stopping"]);
        place.assert_clean();
    }
}

#[tokio::test]
async fn a_daemon_that_dies_at_once_every_time_is_given_up() {
    let place = Place::new();
    let program = script(&place, "script", &["serve", "exit:3:2"]);
    let policy = RestartPolicy::default()
        .with_delays(Duration::from_millis(1), Duration::from_millis(2))
        .with_limit(NonZeroU32::new(4).unwrap(), Duration::from_secs(60));
    let config = config(&place, "s1", program).with_on_exit(OnExit::Restart(policy));
    let sandbox = Sandbox::start(config).await.unwrap();
    let (mut events, exited) = (sandbox.events(), sandbox.exited());
    kill(&sandbox);
    let (before, gave_up) = until(&mut events, |e| matches!(e, SandboxEvent::GaveUp { .. })).await;
    assert_eq!(
        names(&before[2..]),
        [
            "exited",
            "recovering",
            "recovery_failed",
            "recovering",
            "recovery_failed",
            "recovering",
            "recovery_failed"
        ]
    );
    match &before[4] {
        SandboxEvent::RecoveryFailed {
            reason, last_lines, ..
        } => {
            assert!(reason.contains("exited with status 3"), "{reason}");
            assert_eq!(last_lines, &["line 0", "line 1"]);
        }
        other => panic!("{other:?}"),
    }
    assert!(
        matches!(
            gave_up,
            SandboxEvent::GaveUp {
                exits: 4,
                within_ms: 60_000
            }
        ),
        "{gave_up:?}"
    );
    assert_eq!(exited.await.cause, ExitCause::Signal(9));
    let late = sandbox.mount(place.request("/m")).await;
    assert!(matches!(late, Err(MountError::Exited { .. })), "{late:?}");
    assert!(matches!(sandbox.stop().await.step, StopStep::AlreadyGone { .. }));
    place.assert_clean();
}

#[tokio::test]
async fn successors_that_fail_in_every_way_are_replaced_until_one_is_good() {
    let place = Place::new();
    let bad = [
        "die-in-mount",
        "die-after-mount",
        "wedge-mount",
        "lose-mount",
        "never-binds",
        "garbage",
    ];
    let behaviours = [&["serve"], &bad[..], &["serve"]].concat();
    let policy = RestartPolicy::default()
        .with_delays(Duration::from_millis(1), Duration::from_millis(2))
        .with_limit(NonZeroU32::new(20).unwrap(), Duration::from_secs(60));
    let config = config(&place, "s1", script(&place, "script", &behaviours))
        .with_on_exit(OnExit::Restart(policy))
        .with_start_deadline(Duration::from_secs(2))
        .with_call_deadline(Duration::from_secs(1));
    let sandbox = Sandbox::start(config).await.unwrap();
    sandbox.mount(place.request("/a")).await.unwrap();
    let mut events = sandbox.events();
    kill(&sandbox);
    let told = recovered(&mut events).await;
    let attempts = told
        .iter()
        .filter(|e| matches!(e, SandboxEvent::Recovering { .. }))
        .count();
    assert_eq!(attempts, bad.len() + 1, "{told:?}");
    let expected = ["/containers", "/a"].map(|p| (p.to_owned(), true));
    assert_eq!(places(&sandbox), expected);
    assert_eq!(
        sandbox.unmount(at("/a")).await.unwrap(),
        UnmountOutcome::Unmounted
    );
    assert!(sandbox.stop().await.leftovers.is_empty());
    place.assert_clean();
}

#[tokio::test]
async fn a_mount_that_cannot_be_made_again_is_told_and_the_sandbox_goes_on() {
    let place = Place::new();
    let program = script(&place, "script", &["serve", "refuse-mount"]);
    let sandbox = Sandbox::start(config(&place, "s1", program)).await.unwrap();
    let mut events = sandbox.events();
    kill(&sandbox);
    let told = recovered(&mut events).await;
    let lost =
        |e: &SandboxEvent| matches!(e, SandboxEvent::MountLost { at, .. } if *at == MountPoint::containers());
    assert!(told.iter().any(lost), "{told:?}");
    assert_eq!(places(&sandbox), []);
    drop(sandbox.stop().await);
    place.assert_clean();
}

#[tokio::test]
async fn requests_wait_for_the_successor_and_not_longer_than_their_time() {
    let place = Place::new();
    let fifo = place.path("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RWXU).unwrap();
    let late = format!("binds-late:{}", fifo.display());
    // One that binds its socket itself: only the start's deadline ends the wait for it.
    std::fs::write(place.path("script"), ["serve", &late].join("\n")).unwrap();
    let program = stock(&script_of(&place.path("script")));
    let config = config(&place, "s1", program).with_call_deadline(Duration::from_millis(300));
    let sandbox = Sandbox::start(config).await.unwrap();
    let (mut events, mut status) = (sandbox.events(), sandbox.status());
    kill(&sandbox);
    status
        .wait_for(|s| matches!(s.phase, StatusPhase::Recovering { attempt: 1 }))
        .await
        .unwrap();
    let overdue = sandbox.mount(place.request("/m")).await;
    assert!(
        matches!(overdue, Err(MountError::Recovering { .. })),
        "{overdue:?}"
    );
    let go = tokio::task::spawn_blocking(move || std::fs::File::options().write(true).open(fifo).unwrap());
    assert_eq!(
        sandbox.mount(place.request("/n")).await.unwrap(),
        MountOutcome::Mounted
    );
    go.await.unwrap();
    recovered(&mut events).await;
    assert_eq!(
        sandbox.unmount(at("/m")).await.unwrap(),
        UnmountOutcome::WasNotMounted
    );
    assert!(sandbox.stop().await.leftovers.is_empty());
    place.assert_clean();
}

/// In steps much finer than a recovery takes, stopped or dropped.
#[tokio::test]
async fn a_sandbox_can_be_stopped_at_any_instant_of_a_recovery() {
    let place = Place::new();
    let (mut cut, mut finished) = (0, 0);
    for program in [embedded as fn(&str) -> Program, stock] {
        for step in 0..40u64 {
            let sandbox = Sandbox::start(config(&place, "s1", program("serve")))
                .await
                .unwrap();
            for mount in ["/a", "/b"] {
                sandbox.mount(place.request(mount)).await.unwrap();
            }
            let (mut events, status) = (sandbox.events(), sandbox.status());
            kill(&sandbox);
            let limit = Duration::from_micros(step * 400);
            match tokio::time::timeout(limit, recovered(&mut events)).await {
                Err(_) => cut += 1,
                Ok(_) => finished += 1,
            }
            if step % 2 == 0 {
                assert!(sandbox.stop().await.leftovers.is_empty());
            } else {
                drop(sandbox);
                let mut status = status;
                while status.changed().await.is_ok() {}
                assert!(matches!(status.borrow().phase, StatusPhase::Stopped(_)));
            }
            place.assert_clean();
        }
    }
    println!("cut off {cut}, finished before {finished}");
    assert!(cut > 0);
}

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_sandboxes_recover_at_once_and_leave_nothing() {
    let place = Place::new();
    let mut files = 0;
    for round in 0..2 {
        let mut sandboxes = Vec::new();
        for n in 0..50 {
            let program = [embedded as fn(&str) -> Program, stock][n % 2]("serve");
            let sandbox = Sandbox::start(config(&place, &format!("s{n}"), program))
                .await
                .unwrap();
            sandbox.mount(place.request("/m")).await.unwrap();
            sandboxes.push(sandbox);
        }
        let begun = Instant::now();
        sandboxes.iter().for_each(kill);
        for sandbox in &sandboxes {
            recovered(&mut sandbox.events()).await;
        }
        println!("fifty recovered in {:?}", begun.elapsed());
        for sandbox in sandboxes {
            assert_eq!(
                sandbox.unmount(at("/m")).await.unwrap(),
                UnmountOutcome::Unmounted
            );
            assert!(sandbox.stop().await.leftovers.is_empty());
        }
        // The runtime's own descriptors exist from the first use on.
        if round == 0 {
            files = open_files();
        }
    }
    // Watches are closed on other threads.
    while open_files() > files {
        tokio::task::yield_now().await;
    }
    place.assert_clean();
}
