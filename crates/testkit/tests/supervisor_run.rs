//! Running sandboxes whose daemon misbehaves, and every way to end one.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod supervisor;

use std::time::Duration;

use nydusbox::protocol::MountPoint;
use nydusbox::{
    CallError, EventItem, Events, ExitCause, Leftover, MountError, MountOutcome, Program, Sandbox,
    SandboxConfig, StatusPhase, StopStep, UnmountError, UnmountOutcome,
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

async fn started(config: SandboxConfig) -> Sandbox {
    Sandbox::start(config).await.unwrap()
}

fn at(place: &str) -> MountPoint {
    MountPoint::new(place).unwrap()
}

/// Waits for the end of a sandbox whose handle is gone.
async fn closed(mut status: tokio::sync::watch::Receiver<nydusbox::Status>) -> StatusPhase {
    while status.changed().await.is_ok() {}
    status.borrow().phase.clone()
}

#[tokio::test]
async fn mounts_are_idempotent_and_say_what_they_did() {
    for program in [embedded("serve"), stock("serve")] {
        let place = Place::new();
        let config = place.config("s1", program).with_share(place.share()).unwrap();
        let sandbox = started(config).await;
        assert_eq!(
            sandbox.mount(place.request("/m")).await.unwrap(),
            MountOutcome::Mounted
        );
        assert_eq!(
            sandbox.mount(place.request("/m")).await.unwrap(),
            MountOutcome::AlreadyMounted
        );
        let share = place.request("/containers");
        assert_eq!(sandbox.mount(share).await.unwrap(), MountOutcome::AlreadyMounted);
        let inside = sandbox.mount(place.request("/m/n")).await;
        assert!(matches!(inside, Err(MountError::Overlaps { .. })), "{inside:?}");
        let mounts: Vec<_> = sandbox.status().borrow().mounts.clone();
        assert_eq!(
            mounts.iter().map(|m| m.at.as_str()).collect::<Vec<_>>(),
            ["/containers", "/m"]
        );
        assert!(mounts.iter().all(|m| m.confirmed));
        assert_eq!(
            sandbox.unmount(at("/m")).await.unwrap(),
            UnmountOutcome::Unmounted
        );
        assert_eq!(
            sandbox.unmount(at("/m")).await.unwrap(),
            UnmountOutcome::WasNotMounted
        );
        assert!(sandbox.stop().await.unmount_failures.is_empty());
        place.assert_clean();
    }
}

/// What a reader has been told, as the JSON of each event without number, time and sandbox.
async fn told(mut events: Events) -> Vec<serde_json::Value> {
    let mut told = Vec::new();
    while let Some(item) = events.next().await {
        let EventItem::Record(record) = item else {
            panic!("{item:?}")
        };
        assert_eq!((record.seq, record.sandbox.as_str()), (told.len() as u64, "s1"));
        told.push(serde_json::to_value(&record.event).unwrap());
    }
    told
}

#[tokio::test]
async fn a_reader_is_told_the_whole_life_in_order_whenever_it_comes() {
    let place = Place::new();
    let config = place
        .config("s1", embedded("serve"))
        .with_share(place.share())
        .unwrap();
    let sandbox = started(config).await;
    let early = tokio::spawn(told(sandbox.events()));
    let pid = sandbox.status().borrow().pid;
    sandbox.mount(place.request("/m")).await.unwrap();
    sandbox.mount(place.request("/m")).await.unwrap();
    sandbox.unmount(at("/m")).await.unwrap();
    sandbox.unmount(at("/m")).await.unwrap();
    let late = sandbox.events();
    drop(sandbox.stop().await);
    let expected = serde_json::json!([
        {"event": "started", "pid": pid, "program": FAKE},
        {"event": "mounted", "at": "/containers"},
        {"event": "mounted", "at": "/m"},
        {"event": "unmounted", "at": "/m"},
        {"event": "stopping"},
        {"event": "unmounted", "at": "/containers"},
        {"event": "stopped", "step": {"exited": {"status": {"signal": 15}}}, "leftovers": []},
    ]);
    assert_eq!(serde_json::Value::from(early.await.unwrap()), expected);
    assert_eq!(serde_json::Value::from(told(late).await), expected);
    place.assert_clean();
}

#[tokio::test]
async fn a_reader_is_told_how_the_daemon_died() {
    let place = Place::new();
    let sandbox = started(place.config("s1", embedded("die-in-mount"))).await;
    sandbox.mount(place.request("/m")).await.unwrap_err();
    let events = sandbox.events();
    drop(sandbox);
    let told = told(events).await;
    let exit = serde_json::json!({"cause": {"code": 5}, "last_lines": []});
    assert_eq!(
        told[1..3],
        [
            serde_json::json!({"event": "exited", "exit": exit}),
            serde_json::json!({"event": "stopping"})
        ]
    );
    assert_eq!(
        told[3],
        serde_json::json!({"event": "stopped", "step": {"already_gone": {"exit": exit}}, "leftovers": []})
    );
    assert_eq!(told.len(), 4);
}

#[tokio::test]
async fn three_hundred_mounts_use_every_slot_and_harm_nothing() {
    let place = Place::new();
    let config = place
        .config("s1", embedded("serve"))
        .with_share(place.share())
        .unwrap();
    let sandbox = started(config).await;
    for n in 0..300 {
        let result = sandbox.mount(place.request(&format!("/m/{n}"))).await;
        match result {
            Ok(MountOutcome::Mounted) => assert!(n < 254, "mount {n}"),
            Err(MountError::SlotsExhausted { .. }) => assert!(n >= 254, "mount {n}"),
            other => panic!("mount {n}: {other:?}"),
        }
    }
    assert_eq!(
        sandbox.unmount(at("/m/17")).await.unwrap(),
        UnmountOutcome::Unmounted
    );
    assert_eq!(
        sandbox.mount(place.request("/new")).await.unwrap(),
        MountOutcome::Mounted
    );
    let outcome = sandbox.stop().await;
    assert!(outcome.unmount_failures.is_empty(), "{outcome:?}");
    place.assert_clean();
}

#[tokio::test]
async fn a_daemon_that_dies_is_noticed_with_its_cause_and_later_calls_fail_with_it() {
    let place = Place::new();
    let sandbox = started(place.config("s1", embedded("die-after-mount"))).await;
    let exited = sandbox.exited();
    // The answer may win or lose against the exit; both are told as they are.
    match sandbox.mount(place.request("/m")).await {
        Ok(MountOutcome::Mounted) | Err(MountError::Exited { .. }) => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(exited.await.cause, ExitCause::Code(6));
    assert!(
        matches!(&sandbox.status().borrow().phase, StatusPhase::Exited(exit) if exit.cause == ExitCause::Code(6))
    );
    match sandbox.mount(place.request("/n")).await {
        Err(MountError::Exited { exit, .. }) => assert_eq!(exit.cause, ExitCause::Code(6)),
        other => panic!("{other:?}"),
    }
    assert!(matches!(
        sandbox.unmount(at("/n")).await,
        Err(UnmountError::Exited { .. })
    ));
    match sandbox.stop().await.step {
        StopStep::AlreadyGone { exit } => assert_eq!(exit.cause, ExitCause::Code(6)),
        other => panic!("{other:?}"),
    }
    place.assert_clean();
}

#[tokio::test]
async fn a_call_that_is_under_way_when_the_daemon_dies_fails_with_the_exit() {
    for program in [embedded("die-in-mount"), stock("die-in-mount")] {
        let place = Place::new();
        let sandbox = started(place.config("s1", program)).await;
        match sandbox.mount(place.request("/m")).await {
            Err(MountError::Exited { exit, .. }) => assert_eq!(exit.cause, ExitCause::Code(5)),
            other => panic!("{other:?}"),
        }
        drop(sandbox.stop().await);
        place.assert_clean();
    }
}

#[tokio::test]
async fn a_daemon_killed_by_a_signal_is_told_so() {
    let place = Place::new();
    let sandbox = started(place.config("s1", embedded("serve"))).await;
    let pid = i32::try_from(sandbox.status().borrow().pid).unwrap();
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(pid).unwrap(),
        rustix::process::Signal::ABORT,
    )
    .unwrap();
    assert_eq!(sandbox.exited().await.cause, ExitCause::Signal(6));
    drop(sandbox.stop().await);
    place.assert_clean();
}

#[tokio::test]
async fn a_wedged_call_costs_its_deadline_and_no_more() {
    let place = Place::new();
    let config = place
        .config("s1", embedded("wedge-mount"))
        .with_call_deadline(Duration::from_millis(200));
    let sandbox = started(config).await;
    match sandbox.mount(place.request("/m")).await {
        Err(MountError::Daemon {
            source: CallError::TimedOut { .. },
            ..
        }) => {}
        other => panic!("{other:?}"),
    }
    let status = sandbox.status();
    assert!(status.borrow().mounts.iter().all(|m| !m.confirmed), "in doubt");
    assert_eq!(
        sandbox.unmount(at("/m")).await.unwrap(),
        UnmountOutcome::WasNotMounted
    );
    assert!(sandbox.stop().await.leftovers.is_empty());
    place.assert_clean();
}

#[tokio::test]
async fn a_lost_answer_is_found_again() {
    let place = Place::new();
    let sandbox = started(place.config("s1", embedded("lose-mount"))).await;
    match sandbox.mount(place.request("/m")).await {
        Err(MountError::Daemon {
            source: CallError::Unreachable { .. },
            ..
        }) => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(
        sandbox.mount(place.request("/m")).await.unwrap(),
        MountOutcome::Mounted
    );
    drop(sandbox.stop().await);
    place.assert_clean();
}

#[tokio::test]
async fn a_stop_does_not_wait_for_a_wedged_call() {
    let place = Place::new();
    let sandbox = started(place.config("s1", embedded("wedge-mount"))).await;
    // Dropping the future leaves the call under way.
    let pending = tokio::time::timeout(Duration::from_millis(20), sandbox.mount(place.request("/m"))).await;
    assert!(pending.is_err());
    let outcome = tokio::time::timeout(Duration::from_secs(10), sandbox.stop())
        .await
        .unwrap();
    assert!(matches!(outcome.step, StopStep::Exited { .. }), "{outcome:?}");
    place.assert_clean();
}

#[tokio::test]
async fn output_without_end_or_line_feed_stops_nothing() {
    for behaviour in ["flood", "long-line"] {
        let place = Place::new();
        let sandbox = started(place.config("s1", embedded(behaviour))).await;
        for n in 0..50 {
            sandbox.mount(place.request(&format!("/m/{n}"))).await.unwrap();
        }
        let log = place.path("state/s1/daemon.log");
        assert!(
            std::fs::metadata(&log).unwrap().len() <= 5 << 20,
            "the log is bounded"
        );
        assert!(sandbox.stop().await.leftovers.is_empty());
        place.assert_clean();
    }
}

#[tokio::test]
async fn one_that_ignores_the_soft_signal_is_killed_after_the_grace() {
    let place = Place::new();
    let config = place
        .config("s1", embedded("ignore-sigterm"))
        .with_stop_grace(Duration::from_millis(100));
    let outcome = started(config).await.stop().await;
    assert_eq!(outcome.step, StopStep::Killed);
    place.assert_clean();
}

#[tokio::test]
async fn a_stock_daemon_without_a_frontend_is_not_asked() {
    let place = Place::new();
    // With the grace of a minute, asking would be noticed.
    let config = place
        .config("s1", stock("ignore-sigterm"))
        .with_stop_grace(Duration::from_secs(60));
    let sandbox = started(config).await;
    let outcome = tokio::time::timeout(Duration::from_secs(20), sandbox.stop())
        .await
        .unwrap();
    assert_eq!(outcome.step, StopStep::Killed);
    place.assert_clean();
}

#[tokio::test]
async fn a_dropped_handle_ends_everything() {
    for behaviour in ["serve", "ignore-sigterm"] {
        let place = Place::new();
        let sandbox = started(place.config("s1", embedded(behaviour))).await;
        sandbox.mount(place.request("/m")).await.unwrap();
        let (status, exited) = (sandbox.status(), sandbox.exited());
        drop(sandbox);
        assert_eq!(exited.await.cause, ExitCause::Signal(9));
        assert!(matches!(closed(status).await, StatusPhase::Stopped(Some(_))));
        place.assert_clean();
    }
}

#[tokio::test]
async fn a_dropped_stop_skips_to_killing() {
    let place = Place::new();
    let config = place
        .config("s1", embedded("ignore-sigterm"))
        .with_stop_grace(Duration::from_secs(60));
    let sandbox = started(config).await;
    let status = sandbox.status();
    let mut watching = sandbox.status();
    {
        let stop = sandbox.stop();
        tokio::pin!(stop);
        tokio::select! {
            outcome = &mut stop => panic!("it ignores the signal: {outcome:?}"),
            seen = watching.wait_for(|s| s.phase == StatusPhase::Stopping) => drop(seen.unwrap()),
        }
    }
    let phase = tokio::time::timeout(Duration::from_secs(20), closed(status))
        .await
        .unwrap();
    assert!(matches!(phase, StatusPhase::Stopped(Some(exit)) if exit.cause == ExitCause::Signal(9)));
    place.assert_clean();
}

#[test]
fn a_runtime_that_is_shut_down_takes_its_sandboxes_along() {
    let place = Place::new();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let sandbox = runtime.block_on(started(place.config("s1", embedded("serve"))));
    drop(runtime);
    place.assert_clean();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    assert_eq!(runtime.block_on(sandbox.stop()).step, StopStep::Interrupted);
}

#[tokio::test]
async fn what_is_not_ours_in_the_directory_is_left_and_named() {
    let place = Place::new();
    let sandbox = started(place.config("s1", embedded("serve"))).await;
    let stray = place.path("state/s1/stray");
    std::fs::write(&stray, "precious").unwrap();
    let outcome = sandbox.stop().await;
    assert!(
        matches!(&outcome.leftovers[..], [Leftover::Path { path, .. }] if *path == place.path("state/s1"))
    );
    assert!(stray.exists());
    std::fs::remove_dir_all(place.path("state/s1")).unwrap();
    place.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_sandboxes_at_once_do_not_know_of_each_other() {
    let place = std::sync::Arc::new(Place::new());
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..20 {
        let place = place.clone();
        tasks.spawn(async move {
            let program = if n % 2 == 0 {
                embedded("serve")
            } else {
                stock("serve")
            };
            let config = place
                .config(&format!("s{n}"), program)
                .with_share(place.share())
                .unwrap();
            let sandbox = started(config).await;
            for m in 0..10 {
                sandbox.mount(place.request(&format!("/m/{m}"))).await.unwrap();
            }
            let outcome = sandbox.stop().await;
            assert!(
                outcome.leftovers.is_empty() && outcome.unmount_failures.is_empty(),
                "{outcome:?}"
            );
        });
    }
    while let Some(result) = tasks.join_next().await {
        result.unwrap();
    }
    place.assert_clean();
}
