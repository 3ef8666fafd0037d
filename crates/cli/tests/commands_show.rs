//! What the commands show of a sandbox besides its status: events, logs, arguments for others; and the images that
//! snapshotters describe by options.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Stdio};

use base64::Engine;
use common::sandboxes::{Sandboxes, kill, pid, text};
use common::{nydusbox, peer, told};
use nydusbox_testkit::guest::{FuseClient, GuestConfig};
use rustix::process::Signal;
use serde_json::{Value, json};

/// A command that goes on, and its lines.
struct Following {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Following {
    fn begin(s: &Sandboxes, args: &[&str]) -> Self {
        let mut child = s.command(args).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    fn next(&mut self) -> Option<String> {
        self.lines.next().map(Result::unwrap)
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn names(lines: &str) -> Vec<String> {
    let event = |line: &str| serde_json::from_str::<Value>(line).unwrap()["event"].clone();
    lines
        .lines()
        .map(|l| event(l).as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn events_are_told_from_the_start_to_the_end() {
    let s = Sandboxes::new();
    let image = s.image();
    s.start("s1", None);
    let mut follow = Following::begin(&s, &["events", "s1", "--follow", "--json"]);
    assert_eq!(names(&s.ok(&["events", "s1", "--json"])), ["started", "mounted"]);
    s.mount("s1", "c1", &image);
    s.ok(&["umount", "s1", "c1"]);
    let text = s.ok(&["events", "s1"]);
    let last = text.lines().last().unwrap();
    assert!(last.ends_with("  unmounted  at=/rafs/c1/lowerdir"), "{text}");
    s.ok(&["stop", "s1"]);
    let mut told = String::new();
    while let Some(line) = follow.next() {
        told += &format!("{line}\n");
    }
    let told = names(&told);
    assert_eq!(
        &told[..5],
        ["started", "mounted", "mounted", "unmounted", "stopping"]
    );
    assert_eq!(told.last().unwrap(), "stopped");
    assert!(follow.child.wait().unwrap().success());
}

#[test]
fn a_supervisor_killed_under_a_follower_is_named() {
    let s = Sandboxes::new();
    let info = s.start("s1", None);
    let mut command = s.command(&["events", "s1", "--follow"]);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().contains("started"));
    kill(pid(&info, "supervisor"), Signal::KILL);
    let (code, _, err) = told(&child.wait_with_output().unwrap());
    assert!(code == 4 && err.contains("`nydusbox adopt s1`"), "{code} {err}");
}

#[test]
fn logs_are_the_daemons_lines_and_are_followed_to_the_end() {
    for daemon in [None, peer("nydusd")] {
        let s = Sandboxes::new();
        s.start("s1", daemon.as_deref());
        let logged = s.ok(&["logs", "s1"]);
        let first = logged.lines().next().unwrap();
        assert!(!first.is_empty());
        let mut follow = Following::begin(&s, &["logs", "s1", "--follow", "--json"]);
        assert_eq!(follow.next().unwrap(), json!({"line": first}).to_string());
        let own = s.ok(&["logs", "s1", "--supervisor"]);
        assert!(own.contains("serving sandbox=s1"), "{own}");
        s.ok(&["stop", "s1"]);
        while follow.next().is_some() {}
        assert!(follow.child.wait().unwrap().success());
    }
}

#[test]
fn logs_can_be_read_after_the_supervisor_was_killed() {
    let s = Sandboxes::new();
    let info = s.start("s1", None);
    // What the supervisor has not read of the daemon's output goes with it.
    common::sandboxes::until("it is logged", || s.ok(&["logs", "s1"]).contains("serving"));
    kill(pid(&info, "supervisor"), Signal::KILL);
    common::sandboxes::until("it is gone", || {
        !common::sandboxes::runs(pid(&info, "supervisor"))
    });
    let (code, out, err) = s.run(&["logs", "s1", "--follow"]);
    assert_eq!(code, 4, "{err}");
    assert!(out.contains("serving") && err.contains("is gone"), "{out} {err}");
}

#[test]
fn figures_are_those_of_the_daemon() {
    let s = Sandboxes::new();
    s.start("s1", None);
    let text = s.ok(&["metrics", "s1"]);
    assert!(
        text.lines().any(
            |l| l == r#"nydusbox_fsd_mount_info{id="s1",mount="/containers",fs_type="passthrough_fs"} 1"#
        ),
        "{text}"
    );
    if let Some(nydusd) = peer("nydusd") {
        s.start("s2", Some(&nydusd));
        s.refused(&["metrics", "s2"], 1, &["s2", "stock nydusd"]);
    }
}

#[test]
fn a_share_is_read_only_and_mapped_if_asked_for() {
    let s = Sandboxes::new();
    let mut args = s.start_args("s1", None);
    args.extend([
        "--readonly".into(),
        "--xattrmap".into(),
        ":map::user.guest.:".into(),
    ]);
    s.json(&args.iter().map(String::as_str).collect::<Vec<_>>());
    let socket = s.state_dir().join("s1/vhost.sock");
    let mut fs = FuseClient::mount(&socket, GuestConfig::default()).unwrap();
    let share = fs.resolve("/containers").unwrap().nodeid;
    let refused = fs.mkdir(share, b"new", 0o755).unwrap_err();
    assert_eq!(refused.errno(), Some(rustix::io::Errno::ROFS));
    for (rules, word) in [(":map", "rule 1"), (":ok:all:", "rule 1")] {
        let mut args = s.start_args("s2", None);
        args.extend(["--xattrmap".into(), rules.into()]);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        s.refused(&args, 1, &["xattrmap", word]);
    }
    if let Some(nydusd) = peer("nydusd") {
        let mut args = s.start_args("s3", Some(&nydusd));
        args.push("--readonly".into());
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        s.refused(&args, 1, &["stock nydusd"]);
    }
}

#[test]
fn the_log_level_is_changed_while_the_daemon_runs() {
    let s = Sandboxes::new();
    let image = s.image();
    s.start("s1", None);
    let mount = |container: &str| {
        s.mount("s1", container, &image);
        s.ok(&["logs", "s1"])
    };
    assert_eq!(s.json(&["log-level", "s1", "off"]), json!({"level": "off"}));
    let quiet = s.ok(&["logs", "s1"]);
    assert_eq!(mount("c1"), quiet);
    s.ok(&["log-level", "s1", "debug"]);
    assert_ne!(mount("c2"), quiet);
    s.refused(&["log-level", "s1", "loud"], 2, &["loud"]);
    if let Some(nydusd) = peer("nydusd") {
        s.start("s2", Some(&nydusd));
        s.ok(&["log-level", "s2", "debug"]);
    }
}

#[test]
fn arguments_are_those_of_the_sandbox() {
    let s = Sandboxes::new();
    let (bootstrap, config) = s.image();
    s.start("s1", None);
    let socket = text(&s.state_dir().join("s1/vhost.sock"));
    assert_eq!(
        s.json(&["emit", "s1", "qemu", "--memory", "1G", "--queue-size", "512"]),
        json!([
            "-m",
            "1073741824B",
            "-object",
            "memory-backend-memfd,id=mem,size=1073741824B,share=on",
            "-chardev",
            format!("socket,id=fs,path={socket}"),
            "-device",
            "vhost-user-fs-pci,chardev=fs,queue-size=512,tag=kataShared",
        ])
    );
    assert_eq!(
        s.ok(&["emit", "s1", "cloud-hypervisor", "--tag", "t"]),
        format!(
            "--memory size=536870912,shared=on --fs tag=t,socket={socket},num_queues=1,queue_size=1024\n"
        )
    );
    assert_eq!(
        s.json(&["emit", "s1", "cloud-hypervisor-config", "--memory", "1G"]),
        json!({
            "memory": {"size": 1_u64 << 30, "shared": true},
            "fs": [{"tag": "kataShared", "socket": socket, "num_queues": 1, "queue_size": 1024}],
        })
    );
    s.refused(&["emit", "s1", "qemu", "--queue-size", "2048"], 1, &["2048"]);
    let storages = s.json(&["emit", "s1", "kata-storage"]);
    assert_eq!(storages.as_array().unwrap().len(), 1);
    s.ok(&[
        "mount",
        "s1",
        "c1",
        "--bootstrap",
        &bootstrap,
        "--config",
        &config,
    ]);
    let (code, storages, warning) = s.run(&["emit", "s1", "kata-storage", "c1"]);
    assert_eq!(code, 0, "{warning}");
    assert!(
        warning.starts_with("warning: c1 was mounted without --snapshotdir"),
        "{warning}"
    );
    let storages: Value = serde_json::from_str(&storages).unwrap();
    assert_eq!(
        storages[1]["mount_point"],
        "/run/kata-containers/shared/containers/c1/rootfs"
    );
    assert_eq!(
        storages[1]["options"][2],
        "lowerdir=/run/kata-containers/shared/rafs/c1/lowerdir"
    );
}

#[test]
fn a_vmm_that_is_configured_already_is_judged() {
    let s = Sandboxes::new();
    s.start("s1", None);
    let file = s.dir.join("config");
    let check = |what: &str, config: &str, reasons: &[&str]| {
        std::fs::write(&file, config).unwrap();
        let args = ["emit", "s1", what, "--check", &text(&file)];
        let (code, out, err) = s.run(&args);
        assert_eq!(code == 0, reasons.is_empty(), "{out} {err}");
        for reason in reasons {
            assert!(out.contains(reason), "{reason}: {out}");
        }
    };
    // What is emitted passes, once the machine uses the memory.
    let arguments = s.json(&["emit", "s1", "qemu"]);
    let mut arguments: Vec<&str> = arguments
        .as_array()
        .unwrap()
        .iter()
        .map(|a| a.as_str().unwrap())
        .collect();
    check("qemu", &arguments.join("\n"), &["memory is not shared"]);
    arguments.extend(["-machine", "q35,memory-backend=mem"]);
    check("qemu", &arguments.join("\0"), &[]);
    let config = s.json(&["emit", "s1", "cloud-hypervisor-config"]);
    check("cloud-hypervisor", &config.to_string(), &[]);
    let private = r#"{"memory": {"shared": false}, "fs": [{"tag": "t", "queue_size": 2048}]}"#;
    check("cloud-hypervisor-config", private, &["not shared", "2048"]);
    let dax = r#"[{"fstype": "virtiofs", "source": "t", "options": ["dax"]}]"#;
    check("kata-storage", dax, &["DAX"]);
    s.refused(
        &["emit", "s1", "kata-storage", "--check", "/nowhere"],
        1,
        &["/nowhere"],
    );
}

#[test]
fn an_image_of_another_version_than_the_option_says_is_refused_before_it_is_mounted() {
    let s = Sandboxes::new();
    let (bootstrap, config) = s.image();
    s.start("s1", None);
    let mount = |source: &str, version: &str| {
        let option = json!({
            "source": source,
            "config": std::fs::read_to_string(&config).unwrap(),
            "snapshotdir": text(&s.dir.join("snapshot")),
            "fs_version": version,
        });
        let option = format!("extraoption={}", base64(&option.to_string()));
        s.run(&["mount", "s1", "c1", "--mount-option", &option])
    };
    for (source, version, words) in [
        (bootstrap.as_str(), "v5", "is RAFS v6, the mount says v5"),
        (&config, "v6", "neither RAFS v5 nor v6"),
        ("/nowhere", "v6", "/nowhere"),
    ] {
        let (code, out, err) = mount(source, version);
        assert!(code == 1 && err.contains(words), "{words}: {out} {err}");
    }
    assert!(!s.ok(&["events", "s1"]).contains("c1"));
}

/// The snapshot's directory: an option names it, so it is bound into the share. Takes root.
#[test]
fn an_extraoption_mounts_image_and_snapshot_directory() {
    let s = Sandboxes::new();
    let (bootstrap, config) = s.image();
    let snapshot = s.dir.mkdir("snapshot");
    std::fs::create_dir(snapshot.join("fs")).unwrap();
    std::fs::create_dir(snapshot.join("work")).unwrap();
    std::fs::write(snapshot.join("fs/mine"), "the user's").unwrap();
    s.start("s1", None);
    let option = json!({
        "source": bootstrap,
        "config": std::fs::read_to_string(&config).unwrap(),
        "snapshotdir": text(&snapshot),
        "fs_version": "v6",
    });
    let option = format!("extraoption={}", base64(&option.to_string()));
    let argument = ["mount", "s1", "c1", "--mount-option", &option];
    assert_eq!(s.json(&argument)["outcome"], "mounted");
    // The same from standard input.
    let mut child = s
        .command(&["mount", "s1", "c1", "--mount-option", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    writeln!(stdin, "workdir={}\n{option}", text(&snapshot.join("work"))).unwrap();
    drop(stdin);
    let (code, out, _) = told(&child.wait_with_output().unwrap());
    assert_eq!(
        (code, out.as_str()),
        (0, "/rafs/c1/lowerdir was mounted already\n")
    );
    let shown = s.share().join("c1/snapshotdir/fs/mine");
    assert_eq!(std::fs::read_to_string(&shown).unwrap(), "the user's");
    assert_eq!(
        s.json(&["status", "s1"])["mounts"][1]["snapshotdir"],
        text(&snapshot)
    );
    s.ok(&["umount", "s1", "c1"]);
    assert!(!shown.exists());
    assert_eq!(
        std::fs::read_to_string(snapshot.join("fs/mine")).unwrap(),
        "the user's"
    );
    s.ok(&["stop", "s1"]);
    s.assert_nothing_left();
}

#[test]
fn layers_are_mounted_and_unmounted_together() {
    let s = Sandboxes::new();
    let (bootstrap, config) = s.image();
    let snapshot = s.dir.mkdir("snapshot");
    for dir in ["fs", "work"] {
        std::fs::create_dir(snapshot.join(dir)).unwrap();
    }
    s.start("s1", None);
    let layer = |source: &str| {
        let volume = json!({
            "volume_type": "layer_nydus_fs",
            "source": source,
            "nydus_image": {"config": std::fs::read_to_string(&config).unwrap(), "snapshot_dir": text(&snapshot)},
            "fs_type": "rafsv6",
            "options": [],
        });
        format!("io.katacontainers.volume={}", base64(&volume.to_string()))
    };
    // A bootstrap by its first bytes, and nothing to be mounted.
    let cut = s.dir.join("cut.boot");
    std::fs::write(&cut, &std::fs::read(&bootstrap).unwrap()[..1100]).unwrap();
    let (good, bad) = (layer(&bootstrap), layer(&text(&cut)));
    let mount = |top: &str, below: &str| {
        s.run(&[
            "mount",
            "s1",
            "c1",
            "--mount-option",
            top,
            "--mount-option",
            below,
            "--json",
        ])
    };
    let places = || -> Vec<Value> {
        let info = s.json(&["status", "s1"]);
        info["mounts"]
            .as_array()
            .unwrap()
            .iter()
            .map(|m| m["at"].clone())
            .collect()
    };
    // The lower one is mounted first and goes again.
    let (code, _, err) = mount(&bad, &good);
    assert_eq!((code, places()), (1, vec![json!("/containers")]), "{err}");
    let (code, out, err) = mount(&good, &good);
    assert_eq!(code, 0, "{out} {err}");
    assert_eq!(
        places(),
        ["/containers", "/rafs/c1/lowerdir1", "/rafs/c1/lowerdir"]
    );
    let storages = s.json(&["emit", "s1", "kata-storage", "c1"]);
    let lowers = storages[1]["options"][2].as_str().unwrap().to_owned();
    assert!(lowers.ends_with("/rafs/c1/lowerdir1"), "{lowers}");
    assert_eq!(s.json(&["umount", "s1", "c1"])["outcome"], "unmounted");
    assert_eq!(places(), ["/containers"]);
}

#[test]
fn completions_and_man_pages_come_from_the_command_line_itself() {
    for shell in ["bash", "zsh", "fish"] {
        let (code, out, _) = told(&nydusbox().args(["completions", shell]).output().unwrap());
        assert!(
            code == 0 && out.contains("log-level") && out.contains("umount"),
            "{shell}"
        );
    }
    let s = Sandboxes::new();
    let dir = s.dir.join("man");
    s.ok(&["man", &text(&dir)]);
    for page in ["nydusbox.1", "nydusbox-start.1", "nydusbox-umount.1"] {
        assert!(
            std::fs::read_to_string(dir.join(page))
                .unwrap()
                .starts_with(".ie"),
            "{page}"
        );
    }
    assert!(s.ok(&["man"]).contains("nydusbox"));
}

fn base64(text: &str) -> String {
    base64::engine::general_purpose::STANDARD.encode(text)
}
