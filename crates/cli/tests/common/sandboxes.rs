//! A state directory of a test's own. Its sandboxes' processes end with it, whatever the test did to them.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::{Dir, nydusbox, told};

/// Long enough for anything that happens at all.
const PATIENCE: Duration = Duration::from_secs(30);

/// A state directory, a directory to share, and the command.
pub struct Sandboxes {
    pub dir: Dir,
}

impl Sandboxes {
    pub fn new() -> Self {
        let dir = Dir::new();
        dir.mkdir("state");
        dir.mkdir("share");
        Self { dir }
    }

    pub fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    pub fn share(&self) -> PathBuf {
        self.dir.join("share")
    }

    /// The command with its state directory.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = nydusbox();
        command.env("NYDUSBOX_STATE_DIR", self.state_dir()).args(args);
        command
    }

    /// Exit code, standard output, standard error.
    pub fn run(&self, args: &[&str]) -> (i32, String, String) {
        told(&self.command(args).output().unwrap())
    }

    /// Standard output of a command that must succeed.
    pub fn ok(&self, args: &[&str]) -> String {
        let (code, out, err) = self.run(args);
        assert_eq!(code, 0, "{args:?}: {out} {err}");
        assert_eq!(err, "", "{args:?}");
        out
    }

    /// The document a command prints.
    pub fn json(&self, args: &[&str]) -> Value {
        let mut args = args.to_vec();
        args.push("--json");
        let out = self.ok(&args);
        serde_json::from_str(&out).unwrap_or_else(|e| panic!("{args:?}: {e}: {out}"))
    }

    /// A command that must fail with this code and these words, in one sentence.
    pub fn refused(&self, args: &[&str], code: i32, words: &[&str]) {
        let (got, out, err) = self.run(args);
        assert_eq!(got, code, "{args:?}: {out} {err}");
        for word in words {
            assert!(err.contains(word), "{args:?} does not say {word:?}: {err}");
        }
        let sentences = err.lines().filter(|l| l.starts_with("error: ")).count();
        assert_eq!(sentences, 1, "{args:?} says: {err}");
    }

    /// The arguments of a start with our daemon, or with the one given.
    pub fn start_args(&self, id: &str, daemon: Option<&Path>) -> Vec<String> {
        let mut args = vec!["start".into(), id.into(), "--share".into(), text(&self.share())];
        if let Some(daemon) = daemon {
            args.extend(["--daemon".into(), text(daemon)]);
        }
        args
    }

    /// Starts a sandbox.
    pub fn start(&self, id: &str, daemon: Option<&Path>) -> Value {
        let args = self.start_args(id, daemon);
        self.json(&args.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Mounts an image in a sandbox; the document the command prints.
    pub fn mount(&self, id: &str, container: &str, (bootstrap, config): &(String, String)) -> Value {
        self.json(&[
            "mount",
            id,
            container,
            "--bootstrap",
            bootstrap,
            "--config",
            config,
        ])
    }

    /// An image and its configuration, as files.
    pub fn image(&self) -> (String, String) {
        let source = self.dir.mkdir("source");
        std::fs::write(source.join("file"), vec![7; 100_000]).unwrap();
        let out = self.dir.join("image");
        let built = nydusbox()
            .args(["image", "build"])
            .arg(&source)
            .arg(&out)
            .output()
            .unwrap();
        assert!(built.status.success(), "{:?}", told(&built));
        let config = json!({
            "version": 2, "id": "",
            "backend": {"type": "localfs", "localfs": {"dir": out.join("blobs")}},
            "cache": {"type": "blobcache", "filecache": {"work_dir": self.dir.mkdir("cache")}},
            "rafs": {"mode": "direct", "enable_xattr": true, "prefetch": {"enable": false}}
        });
        let file = self.dir.join("config.json");
        std::fs::write(&file, config.to_string()).unwrap();
        (text(&out.join("image.boot")), text(&file))
    }

    /// Every process that has this state directory on its command line.
    pub fn processes(&self) -> Vec<u32> {
        let needle = text(self.dir.path());
        let own = std::process::id();
        std::fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok())
            .filter(|&pid| pid != own)
            .filter(|pid| {
                std::fs::read(format!("/proc/{pid}/cmdline"))
                    .is_ok_and(|line| String::from_utf8_lossy(&line).contains(&needle))
            })
            .collect()
    }

    /// Waits until every process is gone, and asserts that nothing is left of any sandbox.
    pub fn assert_nothing_left(&self) {
        until("no process is left", || self.processes().is_empty());
        let left: Vec<_> = std::fs::read_dir(self.state_dir()).unwrap().flatten().collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

impl Drop for Sandboxes {
    fn drop(&mut self) {
        for pid in self.processes() {
            kill(pid, Signal::KILL);
        }
    }
}

pub fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// A status without what is observed again and again, for comparing.
pub fn steady(mut info: Value) -> Value {
    let all = match &mut info {
        Value::Array(all) => all.iter_mut().collect(),
        one => vec![one],
    };
    for one in all {
        assert!(one.as_object_mut().unwrap().remove("health").is_some());
    }
    info
}

/// The process id in a status.
pub fn pid(info: &Value, whose: &str) -> u32 {
    u32::try_from(info[whose]["pid"].as_u64().unwrap()).unwrap()
}

pub fn kill(pid: u32, signal: Signal) {
    let _ = kill_process(Pid::from_raw(pid.try_into().unwrap()).unwrap(), signal);
}

/// Whether any thread of a process runs; a zombie does not. The first thread may be one while others still keep files
/// open, and locks.
pub fn runs(pid: u32) -> bool {
    let runs = |stat: &str| !stat.rsplit(')').next().unwrap().trim_start().starts_with('Z');
    let threads = std::fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten();
    threads
        .flatten()
        .any(|thread| std::fs::read_to_string(thread.path().join("stat")).is_ok_and(|stat| runs(&stat)))
}

/// Waits for what no event can be had for.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::yield_now();
    }
}

/// For asserting on an [`Output`] kept.
pub fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or(-1)
}
