//! The supervisor is killed with SIGKILL at every system call it makes on a sandbox's way from start to stop; then
//! someone else adopts or sweeps, and nothing is left and nothing of the user's is gone.
//!
//! strace does the killing: it injects the signal when the process enters the n-th call of a kind, which is then
//! not carried out. So every state in which the world can be found between two effects is found once, without a
//! hook in the library. Skipped, saying so, where strace or mounting is not to be had; `NYDUSBOX_REQUIRE_PEERS=1`
//! makes that a failure.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nydusbox::protocol::SandboxId;
use nydusbox::{AdoptError, Adoption, DirError, Program, Sandbox, sweep};
use nydusbox_testkit::peers::{Peer, require};

use crate::killed::{self, Scene};
use crate::mounts::own_mounts_or_skip;

const FAKE: &str = env!("CARGO_BIN_EXE_fake-daemon");

/// The whole way, with a bind that is undone by an unmount and one that is undone by the stop.
const STEPS: [&str; 5] = ["start", "mount", "unmount", "mount", "stop"];

/// The same with a daemon that dies in between and is replaced.
const REPLACED: [&str; 4] = ["start-replacing", "mount", "crash", "stop"];

/// Calls with an effect outside the process, or that wait for one.
const EFFECTS: &[&str] = &[
    "mkdir",
    "mkdirat",
    "mknodat",
    "renameat",
    "unlinkat",
    "rmdir",
    "ftruncate",
    "flock",
    "fchmod",
    "bind",
    "listen",
    "connect",
    "clone",
    "clone3",
    "wait4",
    "kill",
    "pidfd_open",
    "pidfd_send_signal",
    "write",
    "writev",
    "recvfrom",
    "open_tree",
    "move_mount",
    "mount",
    "umount2",
    "openat2",
];
/// The rest of those that are not memory only.
const OTHERS: &[&str] = &[
    "read",
    "openat",
    "close",
    "fcntl",
    "statx",
    "epoll_wait",
    "poll",
    "socket",
];

fn strace() -> Option<()> {
    let found = Command::new("strace").arg("-V").stdout(Stdio::null()).status();
    if found.is_ok_and(|status| status.success()) {
        return Some(());
    }
    assert!(
        std::env::var_os("NYDUSBOX_REQUIRE_PEERS").is_none(),
        "strace is not installed"
    );
    println!("skipped: strace is not installed");
    None
}

/// Runs the steps and kills the process as it enters the n-th `call` (of any of its threads). False when there were
/// not so many. The daemon is let go when it is executed, and is not touched.
fn killed_at(scene: &Scene, program: &Program, steps: &[&str], call: &str, n: usize) -> bool {
    let steps = killed::command(&scene.place, program, "serve", steps);
    let status = Command::new("strace")
        .args(["-f", "-b", "execve", "-qq", "-o", "/dev/null"])
        .args(["-e", &format!("trace={call}")])
        .args(["-e", &format!("inject={call}:signal=KILL:when={n}")])
        .arg(steps.get_program())
        .args(steps.get_args())
        .envs(steps.get_envs().filter_map(|(name, value)| Some((name, value?))))
        .stdout(Stdio::null())
        .status()
        .unwrap();
    match (status.success(), status.signal(), status.code()) {
        (true, ..) => false,
        (_, Some(9), _) => true,
        _ => panic!("{call} {n}: {status:?}"),
    }
}

async fn adopt_and_stop(scene: &Scene) {
    loop {
        match Sandbox::adopt(scene.place.path("state"), &SandboxId::new("s1").unwrap()).await {
            Ok(Adoption::Running(sandbox)) => {
                assert!(
                    sandbox
                        .status()
                        .borrow()
                        .mounts
                        .iter()
                        .all(|mount| mount.confirmed)
                );
                let outcome = sandbox.stop().await;
                assert!(
                    outcome.leftovers.is_empty() && outcome.unmount_failures.is_empty(),
                    "{outcome:?}"
                );
            }
            Ok(Adoption::CleanedUp { leftovers }) => assert!(leftovers.is_empty(), "{leftovers:?}"),
            Err(AdoptError::Missing { .. }) => {}
            // A child between fork and exec still has every descriptor of its parent.
            Err(AdoptError::Dir(DirError::Held { .. })) => {
                std::thread::yield_now();
                continue;
            }
            Err(error) => panic!("{error:?}"),
        }
        return;
    }
}

fn sweep_away(scene: &Scene) {
    loop {
        let report = sweep(scene.place.path("state"), false).unwrap();
        assert!(report.is_clean(), "{report:?}");
        if std::fs::read_dir(scene.place.path("state")).unwrap().count() == 0 {
            return;
        }
        // As above: in use for a moment more.
        std::thread::yield_now();
    }
}

/// Kills at every one of these calls; adopts and sweeps in turns. Says how often it killed.
async fn kill_everywhere(scene: &Scene, program: &Program, steps: &[&str], calls: &[&str]) -> usize {
    let mut kills = 0;
    for call in calls {
        for n in 1.. {
            let killed = killed_at(scene, program, steps, call, n);
            match killed && kills % 2 == 0 {
                true => adopt_and_stop(scene).await,
                false => sweep_away(scene),
            }
            scene.assert_clean();
            if !killed {
                break;
            }
            kills += 1;
        }
    }
    println!("killed at {kills} points");
    kills
}

#[tokio::test]
async fn killed_at_every_effect_nothing_leaks() {
    own_mounts_or_skip!();
    let Some(()) = strace() else { return };
    for program in [Program::embedded(FAKE).unwrap(), Program::stock(FAKE).unwrap()] {
        let scene = Scene::new();
        let kills = kill_everywhere(&scene, &program, &STEPS, EFFECTS).await;
        assert!(kills >= 60, "only {kills} calls were met");
    }
}

#[tokio::test]
async fn killed_at_every_other_call_nothing_leaks() {
    own_mounts_or_skip!();
    let Some(()) = strace() else { return };
    let scene = Scene::new();
    let kills = kill_everywhere(&scene, &Program::embedded(FAKE).unwrap(), &STEPS, OTHERS).await;
    assert!(kills >= 60, "only {kills} calls were met");
}

#[tokio::test]
async fn killed_while_a_daemon_is_replaced_nothing_leaks() {
    own_mounts_or_skip!();
    let Some(()) = strace() else { return };
    let scene = Scene::new();
    let program = Program::embedded(FAKE).unwrap();
    let kills = kill_everywhere(&scene, &program, &REPLACED, MILESTONES).await;
    assert!(kills >= 40, "only {kills} calls were met");
}

/// The calls that change something for the daemon or on the host, with a genuine image.
const MILESTONES: &[&str] = &[
    "mkdir",
    "mknodat",
    "renameat",
    "clone",
    "connect",
    "writev",
    "move_mount",
    "umount2",
    "kill",
    "pidfd_send_signal",
    "unlinkat",
];

#[tokio::test]
async fn killed_with_a_genuine_nydusd_nothing_leaks() {
    own_mounts_or_skip!();
    let Some(()) = strace() else { return };
    let (Ok(nydusd), Ok(nydus_image)) = (require(Peer::Nydusd), require(Peer::NydusImage)) else {
        return;
    };
    let scene = with_an_image(&nydus_image);
    kill_everywhere(&scene, &Program::stock(nydusd).unwrap(), &STEPS, MILESTONES).await;
}

#[tokio::test]
async fn killed_with_our_daemon_nothing_leaks() {
    own_mounts_or_skip!();
    let Some(()) = strace() else { return };
    let ours = Path::new(FAKE).with_file_name("nydusbox");
    let Ok(nydus_image) = require(Peer::NydusImage) else {
        return;
    };
    if !ours.exists() {
        assert!(
            std::env::var_os("NYDUSBOX_REQUIRE_PEERS").is_none(),
            "build nydusbox-cli first"
        );
        println!("skipped: nydusbox is not built beside this test");
        return;
    }
    let scene = with_an_image(&nydus_image);
    kill_everywhere(&scene, &Program::embedded(ours).unwrap(), &STEPS, MILESTONES).await;
}

/// A scene whose bootstrap and configuration are those of an image.
fn with_an_image(nydus_image: &Path) -> Scene {
    let scene = Scene::new();
    let (source, blobs) = (scene.place.path("source"), scene.place.path("blobs"));
    std::fs::create_dir(&source).unwrap();
    std::fs::create_dir(&blobs).unwrap();
    std::fs::write(source.join("file"), vec![7; 100_000]).unwrap();
    std::fs::remove_file(scene.place.path("bootstrap")).unwrap();
    let output = Command::new(nydus_image)
        .args(["create", "--log-level", "error", "-B"])
        .arg(scene.place.path("bootstrap"))
        .arg("-D")
        .arg(&blobs)
        .arg(&source)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let config = format!(
        r#"{{"version":2,"backend":{{"type":"localfs","localfs":{{"dir":"{}"}}}},"cache":{{"type":"blobcache","filecache":{{"work_dir":"{}"}}}},"rafs":{{"mode":"direct"}}}}"#,
        blobs.display(),
        scene.place.path("cache").display()
    );
    std::fs::write(scene.place.path("config"), config).unwrap();
    scene
}
