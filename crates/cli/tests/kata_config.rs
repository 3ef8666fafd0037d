//! What `kata-config` prints, and that the daemon it names answers to what Kata's runtimes call.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::process::{Command, Stdio};

use common::{Dir, nydusbox, told};

#[test]
fn the_section_names_this_executable_for_each_hypervisor() {
    for hypervisor in ["qemu", "clh", "cloud-hypervisor"] {
        let output = nydusbox()
            .args(["kata-config", "--hypervisor", hypervisor])
            .output()
            .unwrap();
        let (code, out, err) = told(&output);
        assert_eq!((code, err.as_str()), (0, ""));
        let daemon = format!("virtio_fs_daemon = {:?}", env!("CARGO_BIN_EXE_nydusbox"));
        let section = format!("[hypervisor.{hypervisor}]");
        for line in [
            &*section,
            "shared_fs = \"virtio-fs-nydus\"",
            &*daemon,
            "virtio_fs_extra_args = []",
        ] {
            assert!(out.lines().any(|l| l == line), "{line} is not in {out}");
        }
    }
}

#[test]
fn a_daemon_that_cannot_be_run_and_a_queue_no_daemon_has_are_refused() {
    let dir = Dir::new();
    let plain = dir.join("plain");
    std::fs::write(&plain, "").unwrap();
    for (option, value, says) in [
        ("--daemon", dir.join("none"), "No such file"),
        ("--daemon", plain, "Permission denied"),
        ("--daemon", "Cargo.toml".into(), ""),
        (
            "--queue-size",
            "2048".into(),
            "queue size 2048 is not a power of two",
        ),
    ] {
        let (code, out, err) = told(
            &nydusbox()
                .args(["kata-config", option])
                .arg(&value)
                .output()
                .unwrap(),
        );
        assert_eq!((code, out.as_str()), (1, ""), "{value:?}");
        assert!(err.contains(says) && err.lines().count() == 1, "{err}");
    }
}

/// The Go runtime's arguments, and runtime-rs', as their sources have them. With the socket's directory missing the
/// daemon stops after it has read them, and says so; a wrong command line would end with 2.
#[test]
fn the_daemon_takes_the_arguments_of_both_runtimes() {
    for more in [&[][..], &["--hybrid-mode"]] {
        let dir = Dir::new();
        let (api, sock) = (dir.join("none/nydusd-api.sock"), dir.join("none/vhost-fs.sock"));
        let output = Command::new(env!("CARGO_BIN_EXE_nydusbox"))
            .args(["virtiofs", "--log-level", "info", "--apisock"])
            .arg(&api)
            .arg("--sock")
            .arg(&sock)
            .args(more)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let (code, _, err) = told(&output);
        assert_eq!(code, 1, "{err}");
        assert!(err.contains("none"), "{err}");
    }
}
