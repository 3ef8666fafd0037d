//! `run` of an image in a registry that has an authority of its own and wants a password, in a real machine.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
#[expect(dead_code, reason = "only layers that are there already are written here")]
#[path = "../../image/tests/image/layout.rs"]
mod layout;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use common::sandboxes::text;
use common::{Dir, nydusbox, peer, told};
use nydusbox_image::source::MediaType;
use nydusbox_testkit::machine::prerequisites;
use nydusbox_testkit::peers::require_program;
use nydusbox_testkit::registry::{PASSWORD, Registry, RegistryOptions, USER};
use serde_json::json;

fn ok(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {:?}", told(&output));
}

#[test]
fn vm_runs_an_image_from_a_registry_with_an_authority_and_a_password_of_its_own() {
    let (Some(rootfs), Some((guest, _))) = (prerequisites::debian_rootfs(), prerequisites::guest()) else {
        return;
    };
    let options = RegistryOptions {
        password: true,
        tls: true,
    };
    let (Ok(registry), Ok(skopeo)) = (Registry::start(options), require_program("skopeo")) else {
        return;
    };
    let dir = Dir::new();
    let tar = dir.join("layer.tar");
    ok(Command::new("tar")
        .arg("-cf")
        .arg(&tar)
        .arg("-C")
        .arg(&rootfs)
        .arg("."));
    let layers = [(MediaType::ImageLayer, &*fs::read(&tar).unwrap())];
    let of = layout::write_layout(&dir.join("layout"), "of", &layers).to_string();
    let nydus = format!("oci:{}:nydus", dir.join("layout").display());
    ok(nydusbox().args(["image", "convert", &of, &nydus, "--platform", "linux/amd64"]));
    let ca = registry.ca_file().unwrap();
    let certs = dir.mkdir("certs");
    fs::copy(ca, certs.join("ca.crt")).unwrap();
    let there = format!("docker://{}/library/debian:12", registry.host());
    ok(Command::new(skopeo)
        .args([
            "copy",
            "--insecure-policy",
            "--dest-creds",
            &format!("{USER}:{PASSWORD}"),
        ])
        .arg("--dest-cert-dir")
        .arg(certs)
        .args([&nydus, &there]));
    let authfile = dir.join("config.json");
    let auths = json!({"auths": {(registry.host()): {"username": USER, "password": PASSWORD}}});
    fs::write(&authfile, auths.to_string()).unwrap();

    let ca = text(ca);
    let command = |daemon: &str| {
        let mut command = nydusbox();
        command
            .args(["run", &there, "--platform", "linux/amd64", "--daemon", daemon])
            .arg("--guest-root")
            .arg(&guest)
            .args(["--data-dir", &text(&dir.join("data"))])
            .args(["--state-dir", &text(&dir.join("state"))])
            .args(["--authfile", &text(&authfile), "--tls-ca", &ca]);
        command
    };
    let run = |daemon: &str, more: &[&str]| told(&command(daemon).args(more).output().unwrap());
    let trace = text(&dir.join("trace"));
    let cat = ["--", "cat", "/etc/debian_version"];
    let recorded = run("builtin", &[&["--record-trace", &trace], &cat[..]].concat());
    assert_eq!((recorded.0, &*recorded.2), (0, ""));
    assert!(recorded.1.starts_with("12."), "{}", recorded.1);
    fs::remove_dir_all(dir.join("data/cache")).unwrap();
    let Some(nydusd) = peer("nydusd") else { return };
    for daemon in ["builtin", &text(&nydusd)] {
        let again = run(daemon, &[&["--prefetch-trace", &trace], &cat[..]].concat());
        assert_eq!(again, recorded);
    }

    // The registry goes while the guest runs, and the guest asks for what nobody has read yet.
    let mut child = command("builtin")
        .args([
            "--",
            "sh",
            "-c",
            "echo started; read go; cat /usr/bin/perl > /dev/null; echo status $?",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert_eq!(line, "started\n");
    let host = registry.host();
    drop(registry);
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    out.read_line(&mut line).unwrap();
    assert_eq!(line, "started\nstatus 1\n");
    let (code, _, err) = told(&child.wait_with_output().unwrap());
    assert!(
        code == 0 && err.contains("warning: reads of the image fail: ") && err.contains(&host),
        "{code} {err}"
    );
    let left = |name: &str| fs::read_dir(dir.join(name)).map_or(0, Iterator::count);
    assert_eq!((left("data/run"), left("state")), (0, 0));
}
