//! `nydusbox image inspect`, `check` and `diff` on a place with an image for each of several platforms.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
#[path = "../../image/tests/image/layout.rs"]
mod layout;

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use common::{Dir, nydusbox, told};
use nydusbox_testkit::peers::require_program;
use serde_json::{Value, json};

/// An image of one file for amd64 and one of two for arm64, in nydus' form, under one name.
fn for_two_platforms(dir: &Dir) -> String {
    let out = dir.join("out");
    let all: [(&str, layout::Files<'_>); 2] = [
        ("amd64", &[("one", b"1")]),
        ("arm64", &[("one", b"1"), ("two", b"2")]),
    ];
    for (arch, files) in all {
        let of = layout::make_layout(&dir.join(arch), "of", &[files]).to_string();
        let to = format!("oci:{}:{arch}", out.display());
        let converted = nydusbox().args(["image", "convert", &of, &to]).output().unwrap();
        assert_eq!(told(&converted).0, 0);
    }
    let file = out.join("index.json");
    let mut index: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    for (entry, (arch, _)) in index["manifests"].as_array_mut().unwrap().iter_mut().zip(all) {
        entry["annotations"]["org.opencontainers.image.ref.name"] = "both".into();
        entry["platform"] = json!({"os": "linux", "architecture": arch});
    }
    fs::write(&file, index.to_string()).unwrap();
    format!("oci:{}:both", out.display())
}

#[test]
fn the_image_that_is_looked_at_is_the_one_for_the_platform() {
    let dir = Dir::new();
    let both = for_two_platforms(&dir);
    let look = |args: &[&str]| told(&nydusbox().arg("image").args(args).output().unwrap());
    for (platform, files) in [("linux/amd64", 1), ("linux/arm64", 2)] {
        let at = ["--platform", platform];
        let (_, out, err) = look(&["inspect", "--json", &both, at[0], at[1]]);
        let report: Value = serde_json::from_str(&out).expect(&err);
        assert_eq!(report["regular_files"], files, "{platform}");
        let (code, out, err) = look(&["check", "--json", &both, at[0], at[1]]);
        assert_eq!(code, 0, "{err}");
        let report: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(report["good_chunks"], files, "{platform}");
        assert_eq!(look(&["diff", &both, &both, at[0], at[1]]).0, 0);
    }
    let other = ["--platform", "linux/s390x"];
    for args in [
        &["inspect", &both][..],
        &["check", &both],
        &["diff", &both, &both],
    ] {
        let (_, _, err) = look(&[args, &other].concat());
        assert!(err.contains("linux/s390x"), "{err}");
    }
}

/// strace does the killing, as something is written for the n-th time.
#[test]
fn who_looks_at_an_image_and_is_killed_leaves_nothing() {
    let Ok(strace) = require_program("strace") else {
        return;
    };
    let dir = Dir::new();
    let both = for_two_platforms(&dir);
    let temp = dir.mkdir("temp");
    let mut kills = 0;
    for step in 1.. {
        let output = Command::new(&strace)
            .args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=write", "-e"])
            .arg(format!("inject=write:signal=KILL:when={step}"))
            .arg(env!("CARGO_BIN_EXE_nydusbox"))
            .args(["image", "inspect", "--platform", "linux/amd64", &both])
            .env("TMPDIR", &temp)
            .output()
            .unwrap();
        assert_eq!(fs::read_dir(&temp).unwrap().count(), 0, "{step}");
        if output.status.success() {
            break;
        }
        assert_eq!(output.status.signal(), Some(9), "{step}: {:?}", told(&output));
        kills += 1;
    }
    assert!(kills > 1, "{kills}");
}
