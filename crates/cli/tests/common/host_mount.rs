//! An image that is mounted on this host by the command under test.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};

use super::{Dir, nydusbox, with_hangup};

/// Whether images can be mounted here; the reason is told if not, unless they have to be.
pub fn can_mount() -> bool {
    let can = rustix::process::geteuid().is_root() && Path::new("/dev/fuse").exists();
    assert!(
        can || std::env::var_os("NYDUSBOX_REQUIRE_PEERS").is_none_or(|v| v != "1"),
        "there is no /dev/fuse, or this is not root"
    );
    if !can {
        eprintln!("skipped: there is no /dev/fuse, or this is not root");
    }
    can
}

/// A command on a data directory of the test's own.
pub fn image(dir: &Dir, args: &[&str]) -> Command {
    let mut command = nydusbox();
    command
        .env("NYDUSBOX_DATA_DIR", dir.join("data"))
        .arg("image")
        .args(args);
    command
}

/// A mount that goes with its test, however that ends.
pub struct Mounted {
    command: Child,
    pub at: PathBuf,
}

impl Mounted {
    pub fn start(dir: &Dir, what: &str) -> Self {
        Self::start_with(dir, what, &[])
    }

    pub fn start_with(dir: &Dir, what: &str, more: &[&str]) -> Self {
        let mut command = image(dir, &["mount", what]);
        Self::start_by(dir, with_hangup("--default-signal=HUP", command.args(more)))
    }

    /// With `image mount` so far without a directory.
    pub fn start_by(dir: &Dir, mut command: Command) -> Self {
        let at = dir.mkdir("mnt");
        let mut command = command.arg(&at).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(command.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let mounted = Self { command, at };
        assert!(line.contains("is mounted on"), "{line:?}");
        mounted
    }

    pub fn pid(&self) -> u32 {
        self.command.id()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.command), signal).unwrap();
    }

    pub fn is_there(&self) -> bool {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        table.contains(&format!(
            " {} ",
            self.at.canonicalize().unwrap_or(self.at.clone()).display()
        ))
    }

    /// Its exit status.
    pub fn end(&mut self) -> Option<i32> {
        self.command.wait().unwrap().code()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = unmount(&self.at, UnmountFlags::DETACH);
        let _ = self.command.kill();
        let _ = self.command.wait();
    }
}
