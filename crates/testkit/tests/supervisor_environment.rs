//! What a daemon runs in: namespace, cgroup, limits, and a supervisor that is killed.
//!
//! Needs root for some, and says so where it has to skip. Memory limits are tested where there are any: in a guest, by
//! the command (`vm_supervisor`).

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod supervisor;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nydusbox::{
    EnvironmentError, EventItem, ExitCause, LimitError, Limits, Netns, OnExit, OnSupervisorDeath, Program,
    RestartPolicy, Sandbox, SandboxConfig, SandboxEvent, StartCause, Status, StatusPhase,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use supervisor::Place;

const FAKE: &str = env!("CARGO_BIN_EXE_fake-daemon");

fn embedded(behaviour: &str) -> Program {
    Program::embedded(FAKE)
        .unwrap()
        .with_env("FAKE_DAEMON", behaviour)
}

fn stock(behaviour: &str) -> Program {
    Program::stock(FAKE).unwrap().with_env("FAKE_DAEMON", behaviour)
}

fn both() -> [Program; 2] {
    [embedded("serve"), stock("serve")]
}

fn pid(sandbox: &Sandbox) -> u32 {
    sandbox.status().borrow().pid
}

fn of(pid: u32, file: &str) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap()
}

fn netns_of(path: &Path) -> PathBuf {
    std::fs::read_link(path).unwrap()
}

/// What was not applied.
fn degraded(sandbox: &Sandbox) -> Vec<String> {
    let mut events = sandbox.events();
    let mut all = Vec::new();
    while let Some(EventItem::Record(record)) = events.try_next() {
        if let SandboxEvent::Degraded { what, reason } = record.event {
            println!("{what}: {reason}");
            all.push(what);
        }
    }
    all
}

/// A network namespace held open by a process.
struct OtherNetns(Child);

impl OtherNetns {
    fn new() -> Option<Self> {
        let mut child = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo in; exec sleep 1000"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        output.read_line(&mut line).unwrap();
        let held = Self(child);
        if line.is_empty() {
            println!("skipped: no network namespace can be made here");
            return None;
        }
        Some(held)
    }

    fn path(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.0.id()).into()
    }
}

impl Drop for OtherNetns {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_daemon_is_in_the_namespace_asked_for_and_no_thread_of_ours_is() {
    let Some(other) = OtherNetns::new() else { return };
    for program in both() {
        let place = Place::new();
        let config = place
            .config("s1", program.clone())
            .with_share(place.share())
            .unwrap()
            .with_netns(Netns::Path(other.path()));
        let sandbox = Sandbox::start(config).await.unwrap();
        let daemons = netns_of(Path::new(&format!("/proc/{}/ns/net", pid(&sandbox))));
        assert_eq!(daemons, netns_of(&other.path()));
        for task in std::fs::read_dir("/proc/self/task").unwrap() {
            let ours = netns_of(&task.unwrap().path().join("ns/net"));
            assert_ne!(ours, daemons);
        }
        assert!(sandbox.stop().await.leftovers.is_empty());

        assert_eq!(supervisor::children(), [other.0.id()]);
    }
}

/// Where this process may not look into process 1, that is the error.
#[tokio::test]
async fn the_hosts_namespace_is_that_of_process_1() {
    let place = Place::new();
    let config = place.config("s1", embedded("serve")).with_netns(Netns::Host);
    let started = Sandbox::start(config).await;
    match std::fs::read_link("/proc/1/ns/net") {
        Ok(host) => {
            let sandbox = started.unwrap();
            assert_eq!(
                netns_of(Path::new(&format!("/proc/{}/ns/net", pid(&sandbox)))),
                host
            );
            drop(sandbox.stop().await);
        }
        Err(_) => match &*started.unwrap_err().cause {
            StartCause::Environment(EnvironmentError::Netns { path, .. }) => {
                assert_eq!(path, Path::new("/proc/1/ns/net"));
            }
            other => panic!("{other:?}"),
        },
    }
    place.assert_clean();
}

#[tokio::test]
async fn a_namespace_that_cannot_be_entered_fails_the_start_and_leaves_nothing() {
    for path in ["/nowhere", "/proc/self/ns/mnt", "/dev/null"] {
        let place = Place::new();
        let config = place
            .config("s1", embedded("serve"))
            .with_netns(Netns::Path(path.into()));
        let error = Sandbox::start(config).await.unwrap_err();
        match &*error.cause {
            StartCause::Environment(EnvironmentError::Netns { path: told, .. }) => {
                assert_eq!(told, Path::new(path));
            }
            other => panic!("{other:?}"),
        }
        place.assert_clean();
    }
}

#[tokio::test]
async fn resource_limits_are_in_force_when_the_program_begins() {
    for program in both() {
        let place = Place::new();
        let config = place
            .config("s1", program)
            .with_share(place.share())
            .unwrap()
            .with_limits(Limits::new().open_files(123).core_bytes(0));
        let sandbox = Sandbox::start(config).await.unwrap();
        let limits = of(pid(&sandbox), "limits");
        let values = |name: &str| {
            let line = limits.lines().find(|l| l.starts_with(name)).unwrap();
            line[name.len()..]
                .split_whitespace()
                .take(2)
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(values("Max open files"), "123 123");
        assert_eq!(values("Max core file size"), "0 0");
        assert_eq!(degraded(&sandbox), Vec::<String>::new());
        sandbox.mount(place.request("/m")).await.unwrap();
        assert!(sandbox.stop().await.leftovers.is_empty());
        place.assert_clean();
    }
}

#[tokio::test]
async fn a_limit_above_what_is_possible_is_an_event_or_fails_if_required() {
    let ceiling = std::fs::read_to_string("/proc/sys/fs/nr_open").unwrap();
    let too_many = Limits::new().open_files(ceiling.trim().parse::<u64>().unwrap() + 1);
    let place = Place::new();
    let config = |id| place.config(id, embedded("serve"));
    let sandbox = Sandbox::start(config("s1").with_limits(too_many.clone()))
        .await
        .unwrap();
    assert_eq!(degraded(&sandbox), ["open files"]);
    drop(sandbox.stop().await);
    let error = Sandbox::start(config("s2").with_limits(too_many.required()))
        .await
        .unwrap_err();
    assert!(
        matches!(
            *error.cause,
            StartCause::Environment(EnvironmentError::Limit {
                source: LimitError::Hard { .. } | LimitError::Refused { .. },
                ..
            })
        ),
        "{error:?}"
    );
    place.assert_clean();
}

/// The machine's cgroup v2 hierarchy, if cgroups can be made in it.
fn cgroup2() -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let mount = mounts.lines().find(|l| l.split(' ').nth(2) == Some("cgroup2"));
    let root = mount.and_then(|l| l.split(' ').nth(1)).map(PathBuf::from);
    let made = root
        .as_ref()
        .ok_or(std::io::ErrorKind::NotFound.into())
        .and_then(|root| {
            let probe = root.join(format!("nydusbox-probe-{}", std::process::id()));
            std::fs::create_dir(&probe).and_then(|()| std::fs::remove_dir(&probe))
        });
    match made {
        Ok(()) => root,
        Err(error) => {
            let required = std::env::var_os("NYDUSBOX_REQUIRE_PEERS").is_some();
            assert!(!required, "no cgroup can be made in {root:?}: {error}");
            println!("skipped: no cgroup can be made in {root:?}: {error}");
            None
        }
    }
}

fn leaves(root: &Path, id: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root).unwrap().flatten().map(|e| e.path());
    entries
        .filter(|p| {
            p.file_name()
                .unwrap()
                .to_string_lossy()
                .starts_with(&format!("nydusbox-{id}"))
        })
        .collect()
}

/// Of one that was replaced long ago, too. A cgroup with another one in it is not removed.
#[tokio::test]
async fn what_is_left_of_a_daemon_that_was_replaced_is_told_at_the_end() {
    let Some(root) = cgroup2() else { return };
    let id = format!("cgl{}", std::process::id());
    let place = Place::new();
    let policy = RestartPolicy::default().with_delays(Duration::ZERO, Duration::ZERO);
    let config = place
        .config(&id, embedded("serve"))
        .with_limits(Limits::new().cgroup_parent(&root))
        .with_on_exit(OnExit::Restart(policy));
    let sandbox = Sandbox::start(config).await.unwrap();
    let mut status = sandbox.status();
    let mut resisting = Vec::new();
    for _ in 0..2 {
        let (pid, cgroup) = (pid(&sandbox), status.borrow().cgroup.clone().unwrap());
        std::fs::create_dir(cgroup.join("another")).unwrap();
        resisting.push(cgroup);
        kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL).unwrap();
        let replaced = |status: &Status| status.phase == StatusPhase::Serving && status.pid != pid;
        status.wait_for(replaced).await.unwrap();
    }
    // The first is removed meanwhile, and is not told.
    let gone = resisting.remove(0);
    std::fs::remove_dir(gone.join("another")).unwrap();
    std::fs::remove_dir(gone).unwrap();
    let outcome = sandbox.stop().await;
    let left: Vec<_> = outcome.leftovers.iter().map(ToString::to_string).collect();
    assert_eq!(left, [format!("remove {:?}", resisting[0])]);
    std::fs::remove_dir(resisting[0].join("another")).unwrap();
    std::fs::remove_dir(&resisting[0]).unwrap();
    place.assert_clean();
}

#[tokio::test]
async fn the_daemons_cgroup_comes_and_goes_with_it() {
    let Some(root) = cgroup2() else { return };
    let id = format!("cg{}", std::process::id());
    let place = Place::new();
    let limits = || Limits::new().cgroup_parent(&root);
    for program in both() {
        let config = place.config(&id, program).with_share(place.share()).unwrap();
        let sandbox = Sandbox::start(config.with_limits(limits())).await.unwrap();
        let cgroup = sandbox.status().borrow().cgroup.clone().unwrap();
        assert_eq!(leaves(&root, &id), std::slice::from_ref(&cgroup));
        let line = of(pid(&sandbox), "cgroup");
        let name = cgroup.file_name().unwrap().to_str().unwrap();
        assert!(
            line.lines().any(|l| l.starts_with("0::") && l.ends_with(name)),
            "{line}"
        );
        assert!(sandbox.stop().await.leftovers.is_empty());
        assert_eq!(leaves(&root, &id), Vec::<PathBuf>::new());
    }
    for (behaviour, cause) in [
        ("exit:3:1", ExitCause::Code(3)),
        ("exit-with-child", ExitCause::Code(7)),
    ] {
        let config = place.config(&id, embedded(behaviour)).with_limits(limits());
        let error = Sandbox::start(config).await.unwrap_err();
        assert!(
            matches!(*error.cause, StartCause::Exited(c) if c == cause),
            "{error:?}"
        );
        assert_eq!(leaves(&root, &id), Vec::<PathBuf>::new());
    }
    for step in 0..40u64 {
        let config = place.config(&id, stock("serve")).with_limits(limits());
        let start = Sandbox::start(config);
        if let Ok(sandbox) = tokio::time::timeout(Duration::from_micros(step * 500), start).await {
            drop(sandbox.unwrap().stop().await);
        }
        assert_eq!(
            leaves(&root, &id),
            Vec::<PathBuf>::new(),
            "dropped at step {step}"
        );
        place.assert_clean();
    }
}

#[tokio::test]
async fn a_program_that_cannot_be_executed_behind_the_gate_is_told_by_its_end() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new();
    let file = place.path("nydusd");
    std::fs::write(&file, "#!/nowhere/interpreter\n").unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
    let config = place
        .config("s1", Program::stock(&file).unwrap())
        .with_limits(Limits::new().core_bytes(0));
    let error = Sandbox::start(config).await.unwrap_err();
    assert!(
        matches!(*error.cause, StartCause::Exited(ExitCause::Code(126 | 127))),
        "{error:?}"
    );
    assert!(!error.last_lines.is_empty());
    place.assert_clean();
}

/// On a machine with the controllers the limits are in the leaf; elsewhere each is an event, and an error if required.
#[tokio::test]
async fn a_memory_limit_is_set_or_told() {
    let place = Place::new();
    let limits = Limits::new().memory_max_bytes(256 << 20).pids_max(100);
    let config = |id| place.config(id, embedded("serve"));
    let sandbox = Sandbox::start(config("m1").with_limits(limits.clone()))
        .await
        .unwrap();
    let not_applied = degraded(&sandbox);
    let cgroup = sandbox.status().borrow().cgroup.clone();
    for (file, value) in [("memory.max", "268435456\n"), ("pids.max", "100\n")] {
        match &cgroup {
            Some(leaf) if !not_applied.iter().any(|w| w == file) => {
                assert_eq!(std::fs::read_to_string(leaf.join(file)).unwrap(), value);
            }
            _ => assert!(
                not_applied.iter().any(|w| w == file || w == "cgroup"),
                "{not_applied:?}"
            ),
        }
    }
    drop(sandbox.stop().await);
    let required = Sandbox::start(config("m2").with_limits(limits.required())).await;
    match required {
        Ok(sandbox) => {
            assert!(not_applied.is_empty());
            drop(sandbox.stop().await);
        }
        Err(error) => assert!(
            !not_applied.is_empty()
                && matches!(
                    *error.cause,
                    StartCause::Environment(EnvironmentError::Limit { .. })
                ),
            "{error:?}"
        ),
    }
    place.assert_clean();
}

const SUPERVISOR: &str = "NYDUSBOX_TEST_SUPERVISOR";

/// Runs as a process of its own: starts a sandbox, says the daemon's process id, and never ends.
async fn supervise(config: SandboxConfig) {
    let sandbox = Sandbox::start(config).await.unwrap();
    println!("daemon {}", pid(&sandbox));
    std::future::pending::<()>().await;
}

fn pidfd(pid: u32) -> std::os::fd::OwnedFd {
    let pid = Pid::from_raw(pid.try_into().unwrap()).unwrap();
    pidfd_open(pid, PidfdFlags::empty()).unwrap()
}

fn ends(pidfd: &std::os::fd::OwnedFd, within_secs: i64) -> bool {
    let timeout = Timespec {
        tv_sec: within_secs,
        tv_nsec: 0,
    };
    poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&timeout)).unwrap() == 1
}

/// The test starts itself again as the supervisor that is killed.
#[tokio::test]
async fn a_daemon_goes_with_a_killed_supervisor_unless_it_is_spared() {
    let programs = [
        ("embedded", embedded("serve")),
        ("stock", stock("ignore-sigterm")),
    ];
    let thens = [
        ("kill", OnSupervisorDeath::Kill),
        ("spare", OnSupervisorDeath::Spare),
    ];
    if let Ok(which) = std::env::var(SUPERVISOR) {
        let (dir, which) = which.rsplit_once('/').unwrap();
        let (program, then) = which.split_once('-').unwrap();
        let program = programs.into_iter().find(|p| p.0 == program).unwrap().1;
        let then = thens.into_iter().find(|t| t.0 == then).unwrap().1;
        // The mark by which the test finds what is left comes from the environment.
        let id = nydusbox::protocol::SandboxId::new("s1").unwrap();
        let config = SandboxConfig::new(id, dir, program)
            .unwrap()
            .with_on_supervisor_death(then);
        return supervise(config).await;
    }
    for (program, _) in programs {
        for (then, _) in thens {
            let place = Place::new();
            let state = place.path("state");
            let mut supervisor = Command::new(std::env::current_exe().unwrap())
                .args([
                    "a_daemon_goes_with_a_killed_supervisor_unless_it_is_spared",
                    "--exact",
                    "--nocapture",
                ])
                .env(SUPERVISOR, format!("{}/{program}-{then}", state.display()))
                .env(supervisor::MARK, place.path("").parent().unwrap())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let daemon: u32 = BufReader::new(supervisor.stdout.take().unwrap())
                .lines()
                .find_map(|line| {
                    line.unwrap()
                        .strip_prefix("daemon ")
                        .map(|pid| pid.parse().unwrap())
                })
                .unwrap();
            let pidfd = pidfd(daemon);
            supervisor.kill().unwrap();
            supervisor.wait().unwrap();
            match then {
                "kill" => assert!(ends(&pidfd, 20), "{program}"),
                _ => {
                    assert!(!ends(&pidfd, 0), "{program}");
                    rustix::process::pidfd_send_signal(&pidfd, Signal::KILL).unwrap();
                    assert!(ends(&pidfd, 20), "{program}");
                }
            }
            assert_eq!(supervisor::children(), Vec::<u32>::new());
        }
    }
}
