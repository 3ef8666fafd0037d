//! Mounts that are refused or interrupted: nothing of them stays, and what is said of them has its code.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Stdio;

use common::sandboxes::{Sandboxes, kill, pid, text, until};
use rustix::process::Signal;
use serde_json::{Value, json};

/// Sends a request for a mount; the answer may be read, or not.
fn post(s: &Sandboxes, body: &Value) -> UnixStream {
    let mut stream = UnixStream::connect(s.state_dir().join("s1/control.sock")).unwrap();
    let body = body.to_string();
    let length = body.len();
    write!(
        stream,
        "POST /v1/mounts HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    stream
}

/// The body of a mount of an image, once for each layer.
fn body((bootstrap, config): &(String, String), layers: usize) -> Value {
    let config = std::fs::read_to_string(config).unwrap();
    let image = json!({"bootstrap": bootstrap, "config": config});
    json!({"container": "c1", "images": vec![image; layers]})
}

/// While the daemon stands still, its first answer is awaited and whoever asked goes away.
#[test]
fn a_mount_whose_client_goes_away_is_undone_with_all_its_layers() {
    let s = Sandboxes::new();
    let image = s.image();
    let layers = body(&image, 3);
    let (bootstrap, config) = image;
    let daemon = pid(&s.start("s1", None), "daemon");
    let asked = || s.json(&["status", "s1"])["mounts"].as_array().unwrap().len() == 2;
    let undone = |times| {
        let events = s.ok(&["events", "s1"]);
        let happened = |what: &str| events.matches(&format!("  {what}  ")).count();
        // The share is mounted, too.
        happened("unmounted") == times && happened("mounted") == times + 1
    };
    kill(daemon, Signal::STOP);
    let client = post(&s, &layers);
    until("the lowest layer is asked for", asked);
    drop(client);
    kill(daemon, Signal::CONT);
    until("it is undone", || undone(1));

    kill(daemon, Signal::STOP);
    let args = [
        "mount",
        "s1",
        "c2",
        "--bootstrap",
        &bootstrap,
        "--config",
        &config,
    ];
    let mut command = s.command(&args);
    let mut child = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    until("it is asked for", asked);
    kill(child.id(), Signal::INT);
    assert!(!child.wait().unwrap().success());
    kill(daemon, Signal::CONT);
    until("it is undone", || undone(2));

    // Whoever stays has it.
    let mut answer = String::new();
    post(&s, &layers).read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let mounts = s.json(&["status", "s1"])["mounts"].clone();
    assert_eq!(mounts.as_array().unwrap().len(), 4, "{mounts}");
    s.ok(&["stop", "s1"]);
    s.assert_nothing_left();
}

/// A guest can put a symlink where the bind is to be.
#[test]
fn a_snapshot_directory_that_cannot_be_bound_has_its_code_and_hinders_no_stop() {
    let s = Sandboxes::new();
    let mut body = body(&s.image(), 1);
    s.start("s1", None);
    std::fs::create_dir(s.share().join("c1")).unwrap();
    std::os::unix::fs::symlink("/", s.share().join("c1/snapshotdir")).unwrap();
    body["snapshotdir"] = json!(text(&s.dir.mkdir("snapshot")));
    let mut answer = String::new();
    post(&s, &body).read_to_string(&mut answer).unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 422 ") && answer.contains(r#""code":"BadSnapshotdir""#),
        "{answer}"
    );
    assert_eq!(s.json(&["stop", "s1"])["leftovers"], json!([]));
    s.assert_nothing_left();
}
