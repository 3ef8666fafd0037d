//! The main job with nothing replaced: a Debian userland in a microVM whose root is fetched as it is read.
//!
//! Needs QEMU, a guest kernel (`NYDUSBOX_GUEST_ROOT`) and a Debian root file system as a directory
//! (`NYDUSBOX_TEST_ROOTFS`), all of which `cargo xtask test` provides.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use common::{Dir, guest_root, nydusbox, peer, require, told, workspace};

struct Machine {
    rootfs: PathBuf,
    guest: PathBuf,
    dir: Dir,
    image: PathBuf,
}

impl Machine {
    fn new() -> Option<Self> {
        let given = std::env::var_os("NYDUSBOX_TEST_ROOTFS").map(PathBuf::from);
        let rootfs = require(
            "a Debian root file system",
            &[given, Some(workspace().join("target/test-rootfs/rootfs"))],
        )?;
        let guest = guest_root()?;
        let dir = Dir::new();
        let image = dir.join("image");
        let built = nydusbox()
            .args(["image", "build"])
            .arg(&rootfs)
            .arg(&image)
            .output()
            .unwrap();
        assert!(built.status.success(), "{:?}", told(&built));
        Some(Self {
            rootfs,
            guest,
            dir,
            image,
        })
    }

    fn run(&self) -> Command {
        let mut command = nydusbox();
        command
            .arg("run")
            .arg("--image")
            .arg(&self.image)
            .arg("--guest-root")
            .arg(&self.guest);
        command
            .arg("--data-dir")
            .arg(self.dir.join("data"))
            .arg("--state-dir")
            .arg(self.dir.join("state"));
        command
    }

    /// A run whose command has started and will not end by itself.
    fn sleeping(&self) -> Child {
        let mut child = self
            .run()
            .args(["--", "sh", "-c", "echo started; sleep 600"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        std::io::BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "started\n");
        child
    }

    /// After a run nothing of it is left: no directory, no process.
    fn assert_clean(&self) {
        let left = |name: &str| std::fs::read_dir(self.dir.join(name)).map_or(0, Iterator::count);
        assert_eq!((left("data/run"), left("state")), (0, 0));
        let needle = self.dir.path().to_str().unwrap().to_owned();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let cmdline = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let cmdline = String::from_utf8_lossy(&cmdline).into_owned();
            assert!(!cmdline.contains(&needle), "still running: {cmdline}");
        }
    }
}

/// `sha256sum` of every regular file below a directory, by its path from there.
fn checksums(root: &Path) -> BTreeMap<String, String> {
    let output = Command::new("sh")
        .arg("-c")
        .arg("find . -xdev -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum")
        .current_dir(root)
        .output()
        .unwrap();
    assert!(output.status.success());
    parse(&String::from_utf8_lossy(&output.stdout))
}

fn parse(lines: &str) -> BTreeMap<String, String> {
    lines
        .lines()
        .filter_map(|l| l.split_once("  "))
        .map(|(sum, path)| (path.to_owned(), sum.to_owned()))
        .collect()
}

#[test]
fn vm_runs_the_image_with_a_share_and_gives_output_and_status_back() {
    let Some(machine) = Machine::new() else { return };
    let share = machine.dir.mkdir("share");
    let text = format!("from the host, {}\n", std::process::id());
    std::fs::write(share.join("hello"), &text).unwrap();
    let report = machine.dir.join("report.json");
    let script = r#"
        . /etc/os-release && echo "$ID $VERSION_ID"
        perl -MPOSIX -MEncode -MFile::Find -e 'print scalar(keys %INC) > 10 ? "perl ok\n" : "perl?\n"'
        echo written > /opt/new && cat /opt/new && rm /etc/hostname 2>/dev/null; test ! -e /etc/hostname && echo overlay ok
        cat /share/hello && echo back > /share/back
        echo to stderr >&2
        exit 7
    "#;
    let output = machine
        .run()
        .arg("--share")
        .arg(&share)
        .arg("--report")
        .arg(&report)
        .args(["--", "sh", "-c", script])
        .output()
        .unwrap();
    let (code, out, err) = told(&output);
    assert_eq!(
        out,
        format!("debian 12\nperl ok\nwritten\noverlay ok\n{text}"),
        "{err}"
    );
    assert_eq!(err, "to stderr\n");
    assert_eq!(code, 7);
    assert_eq!(std::fs::read_to_string(share.join("back")).unwrap(), "back\n");
    assert!(
        !machine.rootfs.join("opt/new").exists(),
        "the image's source was changed"
    );
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(report).unwrap()).unwrap();
    let (read, whole) = (
        report["bytes_read_backend"].as_u64().unwrap(),
        report["image_bytes"].as_u64().unwrap(),
    );
    assert!(
        0 < read && read < whole / 2,
        "{read} of {whole} bytes were fetched for a few files"
    );
    machine.assert_clean();
}

#[test]
fn vm_sees_every_file_with_the_content_of_the_host() {
    let Some(machine) = Machine::new() else { return };
    let output = machine
        .run()
        .args([
            "--",
            "sh",
            "-c",
            "cd / && find . -xdev -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum",
        ])
        .output()
        .unwrap();
    let (code, out, err) = told(&output);
    assert_eq!((code, err.as_str()), (0, ""));
    let host = checksums(&machine.rootfs);
    let guest = parse(&out);
    assert!(host.len() > 1000, "only {} files on the host", host.len());
    let differing: Vec<_> = host
        .iter()
        .filter(|(path, sum)| guest.get(*path) != Some(sum))
        .collect();
    assert!(
        differing.is_empty(),
        "{} of {} files differ: {:?}",
        differing.len(),
        host.len(),
        &differing[..differing.len().min(5)]
    );
    machine.assert_clean();
}

#[test]
fn vm_runs_on_a_genuine_nydusd() {
    let Some(nydusd) = peer("nydusd") else { return };
    let Some(machine) = Machine::new() else { return };
    let output = machine
        .run()
        .arg("--daemon")
        .arg(nydusd)
        .args(["--", "cat", "/etc/debian_version"])
        .output()
        .unwrap();
    let (code, out, err) = told(&output);
    assert_eq!((code, out.starts_with("12.")), (0, true), "{out} {err}");
    machine.assert_clean();
}

#[test]
fn vm_and_daemon_go_on_ctrl_c() {
    let Some(machine) = Machine::new() else { return };
    let mut child = machine.sleeping();
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    machine.assert_clean();
}

#[test]
fn vm_ends_with_a_reason_when_its_daemon_is_killed() {
    let Some(machine) = Machine::new() else { return };
    let child = machine.sleeping();
    // Each thread has its own children.
    let daemon = std::fs::read_dir(format!("/proc/{}/task", child.id()))
        .unwrap()
        .map(|task| std::fs::read_to_string(task.unwrap().path().join("children")).unwrap())
        .flat_map(|pids| pids.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
        .find(|pid| {
            std::fs::read_to_string(format!("/proc/{pid}/cmdline"))
                .unwrap()
                .contains("virtiofs")
        })
        .unwrap()
        .parse()
        .unwrap();
    let daemon = rustix::process::Pid::from_raw(daemon).unwrap();
    rustix::process::kill_process(daemon, rustix::process::Signal::KILL).unwrap();
    let (code, _, err) = told(&child.wait_with_output().unwrap());
    assert_eq!(code, 125, "{err}");
    assert!(err.contains("daemon ended while the VM was running"), "{err}");
    machine.assert_clean();
}
