//! What the tests of the command share: a directory each, a daemon that dies with its test, skips with reasons.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(unreachable_pub, dead_code, reason = "each test binary uses its part")]

pub mod dead_fs;
pub mod host_mount;
pub mod sandboxes;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The command under test.
pub fn nydusbox() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nydusbox"));
    command.stdin(Stdio::null());
    command
}

/// The same command, with what SIGHUP does to it by an option of env(1): who runs the tests may have it ignored.
pub fn with_hangup(option: &str, command: &Command) -> Command {
    let mut wrapped = Command::new("env");
    wrapped.stdin(Stdio::null()).arg(option);
    wrapped.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => wrapped.env(name, value),
            None => wrapped.env_remove(name),
        };
    }
    wrapped
}

/// A directory with a name short enough for sockets, removed with the test.
pub struct Dir(tempfile::TempDir);

impl Dir {
    pub fn new() -> Self {
        Self(tempfile::Builder::new().prefix("nb").tempdir().unwrap())
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn mkdir(&self, name: &str) -> PathBuf {
        let dir = self.join(name);
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    /// The names in the directory, for asserting that nothing is left.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

/// A prerequisite from the environment or a default place; its absence skips the test, or fails it where
/// `NYDUSBOX_REQUIRE_PEERS=1` says that everything must be there.
pub fn require(what: &str, candidates: &[Option<PathBuf>]) -> Option<PathBuf> {
    let found = candidates.iter().flatten().find(|p| p.exists()).cloned();
    if found.is_none() {
        let reason =
            format!("{what} is not there (looked at {candidates:?}); `cargo xtask test` provides it");
        assert!(
            std::env::var_os("NYDUSBOX_REQUIRE_PEERS").is_none_or(|v| v != "1"),
            "{reason}"
        );
        eprintln!("skipped: {reason}");
    }
    found
}

pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .canonicalize()
        .unwrap()
}

/// The first block of `language` in a page of docs/.
pub fn document_block(document: &str, language: &str) -> String {
    let text = std::fs::read_to_string(workspace().join("docs").join(document)).unwrap();
    let (_, rest) = text.split_once(&format!("```{language}\n")).unwrap();
    rest.split_once("```").unwrap().0.to_owned()
}

/// A genuine program of nydus.
pub fn peer(name: &str) -> Option<PathBuf> {
    let given = std::env::var_os("NYDUSBOX_PEERS").map(|dir| PathBuf::from(dir).join(name));
    require(
        name,
        &[given, Some(workspace().join("target/peers/bin").join(name))],
    )
}

/// A daemon started by the test; killed with it.
pub struct Daemon {
    pub child: Child,
    pub dir: Dir,
}

impl Daemon {
    /// Starts `nydusbox virtiofs` and waits for its API.
    pub fn start(args: &[&str]) -> Self {
        let dir = Dir::new();
        let log = std::fs::File::create(dir.join("log")).unwrap();
        let child = nydusbox()
            .args(["virtiofs", "--sock"])
            .arg(dir.join("v.sock"))
            .arg("--apisock")
            .arg(dir.join("a.sock"))
            .args(args)
            .stderr(log)
            .spawn()
            .unwrap();
        let mut daemon = Self { child, dir };
        let deadline = Instant::now() + Duration::from_secs(10);
        while std::os::unix::net::UnixStream::connect(daemon.api()).is_err() {
            let log = || std::fs::read_to_string(daemon.dir.join("log")).unwrap_or_default();
            if let Some(status) = daemon.child.try_wait().unwrap() {
                panic!("the daemon ended with {status}: {}", log());
            }
            assert!(Instant::now() < deadline, "the daemon does not answer: {}", log());
            std::thread::yield_now();
        }
        daemon
    }

    pub fn api(&self) -> PathBuf {
        self.dir.join("a.sock")
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap()
    }

    /// One request; the status and the body.
    pub fn request(&self, method: &str, target: &str, body: &str) -> (u16, String) {
        use std::io::{Read, Write};
        let mut stream = std::os::unix::net::UnixStream::connect(self.api()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let head = format!(
            "{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        // A body that is too large is answered before it is read whole; the answer can still be read then.
        let _ = stream.write_all(body.as_bytes());
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// stdout, stderr and the exit code as text.
pub fn told(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code().unwrap_or(-1),
        text(&output.stdout),
        text(&output.stderr),
    )
}
