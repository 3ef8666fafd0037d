//! From a registry into a guest, with nothing replaced: an image that umoci made is converted, pushed and run by its
//! reference, and in the guest each file is what umoci unpacks.
//!
//! Needs what `vm_run` needs, and to be root: umoci unpacks devices.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
#[path = "vm_image/original.rs"]
mod original;

use std::fs;
use std::io::Write;
use std::process::Stdio;

use common::{nydusbox, peer, told};
use nydusbox_testkit::machine::listing;
use nydusbox_testkit::machine::posix::full;
use nydusbox_testkit::machine::run::Machine;
use nydusbox_testkit::peers::require_program;
use nydusbox_testkit::registry::{Registry, RegistryOptions};
use nydusbox_testkit::skopeo::Skopeo;
use original::{EXPECTED, GONE, Original};

/// Lists the container's root. Bound elsewhere, it is without what is mounted on it; `mount` is to note nothing in `/run`.
const SCRIPT: &str = "mkdir /dev/shm/root && mount -n --bind / /dev/shm/root && exec perl - /dev/shm/root";

/// A registry with the image, and machines that run it.
struct Site {
    registry: Registry,
    machine: Machine,
    /// What umoci unpacks.
    files: String,
}

impl Site {
    fn new() -> Option<Self> {
        let machine = Machine::without_image(env!("CARGO_BIN_EXE_nydusbox"))?;
        require_program("umoci").ok()?;
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: only root unpacks devices");
            return None;
        }
        let (registry, skopeo) = Skopeo::beside_registry(RegistryOptions::default())?;
        let original = Original::make(machine.path("original"), machine.rootfs());
        let files = original.files();
        let mut lines = files.lines();
        for start in EXPECTED {
            assert!(lines.any(|line| line.starts_with(start)), "{start}");
        }
        let has = |path: &str| files.lines().any(|line| line.split(' ').next() == Some(path));
        assert!(has("/usr/bin/dash") && GONE.iter().all(|path| !has(path)));
        let site = Self {
            registry,
            machine,
            files,
        };
        skopeo.copy(&original.reference(), &site.reference("12"));
        Some(site)
    }

    fn reference(&self, tag: &str) -> String {
        format!("docker://{}/library/debian:{tag}", self.registry.host())
    }

    /// Converts what is in the registry, and pushes it there again.
    fn convert(&self, mode: &str) -> String {
        let there = self.reference(mode);
        let output = nydusbox()
            .args(["image", "convert", "--json", "--mode", mode])
            .args([&self.reference("12"), &there])
            .output()
            .unwrap();
        let (code, out, err) = told(&output);
        assert_eq!(code, 0, "{out}{err}");
        let made_of: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!(made_of["layers"][0]["is_index"], mode == "ref", "{out}");
        there
    }

    /// What a machine sees that is booted on it and has nothing of it yet.
    fn seen(&self, reference: &str, options: &[&str]) -> String {
        let _none_of_before = fs::remove_dir_all(self.machine.path("data"));
        let mut child = self
            .machine
            .run_image(reference)
            .args(options)
            .args(["--", "/bin/sh", "-c", SCRIPT])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(listing::PROGRAM.as_bytes()).unwrap();
        drop(stdin);
        let (code, out, err) = told(&child.wait_with_output().unwrap());
        assert_eq!((code, &*err), (0, ""), "{reference} {options:?}");
        self.machine.assert_clean();
        out
    }

    fn assert_files(&self, reference: &str) {
        listing::assert_same(&self.files, &self.seen(reference, &[]), reference);
    }
}

#[test]
fn vm_sees_of_an_image_in_a_registry_the_files_that_umoci_unpacks() {
    let Some(site) = Site::new() else { return };
    let native = site.convert("native");
    site.assert_files(&native);
    site.assert_files(&site.convert("ref"));
    if !full() {
        return;
    }
    // Converted as it is run.
    site.assert_files(&site.reference("12"));
    if let Some(nydusd) = peer("nydusd") {
        let seen = site.seen(&native, &["--daemon", nydusd.to_str().unwrap()]);
        listing::assert_same(
            &for_nydusd(&site.files),
            &for_nydusd(&seen),
            "the image on nydusd",
        );
    }
}

/// A listing without what nydusd does not tell: it answers GETATTR with another inode number than LOOKUP, so that no
/// program can tell which names are of the same file, and what is of 1970 with the time of the mount.
fn for_nydusd(listing: &str) -> String {
    let dated = listing
        .lines()
        .filter(|line| !line.starts_with("/opt/all/at-1970 "));
    let lines = dated.map(|line| {
        let words = line.split(' ').filter(|word| !word.starts_with("first="));
        words.collect::<Vec<_>>().join(" ")
    });
    lines.collect::<Vec<_>>().join("\n")
}
