//! After a supervisor was killed: `adopt` and `sweep`; after a daemon was: `--on-exit`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::Stdio;

use common::peer;
use common::sandboxes::{Sandboxes, kill, pid, runs, steady, text, until};
use rustix::process::Signal;
use serde_json::{Value, json};

/// A sandbox with a mount whose supervisor was killed.
fn abandoned(s: &Sandboxes, id: &str, daemon: Option<&PathBuf>) -> Value {
    let (bootstrap, config) = s.image();
    s.start(id, daemon.map(PathBuf::as_path));
    s.ok(&["mount", id, "c1", "--bootstrap", &bootstrap, "--config", &config]);
    let info = s.json(&["status", id]);
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
    let looked = s.json(&["sweep", "--dry-run"]);
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
fn on_exit_restart_puts_another_daemon_in_its_place_with_the_same_mounts() {
    let s = Sandboxes::new();
    let (bootstrap, config) = s.image();
    let args = s.start_args("s1", None);
    let mut args: Vec<&str> = args.iter().map(String::as_str).collect();
    args.extend(["--on-exit", "restart"]);
    s.json(&args);
    s.ok(&[
        "mount",
        "s1",
        "c1",
        "--bootstrap",
        &bootstrap,
        "--config",
        &config,
    ]);
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
