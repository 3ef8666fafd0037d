//! The commands on a sandbox's whole life, with our daemon and with the genuine nydusd: what they print, in both
//! forms, and that repeating them is harmless.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use common::sandboxes::{Sandboxes, kill, pid, runs, steady, text, until};
use common::{peer, told};
use rustix::process::Signal;
use serde_json::{Value, json};

/// Both daemons; the genuine one where it is installed.
fn daemons() -> Vec<Option<PathBuf>> {
    let mut daemons = vec![None];
    daemons.extend(peer("nydusd").map(Some));
    daemons
}

fn names(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn a_whole_life_by_commands() {
    for daemon in daemons() {
        let s = Sandboxes::new();
        let program = daemon
            .as_deref()
            .unwrap_or(Path::new(env!("CARGO_BIN_EXE_nydusbox")));
        let (bootstrap, config) = s.image();

        let info = s.start("s1", daemon.as_deref());
        assert_eq!(
            names(&info),
            [
                "daemon",
                "exit",
                "health",
                "id",
                "mounts",
                "sockets",
                "state",
                "supervisor",
                "vmm"
            ]
        );
        assert_eq!(info["id"], "s1");
        assert_eq!(info["state"], "serving");
        assert_eq!(info["daemon"]["program"], text(program));
        assert!(info["daemon"]["version"].is_string(), "{info}");
        assert_eq!(names(&info["health"]), ["api", "backend", "in_flight", "vmm"]);
        // A stock nydusd does not tell.
        assert_ne!(info["vmm"]["attached"], true);
        assert!(daemon.is_some() || info["vmm"]["attached"] == false, "{info}");
        assert_eq!(
            info["mounts"],
            json!([{"at": "/containers", "fs_type": "passthrough_fs", "source": text(&s.share()), "snapshotdir": null, "confirmed": true}])
        );
        assert!(runs(pid(&info, "supervisor")) && runs(pid(&info, "daemon")));
        let info = steady(info);
        assert_eq!(steady(s.json(&["status", "s1"])), info);
        assert_eq!(steady(s.json(&["status"])), json!([info]));
        assert_eq!(steady(s.json(&["list"])), json!([info]));
        until("the daemon's health is known", || {
            s.json(&["status", "s1"])["health"]["api"]["state"] == "ok"
        });

        let mount = [
            "mount",
            "s1",
            "c1",
            "--bootstrap",
            &bootstrap,
            "--config",
            &config,
        ];
        let changed = |outcome| json!({"at": "/rafs/c1/lowerdir", "outcome": outcome});
        assert_eq!(s.json(&mount), changed("mounted"));
        assert_eq!(s.json(&mount), changed("already_mounted"));
        let mounts = &s.json(&["status", "s1"])["mounts"];
        assert_eq!(
            mounts[1],
            json!({"at": "/rafs/c1/lowerdir", "fs_type": "rafs", "source": bootstrap, "snapshotdir": null, "confirmed": true})
        );
        s.refused(
            &["mount", "s1", "c1", "--bootstrap", &config, "--config", &config],
            5,
            &["something else is mounted there"],
        );
        let remount = [
            "remount",
            "s1",
            "c1",
            "--bootstrap",
            &bootstrap,
            "--config",
            &config,
        ];
        assert_eq!(s.json(&remount), changed("remounted"));
        assert_eq!(s.json(&["umount", "s1", "c1"]), changed("unmounted"));
        assert_eq!(s.json(&["umount", "s1", "c1"]), changed("was_not_mounted"));

        let stopped = s.json(&["stop", "s1"]);
        let step = if daemon.is_some() { "killed" } else { "exited" };
        assert_eq!(
            stopped,
            json!({"id": "s1", "step": step, "unmount_failures": [], "leftovers": []})
        );
        s.assert_nothing_left();
    }
}

#[test]
fn the_same_is_said_as_text() {
    let s = Sandboxes::new();
    let (bootstrap, config) = s.image();
    let args = s.start_args("s1", None);
    let out = s.ok(&args.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(
        out,
        format!(
            "sandbox s1 serves {} on {}\n",
            s.share().display(),
            s.state_dir().join("s1/vhost.sock").display()
        )
    );
    let mount = [
        "mount",
        "s1",
        "c1",
        "--bootstrap",
        &bootstrap,
        "--config",
        &config,
    ];
    assert_eq!(s.ok(&mount), "/rafs/c1/lowerdir is mounted\n");
    assert_eq!(s.ok(&mount), "/rafs/c1/lowerdir was mounted already\n");
    let status = s.ok(&["status", "s1"]);
    for row in [
        "state       serving",
        "VMM         not attached",
        "health      ",
        "mount       /rafs/c1/lowerdir RAFS ",
    ] {
        assert!(status.contains(row), "{status}");
    }
    let list = s.ok(&["list"]);
    assert!(
        list.lines()
            .nth(1)
            .unwrap()
            .starts_with("s1       serving         2  "),
        "{list}"
    );
    assert_eq!(s.ok(&["umount", "s1", "c1"]), "/rafs/c1/lowerdir is unmounted\n");
    assert_eq!(
        s.ok(&["umount", "s1", "c1"]),
        "/rafs/c1/lowerdir was not mounted\n"
    );
    assert_eq!(
        s.ok(&["stop", "s1"]),
        "sandbox s1 is stopped: the daemon ended in order\n"
    );
    let none = format!("no sandbox in {}\n", s.state_dir().display());
    assert_eq!(s.ok(&["status"]), none);
    assert_eq!(s.ok(&["stop", "--all"]), "nothing to stop\n");
    s.assert_nothing_left();
}

#[test]
fn a_configuration_is_read_from_standard_input() {
    let s = Sandboxes::new();
    let (bootstrap, config) = s.image();
    s.start("s1", None);
    let mut child = s
        .command(&["mount", "s1", "c1", "--bootstrap", &bootstrap, "--config", "-"])
        .args(["--prefetch-file", "/file"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(&std::fs::read(config).unwrap()).unwrap();
    drop(stdin);
    let (code, out, _) = told(&child.wait_with_output().unwrap());
    assert_eq!((code, out.as_str()), (0, "/rafs/c1/lowerdir is mounted\n"));
}

#[test]
fn relative_paths_are_those_of_the_caller() {
    let s = Sandboxes::new();
    let output = s
        .command(&["start", "s1", "--share", "share", "--state-dir", "state"])
        .current_dir(s.dir.path())
        .output()
        .unwrap();
    assert_eq!(told(&output).0, 0, "{output:?}");
    assert_eq!(s.json(&["status", "s1"])["mounts"][0]["source"], text(&s.share()));
}

/// Limits that this machine does not grant are an event and a warning each, and no failure; so are arguments that are
/// translated.
#[test]
fn the_daemons_namespace_and_limits_are_passed_on() {
    let s = Sandboxes::new();
    let args = s.start_args("s1", None);
    let mut args: Vec<&str> = args.iter().map(String::as_str).collect();
    args.extend([
        "--netns",
        "/proc/self/ns/net",
        "--memory-max",
        "256M",
        "--pids-max",
        "100",
        "--extra-arg=--hybrid-mode",
        "--json",
    ]);
    let started = s.command(&args).output().unwrap();
    let (status, warnings) = (told(&started).0, String::from_utf8_lossy(&started.stderr));
    assert_eq!(status, 0, "{warnings}");
    let info: Value = serde_json::from_slice(&started.stdout).unwrap();
    let cgroup = std::fs::read_to_string(format!("/proc/{}/cgroup", pid(&info, "daemon"))).unwrap();
    let own = std::fs::read_to_string(format!("/proc/{}/cgroup", pid(&info, "supervisor"))).unwrap();
    let events = s.ok(&["events", "s1"]);
    assert!(
        cgroup != own || events.contains("  degraded  "),
        "{cgroup} {events}"
    );
    let degraded = events.matches("  degraded  ").count();
    assert_eq!(
        warnings.matches("warning: ").count(),
        degraded,
        "{warnings} {events}"
    );
    assert!(warnings.contains("warning: --hybrid-mode: "), "{warnings}");
    let netns = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
    assert_eq!(netns(&pid(&info, "daemon").to_string()), netns("self"));
    s.ok(&["stop", "s1"]);
    let share = text(&s.share());
    s.refused(
        &["start", "s1", "--share", &share, "--netns", "/no/such/netns"],
        1,
        &["/no/such/netns"],
    );
    s.assert_nothing_left();
}

/// Its own session, no terminal, the root directory; and whoever reads the output of `start` sees its end.
#[test]
fn the_supervisor_belongs_to_nobody() {
    let s = Sandboxes::new();
    // `run` reads to the end of both outputs, which a supervisor that had inherited them would hold open.
    let info = s.start("s1", None);
    let supervisor = pid(&info, "supervisor");
    let proc = PathBuf::from(format!("/proc/{supervisor}"));
    let stat = std::fs::read_to_string(proc.join("stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let (group, session, terminal) = (fields[2], fields[3], fields[4]);
    assert_eq!(
        (group, session, terminal),
        (supervisor.to_string().as_str(), group, "0")
    );
    assert_eq!(std::fs::read_link(proc.join("cwd")).unwrap(), Path::new("/"));
}

#[test]
fn nothing_the_caller_holds_open_is_held_by_the_sandbox() {
    let s = Sandboxes::new();
    let args = s.start_args("s1", None).join(" ");
    let script = format!(
        "exec 7<>{}; exec {} {args}",
        text(&s.dir.join("held")),
        env!("CARGO_BIN_EXE_nydusbox")
    );
    let output = std::process::Command::new("/bin/sh")
        .args(["-c", &script])
        .env("NYDUSBOX_STATE_DIR", s.state_dir())
        .output()
        .unwrap();
    assert_eq!(told(&output).0, 0, "{output:?}");
    let held = s.dir.join("held");
    let info = s.json(&["status", "s1"]);
    for whose in ["supervisor", "daemon"] {
        let open = std::fs::read_dir(format!("/proc/{}/fd", pid(&info, whose))).unwrap();
        let open: Vec<_> = open
            .flatten()
            .filter_map(|e| std::fs::read_link(e.path()).ok())
            .collect();
        assert!(!open.contains(&held), "{whose}: {open:?}");
    }
}

#[test]
fn a_watched_status_follows_the_sandbox_to_its_end() {
    let s = Sandboxes::new();
    let image = s.image();
    s.start("s1", None);
    let mut watch = s
        .command(&["status", "s1", "--watch", "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let mut next = || -> Option<Value> { Some(serde_json::from_str(&lines.next()?.unwrap()).unwrap()) };
    assert_eq!(next().unwrap()["state"], "serving");
    s.mount("s1", "c1", &image);
    until("the mount is seen", || {
        next().unwrap()["mounts"][1]["confirmed"] == true
    });
    s.ok(&["stop", "s1"]);
    while let Some(info) = next() {
        assert_eq!(info["state"], "stopping");
    }
    assert!(watch.wait().unwrap().success());
}

#[test]
fn a_name_is_free_again_once_its_sandbox_is_stopped() {
    let s = Sandboxes::new();
    for _ in 0..5 {
        s.start("s1", None);
        s.ok(&["stop", "s1"]);
    }
    s.assert_nothing_left();
}

#[test]
fn stop_all_stops_every_sandbox_at_once() {
    let s = Sandboxes::new();
    for id in ["s2", "s1", "s3"] {
        s.start(id, None);
    }
    let stopped = s.json(&["stop", "--all"]);
    let ids: Vec<_> = stopped
        .as_array()
        .unwrap()
        .iter()
        .map(|s| s["id"].clone())
        .collect();
    assert_eq!(ids, ["s1", "s2", "s3"]);
    s.assert_nothing_left();
}

#[test]
fn sigterm_to_the_supervisor_stops_the_sandbox() {
    let s = Sandboxes::new();
    let info = s.start("s1", None);
    kill(pid(&info, "supervisor"), Signal::TERM);
    until("the sandbox is gone", || !s.state_dir().join("s1").exists());
    s.assert_nothing_left();
}

/// As the user nobody, where root runs the tests and that user can reach the executable.
#[test]
fn without_root_it_works_in_a_directory_of_the_users_own() {
    const NOBODY: u32 = 65534;
    let s = Sandboxes::new();
    let as_nobody = |args: &[&str]| {
        let mut command = s.command(args);
        command
            .env_remove("NYDUSBOX_STATE_DIR")
            .env("XDG_RUNTIME_DIR", s.dir.path())
            .uid(NOBODY)
            .gid(NOBODY);
        command
    };
    if let Err(e) = as_nobody(&["--version"]).output() {
        eprintln!("skipped: the executable cannot be run as another user: {e}");
        return;
    }
    let (bootstrap, config) = s.image();
    let given = std::process::Command::new("chown")
        .args(["-R", "65534:65534"])
        .arg(s.dir.path())
        .status()
        .unwrap();
    assert!(given.success());
    let ok = |args: &[&str]| {
        let output = as_nobody(args).output().unwrap();
        assert_eq!(told(&output).0, 0, "{args:?}: {output:?}");
    };
    let share = text(&s.share());
    ok(&["start", "s1", "--share", &share]);
    ok(&[
        "mount",
        "s1",
        "c1",
        "--bootstrap",
        &bootstrap,
        "--config",
        &config,
    ]);
    ok(&["status", "s1"]);
    ok(&["umount", "s1", "c1"]);
    ok(&["stop", "s1"]);
    assert!(s.dir.join("nydusbox").read_dir().unwrap().next().is_none());
    let refused = as_nobody(&[
        "start",
        "s1",
        "--share",
        &share,
        "--state-dir",
        "/run/nydusbox-of-root",
    ]);
    let (code, _, err) = told(&{ refused }.output().unwrap());
    assert_eq!(code, 1);
    assert!(
        err.contains("Permission denied") && err.contains("hint: without root"),
        "{err}"
    );
}
