//! Mounts that are refused: nothing of them stays, and what is said of them has its code.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use common::sandboxes::{Sandboxes, text};
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
