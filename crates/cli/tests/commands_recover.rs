//! After a supervisor was killed: `adopt` and `sweep`; after a daemon was: `--on-exit`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use common::sandboxes::{Sandboxes, kill, pid, runs, steady, text, until};
use common::{peer, told};
use nydusbox_testkit::guest::{FuseClient, GuestConfig, SimGuest};
use rustix::process::Signal;
use serde_json::{Value, json};

/// A sandbox with a mount whose supervisor was killed.
fn abandoned(s: &Sandboxes, id: &str, daemon: Option<&PathBuf>) -> Value {
    let image = s.image();
    s.start(id, daemon.map(PathBuf::as_path));
    s.mount(id, "c1", &image);
    abandon(s, id)
}

/// Kills a sandbox's supervisor; how the sandbox was. Its state is one document, without amendments.
fn abandon(s: &Sandboxes, id: &str) -> Value {
    let info = s.json(&["status", id]);
    let state = s.state_dir().join(id).join("state.json");
    until("the state is tidied", || {
        serde_json::from_slice::<Value>(&std::fs::read(&state).unwrap()).is_ok()
    });
    let supervisor = pid(&info, "supervisor");
    kill(supervisor, Signal::KILL);
    until("the supervisor is gone", || !runs(supervisor));
    info
}

#[test]
fn an_adopted_sandbox_is_as_it_was_and_takes_commands() {
    for daemon in [None, peer("nydusd")] {
        let s = Sandboxes::new();
        let before = abandoned(&s, "s1", daemon.as_ref());
        let adopted = s.json(&["adopt", "s1"]);
        assert_eq!(
            (&adopted["id"], &adopted["outcome"]),
            (&json!("s1"), &json!("adopted"))
        );
        let after = s.json(&["status", "s1"]);
        assert_eq!(steady(adopted["sandbox"].clone()), steady(after.clone()));
        for field in ["state", "daemon", "mounts", "sockets"] {
            assert_eq!(after[field], before[field], "{field}");
        }
        assert_ne!(after["supervisor"], before["supervisor"]);
        assert!(s.ok(&["events", "s1"]).contains("  adopted  "));
        assert_eq!(s.json(&["umount", "s1", "c1"])["outcome"], "unmounted");
        assert_eq!(s.json(&["stop", "s1"])["leftovers"], json!([]));
        s.assert_nothing_left();
    }
}

/// What it was told about health, its stop and its cgroup is what an adopting supervisor goes by.
#[test]
fn options_of_the_start_are_written_down_and_kept_by_adopt() {
    let s = Sandboxes::new();
    let args = s.start_args("s1", None);
    let mut args: Vec<&str> = args.iter().map(String::as_str).collect();
    args.extend(["--health-interval", "0", "--stop-grace", "7", "--cgroup-parent"]);
    // Not one: an event and a warning say that the daemon runs outside.
    let parent = text(&s.dir.mkdir("no-cgroup"));
    args.push(&parent);
    let (code, _, warned) = s.run(&args);
    assert!(code == 0 && warned.starts_with("warning: cgroup: "), "{warned}");
    assert_eq!(warned.lines().count(), 1, "{warned}");
    assert!(s.ok(&["events", "s1"]).contains("not in a cgroup v2 hierarchy"));
    assert_eq!(std::fs::read_dir(&parent).unwrap().count(), 0);
    let settings = || {
        let state = std::fs::read(s.state_dir().join("s1/state.json")).unwrap();
        serde_json::from_slice::<Value>(&state).unwrap()["settings"].clone()
    };
    let told = settings();
    assert_eq!(
        (&told["health_interval_ms"], &told["stop_grace_ms"]),
        (&json!(null), &json!(7000))
    );
    assert!(told.to_string().contains(&parent), "{told}");
    abandon(&s, "s1");
    let adopted = s.json(&["adopt", "s1"]);
    assert_eq!(settings(), told);
    assert_eq!(adopted["sandbox"]["health"]["api"]["state"], "unknown");
    s.ok(&["stop", "s1"]);
    s.assert_nothing_left();
}

fn start_replacing(s: &Sandboxes, daemon: Option<&Path>) {
    let args = s.start_args("s1", daemon);
    let mut args: Vec<&str> = args.iter().map(String::as_str).collect();
    args.extend(["--on-exit", "restart"]);
    s.json(&args);
}

/// The slots are written down, and so is the log level: a supervisor that has adopted the daemon gives the next one
/// what this one had. With our daemon and with a genuine nydusd.
#[test]
fn a_guest_of_an_adopted_daemon_reads_on_when_that_is_replaced() {
    for daemon in [None, peer("nydusd")] {
        let s = Sandboxes::new();
        let image = s.image();
        start_replacing(&s, daemon.as_deref());
        for container in ["c1", "c2", "c3"] {
            s.mount("s1", container, &image);
        }
        s.ok(&["umount", "s1", "c1"]);
        s.ok(&["log-level", "s1", "debug"]);
        let socket = s.state_dir().join("s1/vhost.sock");
        let mut guest = FuseClient::mount(&socket, GuestConfig::default()).unwrap();
        let known = ["c2", "c3"].map(|container| {
            let file = guest.resolve(format!("/rafs/{container}/lowerdir/file")).unwrap();
            assert!(guest.read_node(file.nodeid, 100_000).unwrap() == vec![7; 100_000]);
            file.nodeid
        });
        abandon(&s, "s1");
        let adopted = s.json(&["adopt", "s1"])["sandbox"].clone();
        kill(pid(&adopted, "daemon"), Signal::KILL);
        until("another daemon serves", || {
            let now = s.json(&["status", "s1"]);
            now["state"] == "serving" && now["daemon"]["pid"] != adopted["daemon"]["pid"]
        });
        let events = s.ok(&["events", "s1", "--json"]);
        assert!(
            events.contains(r#""guest":"images_if_vmm_reconnects""#),
            "{events}"
        );
        drop(guest);
        let connected = SimGuest::connect(&socket, GuestConfig::default()).unwrap();
        let mut guest = FuseClient::new(connected);
        for nodeid in known {
            assert!(guest.read_node(nodeid, 100_000).unwrap() == vec![7; 100_000]);
        }
        let successor = pid(&s.json(&["status", "s1"]), "daemon");
        let line = std::fs::read_to_string(format!("/proc/{successor}/cmdline")).unwrap();
        assert!(line.contains("\0debug\0"), "{line:?}");
        drop(guest);
        s.ok(&["stop", "s1"]);
        s.assert_nothing_left();
    }
}

/// Its state then has the old command and the new one, and the daemon has either. The new one is given to it again.
#[test]
fn a_remount_that_was_under_way_is_carried_out_or_as_if_it_had_not_been() {
    for daemon in [None, peer("nydusd")] {
        for refused in [false, true] {
            let s = Sandboxes::new();
            let (bootstrap, config) = s.image();
            s.start("s1", daemon.as_deref());
            s.mount("s1", "c1", &(bootstrap.clone(), config.clone()));
            abandon(&s, "s1");
            let state = s.state_dir().join("s1/state.json");
            let mut document: Value = serde_json::from_slice(&std::fs::read(&state).unwrap()).unwrap();
            let mounts = document["mounts"].as_array_mut().unwrap();
            let mount = mounts
                .iter_mut()
                .find(|m| m["at"] == "/rafs/c1/lowerdir")
                .unwrap();
            let mut command = mount["command"].clone();
            let other = s.dir.join("other.json");
            let mut changed: Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
            changed["cache"]["filecache"]["work_dir"] = json!(s.dir.mkdir("other"));
            std::fs::write(&other, changed.to_string()).unwrap();
            command["config"] = json!(changed.to_string());
            if refused {
                command["source"] = json!(s.dir.join("nowhere"));
            }
            mount["replacements"] = json!([command]);
            std::fs::write(&state, document.to_string()).unwrap();

            let adopted = s.json(&["adopt", "s1"]);
            assert_eq!(adopted["sandbox"]["mounts"][1]["confirmed"], true, "{adopted}");
            let holds = match refused {
                false => text(&other),
                true => config,
            };
            assert_eq!(
                s.mount("s1", "c1", &(bootstrap, holds))["outcome"],
                "already_mounted"
            );
            let state: Value = serde_json::from_slice(&std::fs::read(&state).unwrap()).unwrap();
            assert!(!state.to_string().contains("replacements"), "{state}");
            s.ok(&["stop", "s1"]);
            s.assert_nothing_left();
        }
    }
}

#[test]
fn of_an_abandoned_sandbox_what_its_state_knows_is_shown() {
    let s = Sandboxes::new();
    let info = abandoned(&s, "s1", None);
    let listed = s.ok(&["list"]);
    let row: Vec<&str> = listed.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(row, ["s1", "abandoned", "2", "-"], "the share and the image");
    let mut expected = info["mounts"].clone();
    for mount in expected.as_array_mut().unwrap() {
        mount["confirmed"] = json!(false);
    }
    assert_eq!(s.json(&["status"])[0]["mounts"], expected);
    assert_eq!(s.json(&["list"])[0]["mounts"], expected);
    s.json(&["adopt", "s1"]);
    assert_eq!(s.json(&["status", "s1"])["mounts"], info["mounts"]);
    s.json(&["stop", "s1"]);
    s.assert_nothing_left();
}

#[test]
fn of_a_dead_daemon_adopt_removes_what_is_left() {
    let s = Sandboxes::new();
    let info = abandoned(&s, "s1", None);
    let daemon = pid(&info, "daemon");
    kill(daemon, Signal::KILL);
    until("the daemon is gone", || !runs(daemon));
    assert_eq!(
        s.json(&["adopt", "s1"]),
        json!({"id": "s1", "outcome": "cleaned_up", "leftovers": []})
    );
    s.assert_nothing_left();
}

/// Something is in the way of what a supervisor needs.
#[test]
fn an_adopt_that_fails_leaves_the_sandbox_as_it_was() {
    let s = Sandboxes::new();
    let before = abandoned(&s, "s1", None);
    for name in ["control.sock", "supervisor.log"] {
        let path = s.state_dir().join("s1").join(name);
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        s.refused(&["adopt", "s1"], 1, &["prepare to supervise sandbox s1", name]);
        assert!(runs(pid(&before, "daemon")));
        std::fs::remove_dir(&path).unwrap();
    }
    let adopted = s.json(&["adopt", "s1"])["sandbox"].clone();
    for field in ["state", "daemon", "mounts", "sockets"] {
        assert_eq!(adopted[field], before[field], "{field}");
    }
    s.ok(&["stop", "s1"]);
    s.assert_nothing_left();
}

/// It is in memory, and a sandbox may live for months.
#[test]
fn a_supervisors_log_that_is_too_large_is_set_aside() {
    let s = Sandboxes::new();
    s.start("s1", None);
    abandon(&s, "s1");
    let log = s.state_dir().join("s1/supervisor.log");
    let file = std::fs::File::options().write(true).open(&log).unwrap();
    file.set_len(4 << 20).unwrap();
    s.json(&["adopt", "s1"]);
    let len = |path: &Path| std::fs::metadata(path).unwrap().len();
    assert!(len(&log.with_extension("log.old")) > 4 << 20 && len(&log) < 1 << 20);
    // Both are shown.
    let shown = s.ok(&["logs", "s1", "--supervisor"]);
    assert!(shown.len() > 4 << 20 && shown.contains("serving"));
    s.ok(&["stop", "s1"]);
    s.assert_nothing_left();
}

#[test]
fn only_what_is_abandoned_is_adopted() {
    let s = Sandboxes::new();
    s.refused(&["adopt", "s1"], 3, &["s1"]);
    s.refused(&["adopt"], 2, &["--all"]);
    let live = s.start("s2", None);
    s.refused(
        &["adopt", "s2"],
        5,
        &["in use by process", "hint: its supervisor lives"],
    );
    abandoned(&s, "s1", None);
    let adopted = s.json(&["adopt", "--all"]);
    assert_eq!(
        (adopted.as_array().unwrap().len(), &adopted[0]["id"]),
        (1, &json!("s1"))
    );
    assert_eq!(s.json(&["adopt", "--all"]), json!([]));
    assert_eq!(steady(s.json(&["status", "s2"])), steady(live));
}

#[test]
fn sweep_removes_what_is_abandoned_and_nothing_else() {
    let s = Sandboxes::new();
    let live = s.start("s2", None);
    let dead = abandoned(&s, "s1", None);
    std::fs::write(s.share().join("mine"), "the user's").unwrap();
    let (code, looked, err) = s.run(&["sweep", "--dry-run", "--json"]);
    assert!(
        code == 4 && err.contains("1 sandbox is abandoned"),
        "{code} {err}"
    );
    let looked: Value = serde_json::from_str(&looked).unwrap();
    assert_eq!(looked["sandboxes"][0]["verdict"], "abandoned");
    assert_eq!(looked["sandboxes"][0]["processes"], json!([pid(&dead, "daemon")]));
    assert!(runs(pid(&dead, "daemon")) && s.state_dir().join("s1").exists());
    let swept = s.json(&["sweep"]);
    assert_eq!(swept["sandboxes"][0]["leftovers"], json!([]));
    assert!(!runs(pid(&dead, "daemon")) && !s.state_dir().join("s1").exists());
    assert_eq!(steady(s.json(&["status"])), json!([steady(live)]));
    assert_eq!(
        std::fs::read_to_string(s.share().join("mine")).unwrap(),
        "the user's"
    );
    s.ok(&["sweep", "--dry-run"]);
    // What is not a sandbox is not ours to remove.
    let foreign = s.state_dir().join("a file");
    std::fs::write(&foreign, "").unwrap();
    let (code, out, err) = s.run(&["sweep"]);
    assert_eq!(code, 1, "{out} {err}");
    assert!(
        out.contains(&format!("{}: no sandbox, left alone", text(&foreign))),
        "{out}"
    );
    assert!(foreign.exists());
    assert_eq!(s.run(&["sweep", "--dry-run"]).0, 1);
}

/// While the daemon is asked what it has mounted, which this one does not answer; and at any other moment.
#[test]
fn an_adopt_that_is_interrupted_leaves_the_daemon_alive() {
    let s = Sandboxes::new();
    let daemon = pid(&abandoned(&s, "s1", None), "daemon");
    let adopt = || {
        let mut command = s.command(&["adopt", "s1"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    kill(daemon, Signal::STOP);
    let child = adopt();
    let lock = s.state_dir().join("s1/lock");
    // The supervisor that adopts has written itself down.
    let owner = || nydusbox::lock_owner(&std::fs::read_to_string(&lock).unwrap()).is_some_and(runs);
    until("it is being adopted", owner);
    // Nobody who asks waits for the daemon, too.
    assert_eq!(s.json(&["list"])[0]["state"], "busy");
    s.refused(&["stop", "s1"], 5, &["is in use by process", "takes no commands"]);
    kill(child.id(), Signal::INT);
    let (code, _, err) = told(&child.wait_with_output().unwrap());
    assert!(code == 130 && err.contains("it is as it was"), "{code} {err}");
    kill(daemon, Signal::CONT);
    for n in 0..30 {
        let child = adopt();
        for _ in 0..n * 50 {
            std::thread::yield_now();
        }
        kill(child.id(), Signal::INT);
        let (code, _, err) = told(&child.wait_with_output().unwrap());
        assert!(runs(daemon), "{code} {err}");
        // Either it was too early, or too late.
        if s.json(&["list"])[0]["state"] == "serving" {
            abandon(&s, "s1");
        }
    }
    assert_eq!(s.json(&["adopt", "s1"])["outcome"], "adopted");
    s.ok(&["stop", "s1"]);
    s.assert_nothing_left();
}

#[test]
fn on_exit_stop_ends_the_sandbox_and_tells_followers_why() {
    let s = Sandboxes::new();
    let args = s.start_args("s1", None);
    let mut args: Vec<&str> = args.iter().map(String::as_str).collect();
    args.extend(["--on-exit", "stop"]);
    let info = s.json(&args);
    let mut command = s.command(&["events", "s1", "--follow", "--json"]);
    let mut follow = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(follow.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().contains("started"));
    kill(pid(&info, "daemon"), Signal::KILL);
    let out: String = lines.map(Result::unwrap).collect();
    assert!(follow.wait().unwrap().success());
    assert!(
        out.contains(r#""event":"exited""#) && out.contains(r#""event":"stopped""#),
        "{out}"
    );
    s.assert_nothing_left();
}

#[test]
fn on_exit_stop_is_kept_by_adopt() {
    let s = Sandboxes::new();
    let args = s.start_args("s1", None);
    let mut args: Vec<&str> = args.iter().map(String::as_str).collect();
    args.extend(["--on-exit", "stop"]);
    s.json(&args);
    let daemon = pid(&abandon(&s, "s1"), "daemon");
    s.json(&["adopt", "s1"]);
    kill(daemon, Signal::KILL);
    s.assert_nothing_left();
}

#[test]
fn on_exit_restart_puts_another_daemon_in_its_place_with_the_same_mounts() {
    let s = Sandboxes::new();
    let image = s.image();
    start_replacing(&s, None);
    s.mount("s1", "c1", &image);
    let before = s.json(&["status", "s1"]);
    kill(pid(&before, "daemon"), Signal::KILL);
    until("another daemon serves", || {
        let now = s.json(&["status", "s1"]);
        now["state"] == "serving" && now["daemon"]["pid"] != before["daemon"]["pid"]
    });
    assert_eq!(s.json(&["status", "s1"])["mounts"], before["mounts"]);
    let events = s.ok(&["events", "s1"]);
    assert!(
        events.contains("  recovering  ") && events.contains("  recovered  "),
        "{events}"
    );
    s.ok(&["stop", "s1"]);
    s.assert_nothing_left();
}

/// A guest has written where a directory was made for it.
#[test]
fn what_a_sweep_leaves_is_not_called_removed() {
    let s = Sandboxes::new();
    let (bootstrap, config) = s.image();
    let snapshot = s.dir.mkdir("snapshot");
    for dir in ["fs", "work"] {
        std::fs::create_dir(snapshot.join(dir)).unwrap();
    }
    s.start("s1", None);
    let mount = [
        "mount",
        "s1",
        "c1",
        "--bootstrap",
        &bootstrap,
        "--config",
        &config,
    ];
    s.ok(&[&mount[..], &["--snapshotdir", &text(&snapshot)]].concat());
    std::fs::write(s.share().join("c1/rootfs/mine"), "the guest's").unwrap();
    abandon(&s, "s1");
    let (code, out, err) = s.run(&["sweep"]);
    assert_eq!(code, 1, "{out} {err}");
    assert!(out.starts_with("sandbox s1: not removed whole\n"), "{out}");
    assert!(out.contains("  left: ") && out.contains("c1/rootfs"), "{out}");
}
