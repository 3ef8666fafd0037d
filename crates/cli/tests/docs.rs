//! The configuration in docs/ is given to the programs it is for.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::process::{Command, Stdio};

use common::{Dir, document_block, nydusbox, require, told};

#[test]
fn containerd_takes_the_documented_configuration() {
    let candidates = ["/usr/bin/containerd", "/usr/local/bin/containerd"].map(|path| Some(path.into()));
    let Some(containerd) = require("containerd", &candidates) else {
        return;
    };
    let dir = Dir::new();
    let file = dir.join("config.toml");
    std::fs::write(&file, document_block("containerd.md", "toml")).unwrap();
    let dump = Command::new(containerd)
        .arg("--config")
        .arg(&file)
        .args(["config", "dump"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let (code, out, err) = told(&dump);
    assert_eq!(code, 0, "{err}");
    for line in [
        "[proxy_plugins.nydus]",
        "address = \"/run/containerd-nydus/containerd-nydus-grpc.sock\"",
        "snapshotter = \"nydus\"",
        "disable_snapshot_annotations = false",
        "runtime_type = \"io.containerd.kata.v2\"",
        "ConfigPath = \"/etc/kata-containers/configuration.toml\"",
    ] {
        assert!(out.lines().any(|l| l.trim() == line), "{line} is not in {out}");
    }
}

#[test]
fn the_documented_kata_section_is_what_the_command_prints() {
    let output = nydusbox().arg("kata-config").output().unwrap();
    let (code, out, _) = told(&output);
    assert_eq!(code, 0);
    let documented = document_block("kata.md", "toml");
    assert_eq!(
        out.replace(env!("CARGO_BIN_EXE_nydusbox"), "/usr/bin/nydusbox"),
        documented
    );
}
