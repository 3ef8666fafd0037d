//! `nydusbox run` where there is no QEMU: all that it does before, and undoes.
//!
//! What the guest would be booted from is made up, just as it has to look.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{Dir, nydusbox, told};

/// A kernel that says its version, to which all modules belong, and a program without an interpreter.
fn made_up_guest(root: &Path) {
    let mut kernel = vec![0; 0x400];
    kernel[0x202..0x206].copy_from_slice(b"HdrS");
    kernel[0x20e..0x210].copy_from_slice(&0x100_u16.to_le_bytes());
    kernel[0x300..0x304].copy_from_slice(b"6.1 ");
    let modules = [
        "virtio_pci",
        "virtio_console",
        "virtio_rng",
        "fuse",
        "virtiofs",
        "overlay",
    ];
    let modules: String = modules.iter().map(|name| format!("kernel/{name}.ko\n")).collect();
    let mut busybox = vec![0; 120];
    busybox[..6].copy_from_slice(b"\x7fELF\x02\x01");
    // For x86-64, with one program header of its only kind, behind the file's.
    for (at, value) in [(18, 62), (32, 64), (54, 56), (56, 1), (64, 1)] {
        busybox[at] = value;
    }
    for (path, content) in [
        ("boot/vmlinuz-6.1", kernel),
        ("lib/modules/6.1/modules.builtin", modules.into_bytes()),
        ("bin/busybox", busybox),
    ] {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
}

/// An image, and `nydusbox run` on it, so far without a command.
struct Place(Dir);

impl Place {
    fn new() -> Self {
        let dir = Dir::new();
        made_up_guest(&dir.mkdir("guest"));
        dir.mkdir("no-programs");
        let built = nydusbox()
            .args(["image", "build"])
            .args([dir.mkdir("source"), dir.join("image")])
            .output()
            .unwrap();
        assert!(built.status.success(), "{built:?}");
        Self(dir)
    }

    fn run(&self) -> Command {
        let mut command = nydusbox();
        command
            .arg("run")
            .arg(self.0.join("image"))
            .arg("--guest-root")
            .arg(self.0.join("guest"))
            .arg("--data-dir")
            .arg(self.0.join("data"))
            .arg("--state-dir")
            .arg(self.0.join("state"))
            .env("PATH", self.0.join("no-programs"));
        command
    }

    fn assert_clean(&self) {
        let left = |name: &str| fs::read_dir(self.0.join(name)).map_or(0, Iterator::count);
        assert_eq!((left("data/run"), left("state")), (0, 0));
    }
}

/// Whether that is seen before the image is there or after it.
#[test]
fn a_machine_that_cannot_be_started_is_the_reason_that_is_given() {
    let place = Place::new();
    for _ in 0..30 {
        let output = place.run().args(["--", "true"]).output().unwrap();
        let (code, out, err) = told(&output);
        assert_eq!((code, &*out), (125, ""), "{err}");
        assert!(
            err.contains("boot the VM") && err.contains("qemu-system-x86_64"),
            "{err}"
        );
        place.assert_clean();
    }
}

#[test]
fn what_is_no_host_name_is_refused() {
    let place = Place::new();
    let output = place
        .run()
        .args(["--hostname", "a_b", "--", "true"])
        .output()
        .unwrap();
    let (code, _, err) = told(&output);
    assert_eq!(code, 2, "{err}");
    assert!(err.contains("\"a_b\"") && err.contains("letters"), "{err}");
    assert!(!place.0.join("data").exists());
}

#[test]
fn whoever_stops_reading_what_a_run_says_has_it_leave_nothing() {
    let place = Place::new();
    for _ in 0..10 {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let status = place
            .run()
            .args(["--verbose", "--", "true"])
            .stderr(Stdio::from(writer))
            .status()
            .unwrap();
        assert!(!status.success());
        place.assert_clean();
    }
}

#[test]
fn a_report_that_cannot_be_written_does_not_hide_why_the_run_failed() {
    let place = Place::new();
    let output = place
        .run()
        .arg("--report")
        .arg(place.0.join("no-such-directory/report"))
        .args(["--", "true"])
        .output()
        .unwrap();
    let (code, _, err) = told(&output);
    assert_eq!(code, 125, "{err}");
    assert!(err.contains("boot the VM"), "{err}");
}
