//! A real machine on a genuine nydusd, laid out as Kata does it: RAFS below, the snapshot's directory on top.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;

use nydusbox_testkit::machine::nydusd::KataSandbox;
use nydusbox_testkit::machine::sink::Sink;
use nydusbox_testkit::machine::virtiofsd::path;
use nydusbox_vmm::{GuestStdio, Machine, MachineConfig, SharedDir, VmConfig, VmOutcome};

#[tokio::test]
async fn a_rafs_image_runs_and_its_writes_reach_the_snapshot() {
    let Some(sandbox) = KataSandbox::new() else { return };
    // 24 MiB written without a sync: nydusd lets the guest cache writes, and the end must not lose any.
    let script = "cat /etc/greeting; echo changed >/etc/greeting; cat /etc/greeting; busybox sha256sum /data; \
                  i=0; while [ $i -lt 24 ]; do cat /data; i=$((i + 1)); done >/share/copies; cp /data /copy";
    let mut spec = sandbox.spec(&["sh", "-c", script]);
    spec.shares = vec![SharedDir {
        source: path("/share0"),
        target: path("/share"),
        read_only: false,
    }];
    let (stdout, stderr) = (Sink::default(), Sink::default());
    let stdio = GuestStdio::output(stdout.clone(), stderr.clone());
    let machine = MachineConfig::new(sandbox.machine()).unwrap();
    let machine = Machine::start(&machine, &sandbox.vm_dir()).await.unwrap();
    let mut vm = machine.run(&VmConfig::new(spec).unwrap(), stdio);
    let outcome = vm.wait().await;

    assert_eq!(
        outcome,
        VmOutcome::CommandExited { status: 0 },
        "{outcome} {}",
        stderr.text()
    );
    let sum = std::process::Command::new("sha256sum")
        .arg(sandbox.source("data"))
        .output()
        .unwrap();
    let sum = String::from_utf8(sum.stdout).unwrap();
    let sum = sum.split_whitespace().next().unwrap();
    assert_eq!(stdout.text(), format!("hello\nchanged\n{sum}  /data\n"));
    let data = fs::read(sandbox.source("data")).unwrap();
    assert!(
        fs::read(sandbox.share("copies")).unwrap() == data.repeat(24),
        "the share lacks what was written"
    );
    assert!(
        fs::read(sandbox.upper("copy")).unwrap() == data,
        "the snapshot lacks what was written"
    );
    assert_eq!(
        fs::read_to_string(sandbox.upper("etc/greeting")).unwrap(),
        "changed\n"
    );
}
