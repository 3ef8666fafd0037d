//! The commands when something is wrong: exit codes, sentences with hints, and nothing left behind.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Stdio};

use common::sandboxes::{Sandboxes, kill, pid, runs, steady, text, until};
use common::told;
use rustix::process::Signal;

const FAILED: i32 = 1;
const USAGE: i32 = 2;
const NO_SANDBOX: i32 = 3;
const ABANDONED: i32 = 4;
const TAKEN: i32 = 5;
const INTERRUPTED: i32 = 130;

/// A daemon program written by the test.
fn script(s: &Sandboxes, text: &str) -> PathBuf {
    let path = s.dir.join("daemon.sh");
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// A start that never comes to an end: its daemon waits for a writer that does not come.
fn endless_start(s: &Sandboxes) -> Child {
    let fifo = s.dir.join("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RWXU).unwrap();
    let daemon = script(s, &format!("read line < {}", fifo.display()));
    let args = s.start_args("s1", Some(&daemon));
    let mut command = s.command(&args.iter().map(String::as_str).collect::<Vec<_>>());
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The start, its supervisor, the daemon.
    until("the daemon runs", || s.processes().len() == 3);
    child
}

#[test]
fn ids_that_are_no_ids_are_refused_by_every_command() {
    let s = Sandboxes::new();
    for id in ["", ".", "..", "a/b", "-x", "a b", "ä", &"x".repeat(129)] {
        for args in [
            vec!["start", "--share", "/tmp", "--", id],
            vec!["mount", "--bootstrap", "/b", "--config", "/c", "--", id, "c1"],
            vec!["mount", "--bootstrap", "/b", "--config", "/c", "--", "s1", id],
            vec!["umount", "--", id, "c1"],
            vec!["umount", "--", "s1", id],
            vec!["status", "--", id],
            vec!["remount", "--bootstrap", "/b", "--config", "/c", "--", id, "c1"],
            vec!["events", "--", id],
            vec!["logs", "--", id],
            vec!["log-level", "--", id, "info"],
            vec!["metrics", "--", id],
            vec!["emit", "--", id, "qemu"],
            vec!["stop", "--", id],
        ] {
            let (code, out, err) = s.run(&args);
            assert_eq!(code, USAGE, "{args:?}: {out} {err}");
        }
    }
    s.assert_nothing_left();
}

#[test]
fn a_sandbox_that_is_not_there_has_an_exit_code_of_its_own() {
    let s = Sandboxes::new();
    let config = s.dir.join("config");
    std::fs::write(&config, "{}").unwrap();
    for args in [
        vec!["status", "s1"],
        vec!["status", "s1", "--watch"],
        vec!["events", "s1"],
        vec!["logs", "s1"],
        vec!["log-level", "s1", "info"],
        vec!["metrics", "s1"],
        vec!["emit", "s1", "qemu"],
        vec!["umount", "s1", "c1"],
        vec![
            "mount",
            "s1",
            "c1",
            "--bootstrap",
            "/b",
            "--config",
            config.to_str().unwrap(),
        ],
        vec!["stop", "s1"],
    ] {
        s.refused(
            &args,
            NO_SANDBOX,
            &["there is no sandbox s1", "hint: `nydusbox list`"],
        );
    }
    s.start("s1", None);
    s.ok(&["stop", "s1"]);
    s.refused(&["stop", "s1"], NO_SANDBOX, &["s1"]);
    assert_eq!(s.json(&["status"]), serde_json::json!([]));
}

#[test]
fn a_start_that_fails_says_why_and_leaves_nothing() {
    let s = Sandboxes::new();
    let dies = text(&script(&s, "echo first; echo the reason >&2; exit 3"));
    let share = text(&s.share());
    s.refused(
        &["start", "s1", "--share", "/no/such/dir"],
        FAILED,
        &["/no/such/dir", "No such file"],
    );
    s.refused(
        &["start", "s1", "--share", &dies],
        FAILED,
        &["daemon.sh", "Not a directory"],
    );
    s.refused(&["start", "s1"], USAGE, &["--share"]);
    s.refused(
        &["start", "s1", "--share", &share, "--daemon", "/no/such/nydusd"],
        FAILED,
        &["/no/such/nydusd", "No such file"],
    );
    s.refused(
        &["start", "s1", "--share", &share, "--daemon", &share],
        FAILED,
        &["not a regular file"],
    );
    s.refused(
        &["start", "s1", "--share", &share, "--daemon", &dies],
        FAILED,
        &[
            "exited with status 3",
            "hint: the daemon said last:\n  first\n  the reason",
        ],
    );
    s.refused(
        &[
            "start",
            "s1",
            "--share",
            &share,
            "--extra-arg",
            "--no-such-option",
        ],
        FAILED,
        &["pass --no-such-option to the daemon"],
    );
    s.assert_nothing_left();
}

#[test]
fn a_state_directory_that_cannot_be_used_is_named() {
    let s = Sandboxes::new();
    let share = text(&s.share());
    let file = s.dir.join("file");
    std::fs::write(&file, "").unwrap();
    let below = text(&file.join("state"));
    s.refused(
        &["--state-dir", &below, "start", "s1", "--share", &share],
        FAILED,
        &[&below, "Not a directory"],
    );
    s.refused(
        &["--state-dir", "/proc/none", "start", "s1", "--share", &share],
        FAILED,
        &["/proc/none"],
    );
    let long = s.dir.join(&"x".repeat(100));
    s.refused(
        &["--state-dir", &text(&long), "start", "s1", "--share", &share],
        FAILED,
        &["bytes", "107"],
    );
    assert!(!long.exists());
}

#[test]
fn a_second_start_is_refused_and_the_first_is_not_disturbed() {
    let s = Sandboxes::new();
    let first = s.start("s1", None);
    let share = text(&s.share());
    let supervisor = pid(&first, "supervisor").to_string();
    s.refused(
        &["start", "s1", "--share", &share],
        TAKEN,
        &["in use by process", &supervisor, "hint: `nydusbox status s1`"],
    );
    assert_eq!(steady(s.json(&["status", "s1"])), steady(first));
}

#[test]
fn while_a_start_is_under_way_the_sandbox_is_busy() {
    let s = Sandboxes::new();
    let mut child = endless_start(&s);
    let share = text(&s.share());
    s.refused(&["start", "s1", "--share", &share], TAKEN, &["in use by process"]);
    s.refused(
        &["umount", "s1", "c1"],
        TAKEN,
        &["takes no commands", "hint: it is starting"],
    );
    let (code, out, err) = s.run(&["status", "s1", "--json"]);
    assert_eq!((code, out.contains("\"busy\"")), (TAKEN, true), "{out} {err}");
    assert_eq!(s.json(&["list"])[0]["state"], "busy");
    child.kill().unwrap();
    child.wait().unwrap();
}

/// The signal reaches `start` alone: its supervisor is in a session of its own by then.
#[test]
fn a_start_that_is_interrupted_leaves_nothing() {
    for signal in [Signal::INT, Signal::TERM] {
        let s = Sandboxes::new();
        let child = endless_start(&s);
        kill(child.id(), signal);
        let (code, out, err) = told(&child.wait_with_output().unwrap());
        assert_eq!((code, out.as_str()), (INTERRUPTED, ""), "{err}");
        assert!(err.contains("interrupted"), "{err}");
        // Already when the command has ended.
        assert!(s.processes().is_empty());
        s.assert_nothing_left();
    }
}

#[test]
fn a_start_that_is_killed_leaves_nothing() {
    let s = Sandboxes::new();
    let mut child = endless_start(&s);
    child.kill().unwrap();
    child.wait().unwrap();
    s.assert_nothing_left();
}

#[test]
fn a_supervisor_that_is_killed_during_the_start_is_reported() {
    let s = Sandboxes::new();
    let child = endless_start(&s);
    let owner = std::fs::read_to_string(s.state_dir().join("s1/lock")).unwrap();
    kill(nydusbox::lock_owner(&owner).unwrap(), Signal::KILL);
    let (code, _, err) = told(&child.wait_with_output().unwrap());
    assert_eq!(code, FAILED);
    assert!(
        err.contains("ended (signal: 9") && err.contains("hint: `nydusbox sweep`"),
        "{err}"
    );
}

#[test]
fn a_killed_supervisor_is_named_by_every_command_with_what_can_be_done() {
    let s = Sandboxes::new();
    let info = s.start("s1", None);
    let owner = pid(&info, "supervisor");
    kill(owner, Signal::KILL);
    until("it is gone", || !runs(owner));
    let config = s.dir.join("config");
    std::fs::write(&config, "{}").unwrap();
    let words = [
        "supervisor of sandbox s1",
        "is gone",
        "`nydusbox adopt s1`",
        "`nydusbox sweep`",
    ];
    for args in [
        vec!["status", "s1"],
        vec!["status", "s1", "--watch"],
        vec!["events", "s1"],
        vec!["logs", "s1"],
        vec!["log-level", "s1", "info"],
        vec!["metrics", "s1"],
        vec!["emit", "s1", "qemu"],
        vec!["umount", "s1", "c1"],
        vec![
            "mount",
            "s1",
            "c1",
            "--bootstrap",
            "/b",
            "--config",
            config.to_str().unwrap(),
        ],
        vec!["stop", "s1"],
        vec!["stop", "--all"],
    ] {
        s.refused(&args, ABANDONED, &words);
    }
    let all = s.json(&["status"]);
    assert_eq!(
        (all[0]["state"].as_str(), pid(&all[0], "supervisor")),
        (Some("abandoned"), owner)
    );
    // Its daemon serves on, and its name is not given away.
    assert!(runs(pid(&info, "daemon")));
    let share = text(&s.share());
    s.refused(
        &["start", "s1", "--share", &share],
        TAKEN,
        &["still serves", "adopt"],
    );
}

#[test]
fn a_daemon_that_dies_shows_in_the_status_with_its_cause() {
    let s = Sandboxes::new();
    let info = s.start("s1", None);
    kill(pid(&info, "daemon"), Signal::KILL);
    until("it is noticed", || s.json(&["status", "s1"])["state"] == "exited");
    let info = s.json(&["status", "s1"]);
    assert_eq!(info["exit"]["reason"], "was ended by signal 9");
    until("the daemon does not answer", || {
        s.json(&["status", "s1"])["health"]["api"]["state"] != "ok"
    });
    let config = s.dir.join("config");
    std::fs::write(&config, "{}").unwrap();
    s.refused(
        &[
            "mount",
            "s1",
            "c1",
            "--bootstrap",
            "/b",
            "--config",
            config.to_str().unwrap(),
        ],
        FAILED,
        &["was ended by signal 9"],
    );
    assert_eq!(s.json(&["stop", "s1"])["step"], "already_gone");
    s.assert_nothing_left();
}

#[test]
fn a_mount_that_is_refused_says_what_the_daemon_says() {
    let s = Sandboxes::new();
    s.start("s1", None);
    let file = s.dir.join("file");
    std::fs::write(&file, "neither an image nor JSON").unwrap();
    let file = text(&file);
    let mount = |bootstrap: &str, config: &str, words: &[&str]| {
        s.refused(
            &["mount", "s1", "c1", "--bootstrap", bootstrap, "--config", config],
            FAILED,
            words,
        );
    };
    mount(
        "/b",
        "/no/such/config",
        &["read the configuration /no/such/config"],
    );
    mount(&file, &file, &["/rafs/c1/lowerdir", "configuration"]);
    s.refused(
        &["remount", "s1", "c1", "--bootstrap", &file, "--config", &file],
        FAILED,
        &["nothing is mounted"],
    );
    s.refused(
        &["emit", "s1", "kata-storage", "c1"],
        FAILED,
        &["no image for container c1", "hint: mount it"],
    );
    s.refused(&["mount", "s1", "c1", "--bootstrap", &file], USAGE, &["--config"]);
    s.refused(&["mount", "s1", "c1"], USAGE, &["--bootstrap"]);
    assert_eq!(s.json(&["status", "s1"])["mounts"].as_array().unwrap().len(), 1);
}

#[test]
fn supervise_is_not_begun_by_hand() {
    let s = Sandboxes::new();
    s.refused(
        &["supervise", "s1"],
        FAILED,
        &["hint: this command is begun by `nydusbox start s1`"],
    );
}

/// A planted secret: in the mount's configuration, and in the daemon's environment and arguments.
#[test]
fn secrets_are_in_no_output_and_no_file() {
    const SECRET: &str = "c2VjcmV0LXNlY3JldA";
    let s = Sandboxes::new();
    let args = s.start_args("s1", None);
    let started = s
        .command(&args.iter().map(String::as_str).collect::<Vec<_>>())
        .args(["--log-level", "trace"])
        .env("IMAGE_PULL_AUTH", SECRET)
        .output()
        .unwrap();
    assert_eq!(told(&started).0, 0, "{started:?}");
    let config = s.dir.join("config");
    let registry = serde_json::json!({
        "version": 2, "id": "x",
        "backend": {"type": "registry", "registry": {"host": "127.0.0.1:9", "repo": "r", "auth": SECRET}},
        "cache": {"type": "blobcache", "filecache": {"work_dir": s.dir.mkdir("cache")}},
        "rafs": {"mode": "direct"}
    });
    std::fs::write(&config, registry.to_string()).unwrap();
    let config = text(&config);
    let both = |(_, out, err): (i32, String, String)| format!("{out}{err}");
    let mount = ["mount", "s1", "c1", "--bootstrap", &config, "--config", &config];
    let mut seen = both(told(&started));
    seen += &both(s.run(&mount));
    seen += &both(s.run(&[&mount[..], &["--json"]].concat()));
    seen += &both(s.run(&["remount", "s1", "c1", "--bootstrap", &config, "--config", &config]));
    // An option that is broken, with the secret in what can be read of it.
    let option = format!("extraoption={SECRET}");
    seen += &both(s.run(&["mount", "s1", "c1", "--mount-option", &option]));
    seen += &both(s.run(&["events", "s1", "--json"]));
    seen += &both(s.run(&["logs", "s1"]));
    seen += &both(s.run(&["status", "s1"]));
    seen += &both(s.run(&["status", "--json"]));
    for pid in s.processes() {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
        seen += &String::from_utf8_lossy(&line);
    }
    for entry in std::fs::read_dir(s.state_dir().join("s1")).unwrap().flatten() {
        if entry.file_type().unwrap().is_file() {
            seen += &std::fs::read_to_string(entry.path()).unwrap();
        }
    }
    seen += &both(s.run(&["stop", "s1", "--json"]));
    assert!(seen.contains("/rafs/c1/lowerdir"), "{seen}");
    assert!(!seen.contains(SECRET), "{seen}");
}
