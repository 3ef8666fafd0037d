//! What the supervisor asks of a kernel that not every machine gives it: memory and process limits in cgroup v2, and
//! the network namespace of process 1.
//!
//! Both are there in a guest, so the command runs in one, on a real daemon. One boot for all of it; the guest's part
//! is `vm_supervisor/guest.sh`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use nydusbox_testkit::machine::virtiofsd::{Host, Server};
use nydusbox_vmm::VmOutcome;
use serde_json::Value;

const SCRIPT: &str = include_str!("vm_supervisor/guest.sh");
const MEMORY_MAX: &str = "67108864";

/// What the guest's commands said and how they ended.
struct Sections(HashMap<String, (String, i32)>);

impl Sections {
    fn parse(output: &str) -> Self {
        let sections = output.split("== ").skip(1).map(|section| {
            let (name, rest) = section.split_once('\n').unwrap();
            let (said, status) = rest.rsplit_once("-- ").unwrap();
            (name.to_owned(), (said.to_owned(), status.trim().parse().unwrap()))
        });
        Self(sections.collect())
    }

    /// What a command said that must have ended so.
    fn ended(&self, name: &str, status: i32) -> &str {
        let (said, ended) = &self.0[name];
        assert_eq!(*ended, status, "{name}: {said}");
        said
    }

    fn ok(&self, name: &str) -> &str {
        self.ended(name, 0)
    }

    fn lines(&self, name: &str) -> Vec<&str> {
        self.ok(name).lines().collect()
    }

    fn events(&self, name: &str) -> Vec<Value> {
        let events = self.ok(name).lines();
        events.map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

fn of_memory(event: &Value) -> bool {
    event["event"] == "exited" && event["exit"]["cause"] == "oom"
}

#[tokio::test]
async fn vm_limits_and_namespaces_are_what_was_asked_for() {
    let exe = Path::new(env!("CARGO_BIN_EXE_nydusbox"));
    let Some(host) = Host::served_by(Server::Nydusbox(exe)) else {
        return;
    };
    host.install(exe);
    for applet in [
        "awk", "grep", "mkdir", "mount", "readlink", "tee", "unshare", "usleep",
    ] {
        std::os::unix::fs::symlink("busybox", host.dir("rootfs/bin").join(applet)).unwrap();
    }
    fs::write(host.dir("rootfs/guest.sh"), SCRIPT).unwrap();
    let (outcome, output, error) = host.run(host.spec(&["sh", "/guest.sh"])).await;
    assert_eq!(
        outcome,
        VmOutcome::CommandExited { status: 0 },
        "{output}\n{error}"
    );
    let said = Sections::parse(&output);

    // A limit that is too small for the daemon to start within.
    let small = said.ended("small", 1);
    assert!(
        small.contains("killed because its memory limit was reached") && small.contains("hint: --memory-max"),
        "{small}"
    );
    assert_eq!(said.ok("small-left"), "");

    // Both are in force, and a sweep takes what is in the cgroup with it: the daemon, and children that ran away.
    let started: Value = serde_json::from_str(said.ok("s1")).unwrap();
    let daemon = started["daemon"]["pid"].to_string();
    assert_eq!(said.lines("s1-limits"), [MEMORY_MAX, "40", &daemon]);
    assert!(said.ended("s1-fork", 2).contains("can't fork"), "{output}");
    said.ok("s1-swept");
    assert_eq!(said.ok("s1-left"), "");

    // The daemon in its place has the limit that was asked for, and a cgroup whose counters are its own. A successor
    // of the supervisor knows why the daemon died, though it is not its parent.
    for (name, supervisor) in [("s2-events", "parent"), ("s2-adopted-events", "adopter")] {
        let events = said.events(name);
        let ooms = events.iter().filter(|event| of_memory(event)).count();
        assert_eq!(ooms, 1, "{supervisor}: {events:?}");
    }
    assert_eq!(said.lines("s2-limits"), [MEMORY_MAX]);
    said.ok("s2-stopped");
    assert_eq!(said.ok("s2-left"), "");

    // The supervisors were in namespaces of their own.
    let [supervisor, daemon, first] = said.lines("s1-namespaces")[..] else {
        panic!("{}", said.ok("s1-namespaces"));
    };
    assert_eq!(daemon, first, "--netns host");
    assert_ne!(supervisor, first, "--netns host");
    let [supervisor, daemon, first] = said.lines("s2-namespaces")[..] else {
        panic!("{}", said.ok("s2-namespaces"));
    };
    assert_eq!(daemon, supervisor, "--netns current");
    assert_ne!(daemon, first, "--netns current");
}
