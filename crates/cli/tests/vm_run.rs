//! The main job with nothing replaced: a Debian userland in a microVM whose root is fetched as it is read.
//!
//! Needs QEMU, a guest kernel (`NYDUSBOX_GUEST_ROOT`) and a Debian root file system as a directory
//! (`NYDUSBOX_TEST_ROOTFS`), all of which `cargo xtask test` provides.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::process::Stdio;

use common::{peer, told, with_hangup};
use nydusbox_testkit::machine::run::{Machine, checksums, parse_checksums};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

fn machine() -> Option<Machine> {
    Machine::new(env!("CARGO_BIN_EXE_nydusbox"))
}

#[test]
fn vm_runs_the_image_with_a_share_and_gives_output_and_status_back() {
    let Some(machine) = machine() else { return };
    let share = machine.mkdir("share");
    let text = format!("from the host, {}\n", std::process::id());
    std::fs::write(share.join("hello"), &text).unwrap();
    let report = machine.path("report.json");
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
        !machine.rootfs().join("opt/new").exists(),
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
fn vm_has_a_host_name_of_its_own_or_the_one_it_is_given() {
    let Some(machine) = machine() else { return };
    let name = |options: &[&str]| {
        let output = machine
            .run()
            .args(options)
            .args(["--", "uname", "-n"])
            .output()
            .unwrap();
        let (code, out, err) = told(&output);
        assert_eq!(code, 0, "{err}");
        out
    };
    let (first, second) = (name(&[]), name(&[]));
    assert!(first.starts_with("run-") && first != second, "{first} {second}");
    assert_eq!(name(&["--hostname", "db1.example"]), "db1.example\n");
}

#[test]
fn vm_sees_every_file_with_the_content_of_the_host() {
    let Some(machine) = machine() else { return };
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
    let host = checksums(machine.rootfs());
    let guest = parse_checksums(&out);
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
    let Some(machine) = machine() else { return };
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
    let Some(machine) = machine() else { return };
    let mut child = machine.sleeping();
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    machine.assert_clean();
}

/// Otherwise nothing would be written, and the directories stayed until the next run.
#[test]
fn vm_goes_in_order_when_its_terminal_does() {
    let Some(machine) = machine() else { return };
    let report = machine.path("report.json");
    let mut run = machine.run();
    run.arg("--report").arg(&report);
    run.args(["--", "sh", "-c", "echo started; sleep 600"]);
    let mut child = with_hangup("--default-signal=HUP", &run)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = [0; 8];
    child.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
    assert_eq!(&line, b"started\n");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(report.exists());
    machine.assert_clean();
}

/// As `yes | head -n 1` ends.
#[test]
fn vm_of_a_command_whose_reader_has_left_ends() {
    let Some(machine) = machine() else { return };
    let mut child = machine
        .run()
        .args(["--", "sh", "-c", "while :; do echo again; done"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = [0; 6];
    child.stdout.take().unwrap().read_exact(&mut line).unwrap();
    assert_eq!(&line, b"again\n");
    let (code, _, err) = told(&child.wait_with_output().unwrap());
    assert_eq!((code, &*err), (141, ""));
    machine.assert_clean();
}

/// The flag belongs to all who have the same open file: whoever set it may not know of us.
#[test]
fn vm_streams_that_would_block_are_waited_for() {
    let Some(machine) = machine() else { return };
    let (input, mut late) = std::io::pipe().unwrap();
    let (mut slow, output) = std::io::pipe().unwrap();
    for flags in [input.as_fd(), output.as_fd()] {
        rustix::fs::fcntl_setfl(flags, rustix::fs::OFlags::NONBLOCK).unwrap();
    }
    let full = output.try_clone().unwrap();
    let child = machine
        .run()
        .args(["--", "sh", "-c", "echo ready; cat; seq 1 30000"])
        .stdin(input)
        .stdout(output)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = [0; 6];
    slow.read_exact(&mut ready).unwrap();
    late.write_all(b"late\n").unwrap();
    drop(late);
    // Until the pipe is full.
    let takes_more = || {
        let mut end = [PollFd::new(&full, PollFlags::OUT)];
        poll(&mut end, Some(&Timespec::default())).unwrap() == 1
    };
    while takes_more() {
        std::thread::yield_now();
    }
    drop(full);
    let mut rest = String::new();
    slow.read_to_string(&mut rest).unwrap();
    let numbers: String = (1..=30000).map(|n| format!("{n}\n")).collect();
    assert!(rest == format!("late\n{numbers}"), "{} bytes", rest.len());
    let (code, _, err) = told(&child.wait_with_output().unwrap());
    assert_eq!((code, &*err), (0, ""));
    machine.assert_clean();
}

#[test]
fn vm_whose_input_cannot_be_read_or_errors_not_be_written_fails() {
    let Some(machine) = machine() else { return };
    let output = machine
        .run()
        .args(["--", "cat"])
        .stdin(std::fs::File::open("/").unwrap())
        .output()
        .unwrap();
    let (code, _, err) = told(&output);
    assert_eq!(code, 125, "{err}");
    assert!(err.contains("read the command's input: Is a directory"), "{err}");
    let report = machine.path("report.json");
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let status = machine
        .run()
        .arg("--report")
        .arg(&report)
        .args(["--", "sh", "-c", "echo lost >&2; sleep 1000"])
        .stderr(full)
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(125));
    assert!(report.exists(), "it got as far");
    machine.assert_clean();
}

/// A disk that is full, for one. Also where the command has ended when it shows.
#[test]
fn vm_of_a_command_whose_output_cannot_be_written_fails() {
    let Some(machine) = machine() else { return };
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    for script in ["echo lost", "echo lost; exit 7", "while :; do echo again; done"] {
        let output = machine
            .run()
            .args(["--", "sh", "-c", script])
            .stdout(full.try_clone().unwrap())
            .output()
            .unwrap();
        let (code, _, err) = told(&output);
        assert_eq!(code, 125, "{err}");
        assert!(err.contains("output cannot be written: No space left"), "{err}");
        machine.assert_clean();
    }
}

/// SIGKILL leaves no time for anything. The machine and the daemon end by themselves, `sweep` knows the sandbox, and the
/// next run removes the directories.
#[test]
fn vm_of_a_killed_run_leaves_nothing_that_the_next_does_not_remove() {
    let Some(machine) = machine() else { return };
    let mut child = machine.sleeping();
    child.kill().unwrap();
    child.wait().unwrap();
    // Bounded by the runner.
    while !machine.running().is_empty() {
        std::thread::yield_now();
    }
    let left = || std::fs::read_dir(machine.path("data/run")).unwrap().count();
    assert_eq!(left(), 2, "a directory and its lock");
    let output = machine
        .run()
        .args(["--keep", "--", "sh", "-c", "echo x >/new"])
        .output()
        .unwrap();
    let (code, _, err) = told(&output);
    assert_eq!((code, left()), (0, 1), "{err}");
    let kept = err.split_whitespace().last().unwrap();
    let kept = std::path::Path::new(kept);
    assert!(kept.join("shared/c1/snapshotdir/fs/new").exists(), "{err}");
    // What is kept stays.
    let output = machine.run().args(["--", "true"]).output().unwrap();
    assert_eq!(told(&output).0, 0);
    assert!(kept.exists() && left() == 1);
    std::fs::remove_dir_all(kept).unwrap();

    let mut sweep = std::process::Command::new(env!("CARGO_BIN_EXE_nydusbox"));
    let sweep = sweep.arg("sweep").arg("--state-dir").arg(machine.path("state"));
    assert!(sweep.output().unwrap().status.success());
    machine.assert_clean();
}

#[test]
fn vm_ends_with_a_reason_when_its_daemon_is_killed() {
    let Some(machine) = machine() else { return };
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
