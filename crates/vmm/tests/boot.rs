//! Real machines on a genuine virtio-fs daemon: what the host sees of a command is what the command did.
//!
//! The daemon is virtiofsd from `target/peers/bin`, the guest is Debian's kernel and busybox unpacked in
//! `target/guest`. Where either is absent the tests say so and pass, unless `NYDUSBOX_REQUIRE_PEERS=1`.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nydusbox_testkit::machine::sink::{self, Sink};
use nydusbox_testkit::machine::virtiofsd::{Host, path};
use nydusbox_vmm::{
    BootStage, GuestEvent, GuestStdio, GuestStep, MachineSpec, SharedDir, UpperDir, VmOutcome,
};
use tokio::io::{AsyncBufReadExt, BufReader};

/// All byte values, in an order without period, so that a lost, doubled or translated byte shows.
fn binary(len: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_u32;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[1]
    };
    (0..len).map(|_| next()).collect()
}

fn share(source: &str, target: &str, read_only: bool) -> SharedDir {
    SharedDir {
        source: path(source),
        target: path(target),
        read_only,
    }
}

/// Set for the process that boots a machine only to be killed.
const OWNER: &str = "NYDUSBOX_TEST_OWNER";

#[tokio::test]
async fn streams_files_and_status_are_the_commands_own() {
    let Some(host) = Host::new() else { return };
    fs::write(host.dir("share0").join("in"), "from the host").unwrap();
    let script = "cat; cat /share/in >&2; echo again >/dev/stderr; hostname >&2; pwd >&2; echo $# \"$1\" \"$X\" >&2; \
                  echo from the guest >/share/out; echo kept >/etc/new; exit 7";
    let mut spec = host.spec(&["sh", "-c", script, "sh", "a 'b' \u{fc}\u{102} $HOME\n\\"]);
    spec.shares = vec![share("/share0", "/share", false)];
    spec.workdir = path("/etc");
    spec.env.push(("X".into(), "x'y".into()));
    let input = binary(3 << 20);
    let (stdout, stderr) = (Sink::default(), Sink::default());
    let stdio = GuestStdio {
        stdin: Box::new(std::io::Cursor::new(input.clone())),
        ..GuestStdio::output(stdout.clone(), stderr.clone())
    };
    let mut vm = host.boot(spec, stdio).await;
    let outcome = vm.wait().await;

    assert_eq!(outcome, VmOutcome::CommandExited { status: 7 }, "{outcome}");
    assert!(stdout.take() == input, "stdin came back changed");
    assert_eq!(
        String::from_utf8(stderr.take()).unwrap(),
        "from the hostagain\nnydusbox\n/etc\n1 a 'b' \u{fc}\u{102} $HOME\n\\ x'y\n"
    );
    assert_eq!(
        fs::read_to_string(host.dir("share0").join("out")).unwrap(),
        "from the guest\n"
    );
    let upper = host.dir("containers/c1/snapshotdir/fs");
    assert_eq!(fs::read_to_string(upper.join("etc/new")).unwrap(), "kept\n");
    assert!(
        !host.dir("rootfs/etc/new").exists(),
        "the lower directory was written to"
    );
    assert_eq!(
        *vm.events().borrow(),
        [
            GuestEvent::Ready,
            GuestEvent::ShareMounted,
            GuestEvent::RootfsMounted,
            GuestEvent::CommandStarted,
            GuestEvent::Exited { status: 7 },
        ]
    );
    host.assert_gone(&vm);
}

#[tokio::test]
async fn all_output_arrives_although_the_reader_is_slow() {
    let Some(host) = Host::new() else { return };
    // Eight MiB, and a background process that still holds the streams when the command ends.
    let script = "sleep 1000 & i=0; while [ $i -lt 128 ]; do cat /data; i=$((i + 1)); done";
    let data = binary(64 << 10);
    fs::write(host.dir("rootfs").join("data"), &data).unwrap();
    let mut spec = host.spec(&["sh", "-c", script]);
    spec.upper = UpperDir::GuestMemory;
    let (stdout, mut reader) = sink::slow_sink();
    let mut vm = host.boot(spec, GuestStdio::output(stdout, Sink::default())).await;
    let (outcome, output) = tokio::join!(vm.wait(), reader.read_all());
    assert_eq!(outcome, VmOutcome::CommandExited { status: 0 }, "{outcome}");
    assert!(output == data.repeat(128), "{} bytes arrived", output.len());
    assert!(
        fs::read_dir(host.dir("containers/c1/snapshotdir/fs"))
            .unwrap()
            .next()
            .is_none()
    );
}

/// Both are names of busybox', of which the container has the one.
#[tokio::test]
async fn a_command_is_the_containers_own_program() {
    let Some(host) = Host::new() else { return };
    let own = host.dir("rootfs").join("bin/uname");
    fs::write(&own, "#!/bin/sh\necho \"$0\" of the container\n").unwrap();
    fs::set_permissions(&own, fs::Permissions::from_mode(0o755)).unwrap();
    let (outcome, stdout, stderr) = host.run(host.spec(&["uname", "-r"])).await;
    assert_eq!(outcome, VmOutcome::CommandExited { status: 0 }, "{stderr}");
    assert_eq!(stdout, "/bin/uname of the container\n");
    let Some(host) = Host::new() else { return };
    let (outcome, ..) = host.run(host.spec(&["dmesg"])).await;
    assert_eq!(outcome, VmOutcome::CommandExited { status: 127 }, "{outcome}");
}

#[tokio::test]
async fn a_status_that_is_not_the_commands_own_is_a_shells() {
    for (command, status) in [
        (&["no-such-command"][..], 127),
        (&["/etc"], 126),
        // Process 1 is killed by the kernel only.
        (&["sh", "-c", "ulimit -t 1; while :; do :; done"], 137),
        (&["sh", "-c", "kill -9 $$; exit 3"], 3),
        (&["true"], 0),
    ] {
        let Some(host) = Host::new() else { return };
        let (outcome, _, stderr) = host.run(host.spec(command)).await;
        assert_eq!(
            outcome,
            VmOutcome::CommandExited { status },
            "{command:?}: {outcome}"
        );
        assert_eq!(
            stderr.is_empty(),
            !matches!(status, 126 | 127),
            "{command:?}: {stderr}"
        );
    }
}

/// It is process 1, and what it signals is what it has started: not what carries its output.
#[tokio::test]
async fn a_command_has_its_processes_for_itself() {
    let Some(host) = Host::new() else { return };
    let script = "echo $$ /proc/[0-9]*; sleep 1000 & kill -TERM -1; wait $!; echo $?; sleep 1000 & kill -9 -1; \
                  wait $!; echo $?; sleep 1000 & kill -9 0; wait $!; echo $?; sleep 1000 & echo last >&2";
    let (outcome, stdout, stderr) = host.run(host.spec(&["sh", "-c", script])).await;
    assert_eq!(outcome, VmOutcome::CommandExited { status: 0 }, "{stderr}");
    assert_eq!(stdout, "1 /proc/1\n143\n137\n137\n");
    // What the shell says of them comes before.
    assert!(stderr.ends_with("last\n"), "{stderr}");
}

/// Otherwise what the host has just written is of the future, for `make` for one.
#[tokio::test]
async fn the_clock_is_the_hosts_and_not_only_to_the_second() {
    let Some(host) = Host::new() else { return };
    let spec = host.spec(&[
        "sh",
        "-c",
        "sleep 1.2; echo; cat; echo >/dev/shm/now; busybox stat -c %y /dev/shm/now",
    ]);
    let (mut answer, stdin) = tokio::io::duplex(16);
    let stdout = Sink::default();
    let stdio = GuestStdio {
        stdin: Box::new(stdin),
        ..GuestStdio::output(stdout.clone(), Sink::default())
    };
    let mut vm = host.boot(spec, stdio).await;
    tokio::select! {
        () = stdout.wait_for(b"\n") => {}
        early = vm.wait() => panic!("{early}"),
    }
    let seconds = || {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_secs_f64()
            % 60.0
    };
    let before = seconds();
    tokio::io::AsyncWriteExt::shutdown(&mut answer).await.unwrap();
    let outcome = vm.wait().await;
    assert_eq!(outcome, VmOutcome::CommandExited { status: 0 }, "{outcome}");
    // 2026-11-29 04:21:07.123456789 +0000
    let told = stdout.text();
    let (_, seconds) = told.trim().trim_end_matches(" +0000").rsplit_once(':').unwrap();
    let guest: f64 = seconds.parse().unwrap();
    let behind = (before - guest).rem_euclid(60.0);
    // It was asked later than `before`, and may be so by much on a busy host.
    assert!(!(0.3..59.0).contains(&behind), "{behind} s behind: {told}");
}

/// Nothing is mounted but what no image can have.
#[tokio::test]
async fn what_an_image_has_in_run_is_there_and_what_is_written_there_is_kept() {
    let Some(host) = Host::new() else { return };
    let run = host.dir("rootfs/run/app");
    fs::create_dir_all(&run).unwrap();
    fs::set_permissions(&run, fs::Permissions::from_mode(0o2750)).unwrap();
    fs::create_dir(host.dir("rootfs/var")).unwrap();
    std::os::unix::fs::symlink("/run", host.dir("rootfs/var/run")).unwrap();
    let script = "busybox stat -c %a /var/run/app; echo kept >/var/run/app/new; \
                  busybox cut -d ' ' -f 2 /proc/mounts | busybox sort -u";
    let (outcome, stdout, stderr) = host.run(host.spec(&["sh", "-c", script])).await;
    assert_eq!(outcome, VmOutcome::CommandExited { status: 0 }, "{stderr}");
    assert_eq!(
        stdout,
        "2750\n/\n/dev\n/dev/pts\n/dev/shm\n/etc/hosts\n/proc\n/sys\n"
    );
    let kept = host.dir("containers/c1/snapshotdir/fs/run/app/new");
    assert_eq!(fs::read_to_string(kept).unwrap(), "kept\n");
}

/// Where the image's file is, links and all, and nowhere else.
#[tokio::test]
async fn the_names_of_the_machine_are_known_and_the_images_file_is_not_changed() {
    for file in [None, Some("10.0.0.7 other\n")] {
        let Some(host) = Host::new() else { return };
        let root = host.dir("rootfs");
        if let Some(text) = file {
            fs::create_dir(root.join("usr")).unwrap();
            fs::write(root.join("usr/hosts"), text).unwrap();
            std::os::unix::fs::symlink("/../usr/hosts", root.join("etc/hosts")).unwrap();
        }
        let script = "echo $HOSTNAME; cat /etc/hosts; busybox ping -c 1 localhost >&2 && \
                      busybox ping -c 1 $HOSTNAME >&2 && echo 10.0.0.8 new >>/etc/hosts";
        let (outcome, stdout, stderr) = host.run(host.spec(&["sh", "-c", script])).await;
        assert_eq!(outcome, VmOutcome::CommandExited { status: 0 }, "{stderr}");
        assert_eq!(
            stdout,
            format!(
                "nydusbox\n{}127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n127.0.0.1 nydusbox\n",
                file.unwrap_or_default()
            )
        );
        let upper = host.dir("containers/c1/snapshotdir/fs");
        let kept = fs::read_to_string(upper.join("etc/hosts")).ok();
        assert_eq!(kept.as_deref(), file.is_none().then_some(""), "only the place");
        assert!(!upper.join("usr").exists());
    }
}

/// As many as a runtime permits, and not more than programs expect who have not asked.
#[tokio::test]
async fn a_command_may_have_many_files_open() {
    let Some(host) = Host::new() else { return };
    let (outcome, stdout, stderr) = host.run(host.spec(&["sh", "-c", "ulimit -Sn; ulimit -Hn"])).await;
    assert_eq!(outcome, VmOutcome::CommandExited { status: 0 }, "{stderr}");
    assert_eq!(stdout, "1024\n1048576\n");
}

#[tokio::test]
async fn a_read_only_share_cannot_be_written() {
    let Some(host) = Host::new() else { return };
    let mut spec = host.spec(&["sh", "-c", "echo x >/a/new || echo refused; echo y >/b/new"]);
    spec.shares = vec![share("/share0", "/a", true), share("/share0", "/b", false)];
    let (outcome, stdout, _) = host.run(spec).await;
    assert_eq!(outcome, VmOutcome::CommandExited { status: 0 }, "{outcome}");
    assert_eq!(stdout, "refused\n");
    assert_eq!(fs::read_to_string(host.dir("share0").join("new")).unwrap(), "y\n");
}

#[tokio::test]
async fn a_daemon_without_privileges_still_keeps_the_containers_writes() {
    // Without CAP_SYS_ADMIN, virtiofsd can't set trusted.* attributes.
    let Some(host) = Host::with_daemon_arguments(&[]) else {
        return;
    };
    fs::create_dir(host.dir("rootfs").join("old")).unwrap();
    let (outcome, stdout, stderr) = host
        .run(host.spec(&[
            "sh",
            "-c",
            "busybox rm -r /old && busybox mkdir /old && echo x >/old/new && cat /old/*",
        ]))
        .await;
    assert_eq!(
        outcome,
        VmOutcome::CommandExited { status: 0 },
        "{outcome} {stderr}"
    );
    assert_eq!(stdout, "x\n");
    assert_eq!(
        fs::read_to_string(host.dir("containers/c1/snapshotdir/fs").join("old/new")).unwrap(),
        "x\n"
    );
}

#[tokio::test]
async fn a_step_that_fails_in_the_guest_is_named() {
    let Some(host) = Host::new() else { return };
    let mut spec = host.spec(&["true"]);
    spec.shares = vec![share("/no-such-share", "/a", false)];
    let (outcome, ..) = host.run(spec).await;
    let VmOutcome::GuestFailed { step, message } = outcome else {
        panic!("{outcome}")
    };
    assert_eq!(
        (step, message.as_str()),
        (GuestStep::Shares, "the share has no directory /no-such-share")
    );
}

/// In whatever order they are given; and what is in the container in any case is over what a share has there.
#[tokio::test]
async fn a_share_is_not_hidden_by_another_nor_hides_the_hosts() {
    let Some(host) = Host::new() else { return };
    let at = |name: &str| host.dir("share0").join(name);
    for dir in ["one", "two/sub", "etc"] {
        fs::create_dir_all(at(dir)).unwrap();
    }
    for file in ["one/inner", "two/outer", "etc/hosts"] {
        fs::write(at(file), "").unwrap();
    }
    let mut spec = host.spec(&[
        "sh",
        "-c",
        "ls /data /data/sub; grep -q localhost /etc/hosts && echo known",
    ]);
    spec.shares = vec![
        share("/share0/one", "/data/sub", false),
        share("/share0/two", "/data", false),
        share("/share0/etc", "/etc", false),
    ];
    let (outcome, stdout, stderr) = host.run(spec).await;
    assert_eq!(
        outcome,
        VmOutcome::CommandExited { status: 0 },
        "{outcome} {stderr}"
    );
    assert_eq!(stdout, "/data:\nouter\nsub\n\n/data/sub:\ninner\nknown\n");
    assert_eq!(fs::read(at("etc/hosts")).unwrap(), b"", "the host's is as it was");
}

/// A share's target, a working directory and the users' file that are links out of the image are what they would be
/// for the container.
#[tokio::test]
async fn a_command_runs_as_the_user_that_the_containers_files_know() {
    let Some(host) = Host::new() else { return };
    fs::write(host.dir("share0").join("in"), "shared").unwrap();
    let root = host.dir("rootfs");
    for (link, target) in [
        ("trap", "/modules"),
        ("etc/passwd", "/../users"),
        ("srv", "/var/lib"),
    ] {
        std::os::unix::fs::symlink(target, root.join(link)).unwrap();
    }
    fs::write(root.join("users"), "app:x:1000:1001::/srv/my app:/bin/sh\n").unwrap();
    fs::write(root.join("etc/group"), "adm:x:4:app\nstaff:x:50:other,app\n").unwrap();
    let script = "busybox id; pwd; echo $HOME; cat /modules/in; echo; echo again >/dev/stderr; \
                  busybox grep CapEff /proc/self/status; busybox httpd -p 80; echo $?; \
                  cat /proc/sys/net/ipv4/ping_group_range; echo x >/new || exit 7";
    let mut spec = host.spec(&["sh", "-c", script]);
    spec.user = "app".parse().unwrap();
    spec.workdir = path("/srv/data/new");
    spec.shares = vec![share("/share0", "/trap", false)];
    let (outcome, stdout, stderr) = host.run(spec).await;
    assert_eq!(
        outcome,
        VmOutcome::CommandExited { status: 7 },
        "{outcome} {stderr}"
    );
    assert_eq!(
        stdout,
        "uid=1000(app) gid=1001 groups=4(adm),50(staff),1001\n/var/lib/data/new\n/srv/my app\nshared\n\
         CapEff:\t0000000000000000\n0\n0\t2147483647\n"
    );
    assert!(
        stderr.starts_with("again\n") && stderr.contains("/new"),
        "{stderr}"
    );
}

#[tokio::test]
async fn a_user_that_the_container_does_not_know_is_named() {
    let Some(host) = Host::new() else { return };
    let mut spec = host.spec(&["true"]);
    spec.user = "app:staff".parse().unwrap();
    let (outcome, ..) = host.run(spec).await;
    let VmOutcome::GuestFailed { step, message } = outcome else {
        panic!("{outcome}")
    };
    assert_eq!(
        (step, message.as_str()),
        (GuestStep::User, "the container's /etc/passwd has no user app")
    );
}

#[tokio::test]
async fn kill_ends_a_running_command_and_drop_ends_a_machine() {
    let Some(host) = Host::new() else { return };
    let spec = host.spec(&["sh", "-c", "echo running; sleep 1000"]);
    let stdout = Sink::default();
    let stdio = GuestStdio::output(stdout.clone(), Sink::default());
    let mut vm = host.boot(spec, stdio).await;
    tokio::select! {
        () = stdout.wait_for(b"running\n") => {}
        early = vm.wait() => panic!("{early}"),
    }
    assert_eq!(vm.kill().await, VmOutcome::Killed);
    assert_eq!(
        vm.kill().await,
        VmOutcome::Killed,
        "a second kill changes nothing"
    );
    host.assert_gone(&vm);

    let Some(host) = Host::new() else { return };
    let stdio = GuestStdio::output(Sink::default(), Sink::default());
    let vm = host.boot(host.spec(&["true"]), stdio).await;
    let (pid, mut events) = (vm.pid(), vm.events());
    drop(vm);
    // The channel closes when the driver, and with it the child, has been dropped.
    while events.changed().await.is_ok() {}
    sink::wait_until_gone(pid).await;
}

/// SIGKILL leaves its victim no time to kill anything; the guest itself notices that its host is gone.
#[tokio::test]
async fn a_machine_does_not_outlive_its_owner() {
    if Host::new().is_none() {
        return;
    }
    // The victim can't remove its directories; they are in this one.
    let dir = tempfile::tempdir().unwrap();
    let mut owner = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "owner_of_a_machine", "--nocapture"])
        .env(OWNER, "1")
        .env("TMPDIR", dir.path())
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(owner.stdout.take().unwrap()).lines();
    let pid = loop {
        let line = lines
            .next_line()
            .await
            .unwrap()
            .expect("the owner prints its machine's pid");
        if let Some((_, pid)) = line.split_once("machine ") {
            break pid.parse().unwrap();
        }
    };
    owner.kill().await.unwrap();
    sink::wait_until_gone(pid).await;
}

/// The process that `a_machine_does_not_outlive_its_owner` kills; nothing by itself.
#[tokio::test]
async fn owner_of_a_machine() {
    if std::env::var_os(OWNER).is_none() {
        eprintln!("skipped: is started by a_machine_does_not_outlive_its_owner");
        return;
    }
    let Some(host) = Host::new() else { return };
    // Whoever it kills, what watches the host is not among them.
    let spec = host.spec(&["sh", "-c", "kill -9 -1; echo running; sleep 1000"]);
    let stdout = Sink::default();
    let stdio = GuestStdio::output(stdout.clone(), Sink::default());
    let mut vm = host.boot(spec, stdio).await;
    tokio::select! {
        () = stdout.wait_for(b"running\n") => println!("machine {}", vm.pid()),
        early = vm.wait() => panic!("{early}"),
    }
    let _ = vm.wait().await;
}

#[tokio::test]
async fn a_boot_that_takes_too_long_is_stopped() {
    let Some(host) = Host::new() else { return };
    let machine = MachineSpec {
        boot_deadline: Duration::from_millis(50),
        ..host.machine()
    };
    let machine = host.start(machine).await;
    let (outcome, ..) = host.run_in(machine, host.spec(&["true"])).await;
    assert!(
        matches!(
            outcome,
            VmOutcome::BootDeadline {
                stage: BootStage::Booting,
                reached: None,
                ..
            }
        ),
        "{outcome}"
    );
}

#[tokio::test]
async fn a_vmm_that_refuses_to_start_is_quoted() {
    let Some(host) = Host::new() else { return };
    let vmm = host.dir("vm").join("vmm");
    fs::write(&vmm, "#!/bin/sh\necho no such machine >&2; exit 3\n").unwrap();
    fs::set_permissions(&vmm, fs::Permissions::from_mode(0o755)).unwrap();
    let machine = MachineSpec {
        qemu: vmm,
        ..host.machine()
    };
    let machine = host.start(machine).await;
    let (outcome, ..) = host.run_in(machine, host.spec(&["true"])).await;
    let VmOutcome::VmmExited { status, vmm, .. } = outcome else {
        panic!("{outcome}")
    };
    assert_eq!(
        (status.code(), vmm),
        (Some(3), vec!["no such machine".to_owned()])
    );
}

#[tokio::test]
async fn a_daemon_that_does_not_listen_is_named() {
    let Some(mut host) = Host::new() else { return };
    host.stop_daemon();
    let (outcome, ..) = host.run(host.spec(&["true"])).await;
    let VmOutcome::ShareFailed { message } = outcome else {
        panic!("{outcome}")
    };
    assert!(
        message.contains("fs.sock") && message.contains("refused"),
        "{message}"
    );
}
