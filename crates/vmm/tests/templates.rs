//! Machines that go on from one that was booted before, on a genuine virtio-fs daemon.
//!
//! The daemon is virtiofsd from `target/peers/bin`, the guest is Debian's kernel and busybox unpacked in
//! `target/guest`. Where either is absent the tests say so and pass, unless `NYDUSBOX_REQUIRE_PEERS=1`.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use nydusbox_testkit::machine::sink;
use nydusbox_testkit::machine::virtiofsd::Host;
use nydusbox_testkit::suite::small_disk::SmallDisk;
use nydusbox_vmm::{MachineSpec, Origin, Templates, VmOutcome};
use tokio::io::{AsyncBufReadExt, BufReader};

/// Set, to a directory of templates, for the process that starts a machine only to be killed.
const OWNER: &str = "NYDUSBOX_TEST_OWNER";

fn machine(host: &Host, templates: &Path) -> MachineSpec {
    MachineSpec {
        templates: Templates::Always(templates.to_owned()),
        ..host.machine()
    }
}

/// The only template in a directory.
fn only(templates: &Path) -> PathBuf {
    let mut found: Vec<PathBuf> = fs::read_dir(templates)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

/// Has a machine booted and saved in an empty directory: its template.
async fn save_one(templates: &Path) -> Option<PathBuf> {
    let host = Host::new()?;
    let started = host.start(machine(&host, templates)).await;
    assert_eq!(started.origin(), Origin::BootToTemplate);
    let (outcome, ..) = host.run_in(started, host.spec(&["true"])).await;
    assert_eq!(outcome, VmOutcome::CommandExited { status: 0 }, "{outcome}");
    Some(only(templates))
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// What must not be the same in two machines, nor that of the time they were saved; and what a command needs.
const ASKS: &str = "cat /proc/sys/kernel/random/boot_id /proc/sys/kernel/random/uuid; \
                    busybox od -An -tx1 -N16 /dev/urandom; busybox date +%s; cat; hostname; \
                    busybox head -c 1 /dev/random >/dev/null; \
                    busybox dmesg | busybox grep -o -e 'crng init done' -e 'enabling device'";

#[tokio::test]
async fn machines_that_go_on_from_one_have_nothing_of_each_other() {
    let Some(host) = Host::new() else { return };
    let templates = tempfile::tempdir().unwrap();
    let mut drawn = Vec::new();
    for (number, origin) in [Origin::BootToTemplate, Origin::Template, Origin::Template]
        .into_iter()
        .enumerate()
    {
        let Some(host) = Host::new() else { return };
        let machine = host.start(machine(&host, templates.path())).await;
        assert_eq!(machine.origin(), origin);
        let mut spec = host.spec(&["sh", "-c", ASKS]);
        spec.hostname = format!("guest{number}").parse().unwrap();
        let before = now();
        let (outcome, stdout, stderr) = host.run_in(machine, spec).await;
        assert_eq!(
            outcome,
            VmOutcome::CommandExited { status: 0 },
            "{outcome} {stderr}"
        );
        let lines: Vec<&str> = stdout.lines().collect();
        let [boot, uuid, bytes, time, hostname, ref kernel @ ..] = lines[..] else {
            panic!("{stdout}")
        };
        // Not before the devices came: what is drawn in a machine that others go on from, they would draw, too.
        let said = |what: &str| kernel.iter().position(|line| *line == what);
        let (plugged_in, random) = (said("enabling device"), said("crng init done"));
        assert!(plugged_in.is_some() && plugged_in < random, "{stdout}");
        let time: u64 = time.parse().unwrap();
        assert!((before - 1..=now()).contains(&time), "{before} {time}");
        assert_eq!(hostname, format!("guest{number}"));
        drawn.extend([boot, uuid, bytes].map(str::to_owned));
    }
    let count = drawn.len();
    drawn.sort();
    drawn.dedup();
    assert_eq!(drawn.len(), count, "{drawn:?}");
    drop(host);
}

#[tokio::test]
async fn a_machine_waits_for_its_command_as_long_as_that_takes() {
    let Some(host) = Host::new() else { return };
    let templates = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        let Some(host) = Host::new() else { return };
        let machine = host.start(machine(&host, templates.path())).await;
        // Until then there is nothing to do for it, and nothing to see.
        tokio::task::yield_now().await;
        let (outcome, stdout, stderr) = host.run_in(machine, host.spec(&["sh", "-c", "echo here"])).await;
        assert_eq!(
            outcome,
            VmOutcome::CommandExited { status: 0 },
            "{outcome} {stderr}"
        );
        assert_eq!(stdout, "here\n");
    }
    // Nobody wants it after all.
    let machine = host.start(machine(&host, templates.path())).await;
    assert_eq!(machine.origin(), Origin::Template);
    machine.kill().await;
}

/// Whatever is broken, the command runs; and the next machine has a template again.
#[tokio::test]
async fn a_template_that_is_of_no_use_is_replaced() {
    let Some(host) = Host::new() else { return };
    let templates = tempfile::tempdir().unwrap();
    let run = async |expected: Origin| {
        let host = Host::new().unwrap();
        let machine = host.start(machine(&host, templates.path())).await;
        assert_eq!(machine.origin(), expected);
        let (outcome, stdout, stderr) = host.run_in(machine, host.spec(&["sh", "-c", "echo ran"])).await;
        assert_eq!(
            outcome,
            VmOutcome::CommandExited { status: 0 },
            "{outcome} {stderr}"
        );
        assert_eq!(stdout, "ran\n");
    };
    run(Origin::BootToTemplate).await;
    let state = only(templates.path()).join("state");
    let whole = fs::read(&state).unwrap();
    for broken in [&b""[..], &whole[..whole.len() / 2], &b"no state of a machine"[..]] {
        fs::write(&state, broken).unwrap();
        run(Origin::BootToTemplate).await;
    }
    run(Origin::Template).await;
    drop(host);
}

/// The state is taken, but the guest's memory is not what it was: its init ends instead of going on, and the kernel with
/// it.
#[tokio::test]
async fn a_template_whose_guest_does_not_go_on_is_removed() {
    let templates = tempfile::tempdir().unwrap();
    let Some(template) = save_one(templates.path()).await else {
        return;
    };
    // In half a gigabyte that is found sooner by grep than by a test that is not optimised.
    let found = Command::new("grep")
        .args(["--byte-offset", "--only-matching", "--text", "head -c"])
        .arg(template.join("memory"))
        .env("LC_ALL", "C")
        .output()
        .unwrap();
    let memory = fs::File::options()
        .write(true)
        .open(template.join("memory"))
        .unwrap();
    let found = String::from_utf8(found.stdout).unwrap();
    assert!(!found.is_empty());
    for line in found.lines() {
        let (at, _) = line.split_once(':').unwrap();
        memory.write_all_at(b"exit 1;", at.parse().unwrap()).unwrap();
    }
    let Some(host) = Host::new() else { return };
    let started = host.start(machine(&host, templates.path())).await;
    assert_eq!(started.origin(), Origin::Template);
    let (outcome, ..) = host.run_in(started, host.spec(&["true"])).await;
    let VmOutcome::VmmExited { console, .. } = outcome else {
        panic!("{outcome}")
    };
    assert!(
        console.iter().any(|line| line.contains("Attempted to kill init")),
        "{console:?}"
    );
    assert!(!template.exists());
}

/// What can be written of it is not left.
#[tokio::test]
async fn a_full_disk_costs_the_template_only() {
    let Some(host) = Host::new() else { return };
    let place = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(place.path().join("templates"), "20m") else {
        return;
    };
    let machine = host.start(machine(&host, disk.path())).await;
    assert_eq!(machine.origin(), Origin::BootToTemplate);
    let (outcome, stdout, _) = host.run_in(machine, host.spec(&["echo", "ran"])).await;
    assert_eq!(
        (outcome, &*stdout),
        (VmOutcome::CommandExited { status: 0 }, "ran\n")
    );
    let left: Vec<_> = fs::read_dir(disk.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["lock"]);
}

/// SIGKILL leaves its victim no time to kill anything, and the guest has no command yet whose end would end it. It is
/// killed when it has started a machine: one that boots, and one that has gone on from a template.
#[tokio::test]
async fn a_machine_without_a_command_does_not_outlive_its_owner() {
    let templates = tempfile::tempdir().unwrap();
    let Some(_) = save_one(templates.path()).await else {
        return;
    };
    let nowhere = tempfile::tempdir().unwrap();
    for (templates, origin) in [(templates.path(), "Template"), (nowhere.path(), "BootToTemplate")] {
        // The victim can't remove its directories; they are in this one.
        let dir = tempfile::tempdir().unwrap();
        let mut owner = tokio::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "owner_of_a_machine_without_a_command", "--nocapture"])
            .env(OWNER, templates)
            .env("TMPDIR", dir.path())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(owner.stdout.take().unwrap()).lines();
        let (pid, was) = loop {
            let line = lines
                .next_line()
                .await
                .unwrap()
                .expect("the owner prints its machine's pid");
            if let Some((_, machine)) = line.split_once("machine ") {
                let (pid, origin) = machine.split_once(' ').unwrap();
                break (pid.parse().unwrap(), origin.to_owned());
            }
        };
        assert_eq!(was, origin);
        owner.kill().await.unwrap();
        sink::wait_until_gone(pid).await;
    }
}

/// The process that `a_machine_without_a_command_does_not_outlive_its_owner` kills; nothing by itself.
#[tokio::test]
async fn owner_of_a_machine_without_a_command() {
    let Some(templates) = std::env::var_os(OWNER) else {
        eprintln!("skipped: is started by a_machine_without_a_command_does_not_outlive_its_owner");
        return;
    };
    let Some(mut host) = Host::new() else { return };
    // Nobody would ever connect to it, nor end it.
    host.stop_daemon();
    let machine = host.start(machine(&host, Path::new(&templates))).await;
    println!("machine {} {:?}", machine.pid(), machine.origin());
    std::future::pending::<()>().await;
}

/// A template is a gain, not a need.
#[tokio::test]
async fn where_no_template_can_be_kept_machines_boot() {
    let Some(host) = Host::new() else { return };
    let place = tempfile::NamedTempFile::new().unwrap();
    let machine = host.start(machine(&host, place.path())).await;
    assert_eq!(machine.origin(), Origin::Boot);
    let (outcome, ..) = host.run_in(machine, host.spec(&["true"])).await;
    assert_eq!(outcome, VmOutcome::CommandExited { status: 0 }, "{outcome}");
}

#[tokio::test]
async fn what_fails_for_another_reason_leaves_the_template() {
    let templates = tempfile::tempdir().unwrap();
    let Some(template) = save_one(templates.path()).await else {
        return;
    };
    let Some(mut host) = Host::new() else { return };
    let started = host.start(machine(&host, templates.path())).await;
    host.stop_daemon();
    let (outcome, ..) = host.run_in(started, host.spec(&["true"])).await;
    assert!(matches!(outcome, VmOutcome::ShareFailed { .. }), "{outcome}");
    assert!(template.exists());

    let Some(host) = Host::new() else { return };
    let mut spec = host.spec(&["true"]);
    spec.user = "nobody-here".parse().unwrap();
    let started = host.start(machine(&host, templates.path())).await;
    assert_eq!(started.origin(), Origin::Template);
    let (outcome, ..) = host.run_in(started, spec).await;
    assert!(matches!(outcome, VmOutcome::GuestFailed { .. }), "{outcome}");
    assert!(template.exists());
}
