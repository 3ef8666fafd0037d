//! File systems and supervisors that do not answer: nothing waits for them that need not.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::process::{Child, Stdio};
use std::time::Duration;

use common::dead_fs::DeadFs;
use common::sandboxes::{Sandboxes, kill, pid, text, until};
use common::told;
use rustix::process::Signal;
use serde_json::{Value, json};

/// Longer than anything takes here.
const LONG: Duration = Duration::from_secs(30);

fn begin(s: &Sandboxes, args: &[&str]) -> Child {
    let mut command = s.command(args);
    command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// What came of it, in time.
fn ended(mut child: Child, what: &str) -> (i32, String, String) {
    until(&format!("{what} ends"), || child.try_wait().unwrap().is_some());
    told(&child.wait_with_output().unwrap())
}

fn in_time(s: &Sandboxes, args: &[&str]) -> (i32, String, String) {
    ended(begin(s, args), &format!("{args:?}"))
}

/// Whether a process has ended but for threads that are not let go.
fn has_ended(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.is_ok_and(|stat| stat.rsplit(')').next().unwrap().trim_start().starts_with('Z'))
}

#[test]
fn a_cache_that_does_not_answer_keeps_no_sandbox_from_its_commands_nor_from_its_end() {
    let s = Sandboxes::new();
    let image = s.image();
    let Some(dead) = DeadFs::on(&s.dir.mkdir("away")) else {
        return;
    };
    let cache = s.dir.join("cache");
    let supervisor = pid(&s.start("s1", None), "supervisor");
    s.mount("s1", "c1", &image);
    // The directory that the supervisor knows goes away.
    let is_taken = dead.take_a_request();
    std::os::unix::fs::symlink(s.dir.join("away"), s.dir.join("link")).unwrap();
    std::fs::rename(&cache, s.dir.join("was")).unwrap();
    std::fs::rename(s.dir.join("link"), &cache).unwrap();
    // Something has changed.
    assert_eq!(in_time(&s, &["umount", "s1", "c2"]).0, 0);
    is_taken.recv_timeout(LONG).unwrap();

    let (code, out, _) = in_time(&s, &["status", "s1", "--json"]);
    let info: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &info["state"]), (0, &json!("serving")));
    assert_eq!(in_time(&s, &["stop", "s1"]).0, 0);
    until("the supervisor ends", || has_ended(supervisor));
    drop(dead);
    s.assert_nothing_left();
}

#[test]
fn a_start_whose_share_does_not_answer_ends_in_its_time_and_when_it_is_interrupted() {
    let s = Sandboxes::new();
    let Some(_dead) = DeadFs::on(&s.share()) else {
        return;
    };
    let share = text(&s.share());
    let (code, _, err) = in_time(&s, &["start", "s1", "--share", &share, "--timeout", "1"]);
    assert_eq!(code, 1, "{err}");
    assert!(
        err.contains(&format!("open the directory {share}: timed out")),
        "{err}"
    );
    assert!(err.contains("hint: its file system does not answer"), "{err}");
    s.assert_nothing_left();

    let start = begin(&s, &["start", "s1", "--share", &share, "--timeout", "600"]);
    until("the share is looked at", || {
        s.processes()
            .iter()
            .any(|pid| threads(*pid).contains("nydusbox-look"))
    });
    kill(start.id(), Signal::INT);
    let (code, _, err) = ended(start, "the start");
    assert_eq!((code, err.contains("hint:")), (130, false), "{err}");
    s.assert_nothing_left();
}

fn threads(pid: u32) -> String {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten();
    tasks
        .filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok())
        .collect()
}

#[test]
fn a_supervisor_killed_while_a_snapshot_does_not_answer_keeps_nothing_of_its_sandbox() {
    let s = Sandboxes::new();
    let (bootstrap, config) = s.image();
    let away = s.dir.mkdir("away");
    let Some(dead) = DeadFs::on(&away) else {
        return;
    };
    let is_taken = dead.take_a_request();
    let info = s.start("s1", None);
    let snapshot = text(&away.join("7"));
    let mount = [
        "mount",
        "s1",
        "c1",
        "--bootstrap",
        &bootstrap,
        "--config",
        &config,
        "--snapshotdir",
        &snapshot,
    ];
    let mount = begin(&s, &mount);
    is_taken.recv_timeout(LONG).unwrap();
    let supervisor = pid(&info, "supervisor");
    kill(supervisor, Signal::KILL);
    assert_ne!(ended(mount, "the mount").0, 0);
    until("the supervisor is killed", || has_ended(supervisor));
    let (mut code, mut err) = (0, String::new());
    until(&format!("it is adopted: {err}"), || {
        (code, _, err) = in_time(&s, &["adopt", "s1"]);
        code == 0
    });
    let adopted = s.json(&["status", "s1"]);
    assert_eq!(pid(&adopted, "daemon"), pid(&info, "daemon"));
    // It is not dead for as long as it is waited for.
    assert!(std::path::Path::new(&format!("/proc/{supervisor}")).exists());
    assert_eq!(in_time(&s, &["stop", "s1"]).0, 0);
    drop(dead);
    s.assert_nothing_left();
}

#[test]
fn a_supervisor_that_does_not_answer_is_named_and_keeps_no_command_waiting() {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    let s = Sandboxes::new();
    let supervisor = pid(&s.start("s1", None), "supervisor");
    let mut stream = UnixStream::connect(s.state_dir().join("s1/control.sock")).unwrap();
    stream
        .write_all(b"GET /v1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200 ") && answer.ends_with(r#"{"id":"s1"}"#),
        "{answer}"
    );
    s.start("s2", None);
    kill(supervisor, Signal::STOP);
    let commands: [&[&str]; 4] = [
        &["status", "s1", "--json"],
        &["status", "--json"],
        &["umount", "s1", "c1"],
        &["stop", "--all", "--json"],
    ];
    let [one, all, umount, stop] = commands.map(|args| begin(&s, args));
    let names_it = format!("the supervisor of sandbox s1 (process {supervisor}) does not answer");
    let (code, out, err) = ended(one, "the status");
    let info: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (code, &info["state"], &info["supervisor"]["pid"]),
        (1, &json!("unknown"), &json!(supervisor)),
        "{err}"
    );
    assert!(err.contains(&names_it), "{err}");
    let (code, out, _) = ended(all, "the status of all");
    assert_eq!(
        (
            code,
            serde_json::from_str::<Value>(&out).unwrap()[0]["state"].clone()
        ),
        (0, json!("unknown"))
    );
    let (code, _, err) = ended(umount, "the unmount");
    assert!(code == 1 && err.contains(&names_it), "{err}");
    let (code, out, err) = ended(stop, "the stop");
    let stopped: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (code, stopped.as_array().unwrap().len(), &stopped[0]["id"]),
        (1, 1, &json!("s2"))
    );
    assert!(err.contains(&names_it), "{err}");
    kill(supervisor, Signal::CONT);
    s.ok(&["stop", "s1"]);
    s.assert_nothing_left();
}

/// At whatever instant the stop comes.
#[test]
fn a_start_that_loses_to_a_stop_says_so() {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    let s = Sandboxes::new();
    let args = s.start_args("s1", None);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    for _ in 0..20 {
        let start = begin(&s, &args);
        let control = s.state_dir().join("s1/control.sock");
        let mut stream = None;
        until("the sandbox takes commands", || {
            stream = UnixStream::connect(&control).ok();
            stream.is_some()
        });
        let mut stream = stream.unwrap();
        stream
            .write_all(b"POST /v1/stop HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        let (code, _, err) = ended(start, "the start");
        match code {
            0 => {}
            5 => assert!(
                err.contains("sandbox s1 was stopped as soon as it served"),
                "{err}"
            ),
            _ => panic!("{code}: {err}"),
        }
        s.assert_nothing_left();
    }
}
