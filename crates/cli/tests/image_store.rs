//! `nydusbox image pull`, `ls`, `rm` and `gc`: the store as its users see it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
#[path = "../../image/tests/image/layout.rs"]
mod layout;

use std::process::Command;

use common::{Dir, nydusbox, told};
use layout::make_layout;
use serde_json::Value;

/// A command on a data directory of the test's own.
fn image(dir: &Dir, args: &[&str]) -> Command {
    let mut command = nydusbox();
    command
        .env("NYDUSBOX_DATA_DIR", dir.join("data"))
        .env("NYDUSBOX_STATE_DIR", dir.join("state"))
        .arg("image")
        .args(args);
    command
}

fn ok(dir: &Dir, args: &[&str]) -> String {
    let (code, out, err) = told(&image(dir, args).output().unwrap());
    assert_eq!((code, &*err), (0, ""), "{args:?}: {out}");
    out
}

fn json(dir: &Dir, args: &[&str]) -> Value {
    let mut args = args.to_vec();
    args.push("--json");
    serde_json::from_str(&ok(dir, &args)).unwrap()
}

/// A command that must fail, with these words in one sentence.
fn refused(dir: &Dir, args: &[&str], words: &[&str]) {
    let (code, out, err) = told(&image(dir, args).output().unwrap());
    assert_eq!((code, &*out), (1, ""), "{args:?}: {err}");
    assert_eq!(
        err.lines().filter(|line| line.starts_with("error: ")).count(),
        1,
        "{err}"
    );
    for word in words {
        assert!(err.contains(word), "{args:?} does not say {word:?}: {err}");
    }
}

#[test]
fn an_image_that_was_pulled_is_listed() {
    let dir = Dir::new();
    assert_eq!(json(&dir, &["ls"]), Value::Array(Vec::new()));
    let of = make_layout(&dir.join("layout"), "of", &[&[("a", &[1; 90_000])]]).to_string();
    let platform = ["--platform", "linux/amd64"];
    let pulled = json(&dir, &["pull", &of, platform[0], platform[1]]);
    assert_eq!(json(&dir, &["ls"])[0]["digest"], pulled["digest"]);
    assert_eq!(
        (&pulled["kind"], &pulled["reference"]),
        (&"converted".into(), &of.clone().into())
    );
    let table = ok(&dir, &["ls"]);
    let line = table.lines().nth(1).unwrap();
    assert!(line.starts_with(&of) && line.contains("converted"), "{table}");
    assert!(dir.join("data/images/version").exists());
    let nowhere = format!("oci:{}:none", dir.join("layout").display());
    refused(&dir, &["pull", &nowhere], &["none", "of"]);
}
