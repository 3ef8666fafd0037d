//! Sandboxes whose supervisor was killed: taken over, or swept away, and nothing of the user's touched.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "supervisor/everywhere.rs"]
mod everywhere;
#[path = "supervisor/killed.rs"]
mod killed;
#[path = "supervisor/mounts.rs"]
mod mounts;
#[path = "supervisor/stuck.rs"]
mod stuck;
mod supervisor;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use killed::{Scene, Supervised};
use mounts::own_mounts_or_skip;
use nydusbox::protocol::SandboxId;
use nydusbox::{
    AdoptError, Adoption, DirError, EventItem, ExitCause, GuestOutlook, MountOutcome, Program, Sandbox,
    SandboxEvent, StartCause, StateError, Status, StatusPhase, SweepVerdict, UnmountOutcome, adopt_all,
    sweep,
};
use rustix::process::Signal;

const FAKE: &str = env!("CARGO_BIN_EXE_fake-daemon");

fn programs() -> [Program; 2] {
    [Program::embedded(FAKE).unwrap(), Program::stock(FAKE).unwrap()]
}

fn s1() -> SandboxId {
    SandboxId::new("s1").unwrap()
}

async fn adopt(scene: &Scene) -> Result<Adoption, AdoptError> {
    Sandbox::adopt(scene.place.path("state"), &s1()).await
}

async fn adopted(scene: &Scene) -> Sandbox {
    match adopt(scene).await.unwrap() {
        Adoption::Running(sandbox) => sandbox,
        Adoption::CleanedUp { .. } => panic!("the daemon was alive"),
    }
}

#[tokio::test]
async fn a_live_daemon_is_taken_over_with_its_mounts_and_binds() {
    own_mounts_or_skip!();
    for program in programs() {
        let scene = Scene::new();
        Supervised::after(&scene.place, &program, &["start", "mount"]).kill();
        let sandbox = adopted(&scene).await;
        let status = sandbox.status().borrow().clone();
        assert_eq!(status.phase, StatusPhase::Serving);
        let mounts: Vec<_> = status
            .mounts
            .iter()
            .map(|m| (m.at.as_str(), m.confirmed))
            .collect();
        assert_eq!(mounts, [("/containers", true), ("/rafs/c1/lowerdir", true)]);
        assert_eq!(scene.binds().len(), 1);
        match sandbox.events().next().await {
            Some(EventItem::Record(record)) => {
                assert_eq!(record.event, SandboxEvent::Adopted { pid: status.pid });
            }
            other => panic!("{other:?}"),
        }
        // It behaves as one that was started here.
        let image = scene.request("c1");
        assert_eq!(
            sandbox.mount(image.clone()).await.unwrap(),
            MountOutcome::AlreadyMounted
        );
        assert_eq!(
            sandbox.mount(scene.request("c2")).await.unwrap(),
            MountOutcome::Mounted
        );
        sandbox.mount(scene.place.request("/m")).await.unwrap();
        assert_eq!(
            sandbox.unmount(image.at().clone()).await.unwrap(),
            UnmountOutcome::Unmounted
        );
        assert_eq!(scene.binds().len(), 1, "c2's");
        let outcome = sandbox.stop().await;
        assert!(
            outcome.leftovers.is_empty() && outcome.unmount_failures.is_empty(),
            "{outcome:?}"
        );
        scene.assert_clean();
    }
}

/// A second and a third supervisor, each killed: nothing is lost from one to the next.
#[tokio::test]
async fn it_can_be_taken_over_again_and_again() {
    own_mounts_or_skip!();
    let scene = Scene::new();
    let [program, _] = programs();
    Supervised::after(&scene.place, &program, &["start"]).kill();
    Supervised::after(&scene.place, &program, &["adopt", "mount"]).kill();
    let mut all = adopt_all(scene.place.path("state")).await.unwrap();
    let Some((id, Ok(Adoption::Running(sandbox)))) = all.pop() else {
        panic!("{all:?}")
    };
    assert_eq!(id, s1());
    assert_eq!(sandbox.status().borrow().mounts.len(), 2);
    assert!(sandbox.stop().await.leftovers.is_empty());
    scene.assert_clean();
}

#[tokio::test]
async fn a_dead_daemon_is_cleaned_up() {
    own_mounts_or_skip!();
    let scene = Scene::new();
    let [program, _] = programs();
    Supervised::after(&scene.place, &program, &["start", "mount"]).kill();
    scene.kill_daemon();
    match adopt(&scene).await.unwrap() {
        Adoption::CleanedUp { leftovers } => assert!(leftovers.is_empty(), "{leftovers:?}"),
        Adoption::Running(_) => panic!("the daemon was dead"),
    }
    scene.assert_clean();
}

/// Whether it is still about to end or has: the successor does not take it over.
#[tokio::test]
async fn a_daemon_that_was_to_end_with_its_supervisor_is_not_adopted() {
    own_mounts_or_skip!();
    for program in programs() {
        let scene = Scene::new();
        Supervised::after(&scene.place, &program, &["start-mortal", "mount"]).kill();
        match adopt(&scene).await.unwrap() {
            Adoption::CleanedUp { leftovers } => assert!(leftovers.is_empty(), "{leftovers:?}"),
            Adoption::Running(_) => panic!("it was to end"),
        }
        scene.wait_until_alone();
        scene.assert_clean();
    }
}

#[tokio::test]
async fn an_adopted_daemon_that_dies_is_noticed_with_its_last_lines() {
    own_mounts_or_skip!();
    let scene = Scene::new();
    Supervised::with_a(&scene.place, &programs()[0], "chatty", &["start"]).kill();
    let sandbox = adopted(&scene).await;
    scene.kill_daemon();
    let exit = sandbox.exited().await;
    assert_eq!(exit.cause, ExitCause::Unknown, "it is not our child");
    assert!(!exit.last_lines.is_empty());
    assert!(sandbox.stop().await.leftovers.is_empty());
    scene.assert_clean();
}

#[tokio::test]
async fn an_adopted_daemon_that_dies_is_replaced_if_the_sandbox_wants_that() {
    own_mounts_or_skip!();
    for program in programs() {
        let scene = Scene::new();
        Supervised::after(&scene.place, &program, &["start-replacing", "mount"]).kill();
        let sandbox = adopted(&scene).await;
        let mut events = sandbox.events();
        scene.kill_daemon();
        loop {
            match events.next().await {
                Some(EventItem::Record(record)) => match record.event {
                    SandboxEvent::Recovered { mounts, guest, .. } => {
                        assert_ne!(guest, GuestOutlook::MustMountAgain, "the slots are written down");
                        assert_eq!(mounts, 2);
                        break;
                    }
                    SandboxEvent::GaveUp { .. } => panic!("given up"),
                    _ => {}
                },
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(scene.binds().len(), 1);
        let image = scene.request("c1").at().clone();
        assert_eq!(sandbox.unmount(image).await.unwrap(), UnmountOutcome::Unmounted);
        assert!(sandbox.stop().await.leftovers.is_empty());
        scene.assert_clean();
    }
}

/// A sandbox that was adopted while its daemon did not answer.
async fn adopted_unheard(scene: &Scene) -> Sandbox {
    let [program, _] = programs();
    let supervised = Supervised::after(&scene.place, &program, &["start-hasty", "mount"]);
    // That the daemon has mounted it is written down when nobody waits for it any more.
    scene.wait_until_written(r#""slot":2"#);
    supervised.kill();
    scene.signal_daemon(Signal::STOP);
    let sandbox = adopted(scene).await;
    let mounts = sandbox.status().borrow().mounts.clone();
    assert_eq!(mounts.iter().map(|m| m.confirmed).collect::<Vec<_>>(), [false; 2]);
    sandbox
}

/// The places of all `mounted` events before another event, and no mount is lost.
async fn mounted_until(sandbox: &Sandbox, last: impl Fn(&SandboxEvent) -> bool) -> Vec<String> {
    let (mut events, mut mounted) = (sandbox.events(), Vec::new());
    loop {
        match events.next().await {
            Some(EventItem::Record(record)) if last(&record.event) => return mounted,
            Some(EventItem::Record(record)) => match record.event {
                SandboxEvent::Mounted { at } => mounted.push(at.to_string()),
                SandboxEvent::MountLost { at, .. } => panic!("{at} is lost"),
                _ => {}
            },
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn what_a_daemon_had_that_did_not_answer_is_its_successors() {
    own_mounts_or_skip!();
    let scene = Scene::new();
    let sandbox = adopted_unheard(&scene).await;
    scene.kill_daemon();
    let recovered = |event: &SandboxEvent| match event {
        SandboxEvent::Recovered { mounts, guest, .. } => {
            assert_ne!(*guest, GuestOutlook::MustMountAgain);
            assert_eq!(*mounts, 2);
            true
        }
        _ => false,
    };
    assert_eq!(mounted_until(&sandbox, recovered).await, Vec::<String>::new());
    assert_eq!(scene.binds().len(), 1);
    assert!(sandbox.status().borrow().mounts.iter().all(|m| m.confirmed));
    assert!(sandbox.stop().await.leftovers.is_empty());
    scene.assert_clean();
}

#[tokio::test]
async fn a_daemon_that_answers_after_it_was_adopted_is_asked_what_it_has() {
    own_mounts_or_skip!();
    let scene = Scene::new();
    let sandbox = adopted_unheard(&scene).await;
    scene.signal_daemon(Signal::CONT);
    let known = |status: &Status| status.mounts.iter().all(|m| m.confirmed);
    sandbox.status().wait_for(known).await.unwrap();
    // Each is told, once.
    let (told, other) = (["/containers", "/rafs/c1/lowerdir"], scene.request("c2"));
    sandbox.mount(other.clone()).await.unwrap();
    let is_other = |event: &SandboxEvent| matches!(event, SandboxEvent::Mounted { at } if at == other.at());
    assert_eq!(mounted_until(&sandbox, is_other).await, told);
    assert!(sandbox.stop().await.leftovers.is_empty());
    scene.assert_clean();
}

/// The daemon finishes it, though nobody waits for it any more.
#[tokio::test]
async fn a_mount_that_the_daemon_is_at_is_not_forgotten() {
    own_mounts_or_skip!();
    let scene = Scene::new();
    let [program, _] = programs();
    let supervised = Supervised::before(&scene.place, &program, "under-way", &["start"], "mount");
    scene.wait_until_written("/rafs/c1/lowerdir");
    supervised.kill();
    let sandbox = adopted(&scene).await;
    let mounts = sandbox.status().borrow().mounts.clone();
    let mounts: Vec<_> = mounts.iter().map(|m| (m.at.as_str(), m.confirmed)).collect();
    assert_eq!(mounts, [("/containers", true), ("/rafs/c1/lowerdir", false)]);
    assert!(sandbox.stop().await.leftovers.is_empty());
    scene.assert_clean();
}

/// It removes the name that it has bound its socket to when a VMM has connected, and not the one the VMM knows.
#[tokio::test]
async fn of_an_adopted_nydusd_that_had_been_replaced_a_vmm_is_seen() {
    own_mounts_or_skip!();
    for came_before in [false, true] {
        let scene = Scene::new();
        let [_, program] = programs();
        let supervised = Supervised::after(&scene.place, &program, &["start-replacing", "crash"]);
        scene.wait_until_written(r#""phase":"serving""#);
        supervised.kill();
        // As nydusd does.
        let connect = || fs::remove_file(scene.place.path("state/s1/vhost.new")).unwrap();
        if came_before {
            connect();
        }
        let sandbox = adopted(&scene).await;
        if !came_before {
            assert_eq!(sandbox.status().borrow().vmm_attached, Some(false));
            connect();
        }
        let seen = mounted_until(&sandbox, |event| *event == SandboxEvent::VmmConnected);
        tokio::time::timeout(Duration::from_secs(20), seen).await.unwrap();
        assert!(sandbox.stop().await.leftovers.is_empty());
        scene.assert_clean();
    }
}

/// The successor that was being started is found by its lock, and goes with all the rest.
#[tokio::test]
async fn a_sandbox_whose_supervisor_was_killed_in_a_recovery_is_cleaned_up() {
    own_mounts_or_skip!();
    let scene = Scene::new();
    let script = scene.place.path("script");
    fs::write(&script, "serve\nnever-binds").unwrap();
    let behaviour = format!("script:{}", script.display());
    let steps = ["start-replacing", "mount", "lose-daemon"];
    let supervised = Supervised::with_a(&scene.place, &programs()[1], &behaviour, &steps);
    // The supervisor and the daemon that does not answer.
    while scene.place.processes().len() < 2 {
        std::thread::yield_now();
    }
    supervised.kill();
    match adopt(&scene).await.unwrap() {
        Adoption::CleanedUp { leftovers } => assert!(leftovers.is_empty(), "{leftovers:?}"),
        Adoption::Running(_) => panic!("it lacks its mounts"),
    }
    scene.assert_clean();
}

/// Without anyone reading, a daemon that prints neither breaks off nor loses a line.
#[tokio::test]
async fn what_a_daemon_prints_while_nobody_supervises_it_is_kept() {
    own_mounts_or_skip!();
    let scene = Scene::new();
    Supervised::with_a(&scene.place, &programs()[0], "chatty", &["start"]).kill();
    for n in 0..100 {
        scene.ask_the_daemon(&format!("/line-{n}"));
    }
    let sandbox = adopted(&scene).await;
    scene.ask_the_daemon("/last-line");
    let log = scene.place.path("state/s1/daemon.log");
    scene.kill_daemon();
    let exit = sandbox.exited().await;
    assert!(
        exit.last_lines.last().unwrap().ends_with("/last-line"),
        "{exit:?}"
    );
    let text = fs::read_to_string(log).unwrap();
    for n in 0..100 {
        assert_eq!(text.matches(&format!("/line-{n}\n")).count(), 1, "line {n}");
    }
    assert!(sandbox.stop().await.leftovers.is_empty());
    scene.assert_clean();
}

#[tokio::test]
async fn what_is_in_use_or_missing_is_not_adopted() {
    own_mounts_or_skip!();
    let scene = Scene::new();
    assert!(matches!(adopt(&scene).await, Err(AdoptError::Missing { .. })));
    let [program, _] = programs();
    let living = Supervised::after(&scene.place, &program, &["start"]);
    assert!(matches!(
        adopt(&scene).await,
        Err(AdoptError::Dir(DirError::Held { .. }))
    ));
    assert!(adopt_all(scene.place.path("state")).await.unwrap().is_empty());
    let report = sweep(scene.place.path("state"), false).unwrap();
    assert!(matches!(
        report.sandboxes[0].verdict,
        SweepVerdict::InUse { supervisor: Some(_) }
    ));
    assert_eq!(scene.place.processes().len(), 2, "nothing was killed");
    living.kill();
    assert!(sweep(scene.place.path("state"), false).unwrap().is_clean());
    scene.assert_clean();
}

#[tokio::test]
async fn a_start_does_not_replace_a_daemon_that_lives_and_succeeds_one_that_is_dead() {
    own_mounts_or_skip!();
    let scene = Scene::new();
    let [program, _] = programs();
    Supervised::after(&scene.place, &program, &["start", "mount"]).kill();
    let again = || scene.place.config("s1", program.clone());
    let error = Sandbox::start(again()).await.unwrap_err();
    assert!(
        matches!(&*error.cause, StartCause::Dir(DirError::DaemonLives { .. })),
        "{error:?}"
    );
    assert_eq!(scene.binds().len(), 1);
    scene.kill_daemon();
    let sandbox = Sandbox::start(again()).await.unwrap();
    assert_eq!(scene.binds(), Vec::<String>::new(), "the predecessor's");
    assert!(sandbox.stop().await.leftovers.is_empty());
    scene.assert_clean();
}

#[tokio::test]
async fn a_state_of_a_newer_version_is_refused_and_stays() {
    own_mounts_or_skip!();
    let scene = Scene::new();
    let [program, _] = programs();
    Supervised::after(&scene.place, &program, &["start"]).kill();
    let path = scene.place.path("state/s1/state.json");
    let written = fs::read(&path).unwrap();
    fs::write(&path, br#"{"version":99}"#).unwrap();
    match adopt(&scene).await {
        Err(AdoptError::Dir(DirError::State {
            source: StateError::Newer { version: 99 },
            ..
        })) => {}
        other => panic!("{other:?}"),
    }
    let error = Sandbox::start(scene.place.config("s1", program.clone()))
        .await
        .unwrap_err();
    assert!(matches!(
        &*error.cause,
        StartCause::Dir(DirError::DaemonLives { .. })
    ));
    let report = sweep(scene.place.path("state"), false).unwrap();
    assert!(matches!(report.sandboxes[0].verdict, SweepVerdict::Kept { .. }));
    assert_eq!(fs::read(&path).unwrap(), br#"{"version":99}"#);
    assert_eq!(scene.place.processes().len(), 1, "the daemon goes on");
    fs::write(&path, written).unwrap();
    assert!(sweep(scene.place.path("state"), false).unwrap().is_clean());
    scene.assert_clean();
}

/// Nothing that is shown to people has what the document must have.
#[tokio::test]
async fn secrets_are_in_the_document_and_nowhere_else() {
    own_mounts_or_skip!();
    let scene = Scene::new();
    fs::write(scene.place.path("config"), r#"{"auth":"c2VjcmV0"}"#).unwrap();
    let [program, _] = programs();
    Supervised::after(&scene.place, &program, &["start", "mount"]).kill();
    let path = scene.place.path("state/s1/state.json");
    assert!(fs::read_to_string(&path).unwrap().contains("c2VjcmV0"));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
    let sandbox = adopted(&scene).await;
    let shown = serde_json::to_string(&*sandbox.status().borrow()).unwrap();
    assert!(!shown.contains("c2VjcmV0") && !format!("{sandbox:?}").contains("c2VjcmV0"));
    assert!(sandbox.stop().await.leftovers.is_empty());
    scene.assert_clean();
}

#[tokio::test]
async fn a_sweep_first_tells_and_then_does() {
    own_mounts_or_skip!();
    let scene = Scene::new();
    let [program, _] = programs();
    Supervised::after(&scene.place, &program, &["start", "mount"]).kill();
    let before = scene.listing();
    let told = sweep(scene.place.path("state"), true).unwrap();
    assert_eq!(scene.listing(), before, "a dry run changes nothing");
    assert!(!told.is_clean());
    let done = sweep(scene.place.path("state"), false).unwrap();
    assert!(done.is_clean(), "{done:?}");
    for report in [&told, &done] {
        let [swept] = &report.sandboxes[..] else {
            panic!("{report:?}")
        };
        assert_eq!(swept.verdict, SweepVerdict::Abandoned);
        assert_eq!((swept.processes.len(), swept.binds.len()), (1, 1));
    }
    scene.assert_clean();
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

fn write_private(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    set_mode(path, 0o600);
}

/// A copy has all that shows whose it is; what its document names is the original's.
#[tokio::test]
async fn a_copy_of_a_sandboxs_directory_is_not_taken_for_it() {
    own_mounts_or_skip!();
    let scene = Scene::new();
    let [program, _] = programs();
    Supervised::after(&scene.place, &program, &["start", "mount"]).kill();
    let copy = scene.place.path("state/s2");
    fs::create_dir(&copy).unwrap();
    for name in ["lock", "state.json", "daemon.lock"] {
        fs::copy(scene.place.path("state/s1").join(name), copy.join(name)).unwrap();
    }
    let adopted = Sandbox::adopt(scene.place.path("state"), &SandboxId::new("s2").unwrap()).await;
    assert!(
        matches!(adopted, Err(AdoptError::Dir(DirError::Foreign { .. }))),
        "{adopted:?}"
    );
    assert_eq!(scene.binds().len(), 1);
    let report = sweep(scene.place.path("state"), false).unwrap();
    assert_eq!(report.foreign, std::slice::from_ref(&copy));
    assert_eq!(fs::read_dir(&copy).unwrap().count(), 3);
    fs::remove_dir_all(&copy).unwrap();
    scene.assert_clean();
}

#[tokio::test]
async fn a_sweep_takes_remnants_and_leaves_what_is_foreign() {
    let scene = Scene::new();
    let state = scene.place.path("state");
    // Each as a crash of a start can leave it.
    for name in ["empty", "begun", "half", "cut"] {
        fs::create_dir(state.join(name)).unwrap();
        set_mode(&state.join(name), 0o700);
    }
    write_private(&state.join("begun/lock"), "");
    write_private(&state.join("half/lock"), "nydusbox sandbox\n4242\n");
    write_private(&state.join("half/state.json.new"), "{\"vers");
    // A machine that stopped before the content was on the disk.
    write_private(&state.join("cut/lock"), "");
    write_private(&state.join("cut/state.json"), "");
    write_private(&state.join("cut/daemon.log"), "log");
    for name in ["a-directory", "a-stranger-inside"] {
        fs::create_dir(state.join(name)).unwrap();
    }
    fs::write(state.join("a-directory/lock"), "").unwrap();
    fs::write(state.join("a-directory/api.sock"), "").unwrap();
    set_mode(&state.join("a-directory"), 0o750);
    write_private(&state.join("a-stranger-inside/lock"), "nydusbox sandbox\n4242\n");
    write_private(&state.join("a-stranger-inside/precious"), "x");
    fs::write(state.join("a-file"), "x").unwrap();
    fs::create_dir(scene.place.path("elsewhere")).unwrap();
    fs::write(scene.place.path("elsewhere/lock"), "x").unwrap();
    std::os::unix::fs::symlink(scene.place.path("elsewhere"), state.join("link")).unwrap();
    let report = sweep(&state, false).unwrap();
    let foreign = ["a-directory", "a-file", "link"].map(|name| state.join(name));
    assert_eq!(report.foreign, foreign);
    for swept in &report.sandboxes {
        match (swept.id.as_str(), &swept.verdict) {
            ("a-stranger-inside", SweepVerdict::Kept { reason }) => {
                assert!(reason.contains("a-stranger-inside/precious"), "{reason}");
            }
            (_, verdict) => assert_eq!(*verdict, SweepVerdict::Abandoned),
        }
        assert_eq!(swept.leftovers, Vec::<String>::new());
    }
    let mut left: Vec<_> = fs::read_dir(&state)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(left, ["a-directory", "a-file", "a-stranger-inside", "link"]);
    let mode = fs::metadata(state.join("a-directory"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o7777, 0o750);
    assert!(state.join("a-directory/api.sock").exists() && state.join("a-directory/lock").exists());
    assert!(state.join("a-stranger-inside/precious").exists());
    assert_eq!(fs::read(scene.place.path("elsewhere/lock")).unwrap(), b"x");
    assert!(sweep(scene.place.path("none"), false).unwrap().is_clean());
}

#[tokio::test]
async fn a_foreign_mount_on_the_bind_is_left_and_the_next_sweep_can_finish() {
    own_mounts_or_skip!();
    let scene = Scene::new();
    let [program, _] = programs();
    Supervised::after(&scene.place, &program, &["start", "mount"]).kill();
    let target = scene.place.path("share/c1/snapshotdir");
    fs::create_dir(scene.place.path("foreign")).unwrap();
    rustix::mount::mount_bind(scene.place.path("foreign"), &target).unwrap();
    let report = sweep(scene.place.path("state"), false).unwrap();
    assert!(!report.is_clean() && scene.place.path("state/s1/state.json").exists());
    assert_eq!(scene.binds().len(), 2);
    rustix::mount::unmount(&target, rustix::mount::UnmountFlags::empty()).unwrap();
    assert!(sweep(scene.place.path("state"), false).unwrap().is_clean());
    scene.assert_clean();
}
