//! The configuration in docs/ is given to the programs it is for.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::PathBuf;
use std::process::{Command, Stdio};

use common::{Dir, document_block, nydusbox, peer, require, told};
use nydusbox_testkit::blob_server::BlobServer;
use nydusbox_testkit::daemon::Program;
use nydusbox_testkit::image::{RafsVersion, mount_body};
use nydusbox_testkit::suite::fixture::{Fixture, done, guest};
use serde_json::{Value, json};

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

/// With what nydus-snapshotter adds to it, in the form in which its Go types are written.
#[test]
fn the_documented_daemon_configuration_serves_an_image_here_and_in_nydusd() {
    let ours = Program::Nydusbox(PathBuf::from(env!("CARGO_BIN_EXE_nydusbox")));
    for program in [Some(ours), peer("nydusd").map(Program::Nydusd)]
        .into_iter()
        .flatten()
    {
        let fixture = Fixture::new(&program);
        let source = fixture.data_source(1, 100_000);
        let Ok(image) = fixture.image(&source, RafsVersion::V6) else {
            return;
        };
        let registry = BlobServer::start(&image.blobs).unwrap();
        let mut config: Value = serde_json::from_str(&document_block("containerd.md", "json")).unwrap();
        let device = &mut config["device"];
        device["id"] = "/4".into();
        let backend = &mut device["backend"]["config"];
        backend["scheme"] = "http".into();
        backend["host"] = registry.address().into();
        backend["repo"] = "library/debian".into();
        backend["proxy"] = json!({"fallback": false});
        let cache = json!({"work_dir": fixture.path("cache"), "disable_indexed_map": false});
        device["cache"]["config"] = cache;
        let daemon = fixture.daemon(&[]);
        let body = mount_body("rafs", &image.bootstrap, &config.to_string());
        done(&daemon.mount("/image", &body).unwrap());
        let mut fs = guest(&daemon);
        let node = fs.resolve("/image/file-0").unwrap().nodeid;
        let content = std::fs::read(source.join("file-0")).unwrap();
        assert!(fs.read(node, 0, 0, 100_000).unwrap() == content, "{program:?}");
        assert!(registry.counters().gets > 0);
    }
}

#[test]
fn the_documented_snapshotter_configuration_is_toml_with_its_keys() {
    let text = std::fs::read_to_string(common::workspace().join("docs/containerd.md")).unwrap();
    let (_, rest) = text.split_once("## nydus-snapshotter").unwrap();
    let block = rest.split("```").nth(1).unwrap().trim_start_matches("toml");
    let parsed: toml::Value = toml::from_str(block).unwrap();
    assert_eq!(parsed["snapshot"]["enable_nydus_overlayfs"].as_bool(), Some(true));
    let containerd: toml::Value = toml::from_str(&document_block("containerd.md", "toml")).unwrap();
    assert_eq!(parsed["address"], containerd["proxy_plugins"]["nydus"]["address"]);
}
