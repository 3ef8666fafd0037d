//! `nydusbox run` on an image of a Debian tree, or another one: the command under test is the machine's owner.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::prerequisites;

/// A built image of a Debian tree, and directories for runs on it.
#[derive(Debug)]
pub struct Machine {
    nydusbox: PathBuf,
    rootfs: PathBuf,
    guest: PathBuf,
    /// With a name short enough for sockets.
    dir: tempfile::TempDir,
}

/// Of an image that was built, in the machine's directory.
const IMAGE: &str = "image";

impl Machine {
    /// Builds the image with the command under test. `None`, with the reason printed, where a prerequisite is
    /// absent.
    ///
    /// # Panics
    /// If the image cannot be built, or something is absent and must not be.
    pub fn new(nydusbox: impl Into<PathBuf>) -> Option<Self> {
        let machine = Self::without_image(nydusbox)?;
        let built = Command::new(&machine.nydusbox)
            .args(["image", "build"])
            .args([&machine.rootfs, &machine.path(IMAGE)])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(built.status.success(), "{built:?}");
        Some(machine)
    }

    /// The same, but for the image: each run names one.
    ///
    /// # Panics
    /// If something is absent and must not be.
    pub fn without_image(nydusbox: impl Into<PathBuf>) -> Option<Self> {
        Some(Self {
            nydusbox: nydusbox.into(),
            rootfs: prerequisites::debian_rootfs()?,
            guest: prerequisites::guest()?.0,
            dir: tempfile::Builder::new().prefix("nb").tempdir().unwrap(),
        })
    }

    /// The source of the image that is built.
    pub fn rootfs(&self) -> &Path {
        &self.rootfs
    }

    /// A path in a directory that goes with the machine.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A new directory there.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn mkdir(&self, name: &str) -> PathBuf {
        let dir = self.path(name);
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    /// `nydusbox run` on the image that was built, so far without a command.
    pub fn run(&self) -> Command {
        self.run_image(self.path(IMAGE))
    }

    /// `nydusbox run` on an image, by its reference.
    pub fn run_image(&self, image: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(&self.nydusbox);
        command
            .stdin(Stdio::null())
            .arg("run")
            .arg(image)
            .arg("--guest-root")
            .arg(&self.guest)
            .arg("--data-dir")
            .arg(self.path("data"))
            .arg("--state-dir")
            .arg(self.path("state"));
        command
    }

    /// A run whose command has started and will not end by itself.
    ///
    /// # Panics
    /// If it does not start.
    pub fn sleeping(&self) -> Child {
        let mut child = self
            .run()
            .args(["--", "sh", "-c", "echo started; sleep 600"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        std::io::BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "started\n");
        child
    }

    /// After a run nothing of it is left: no directory, no process.
    ///
    /// # Panics
    /// If something is.
    pub fn assert_clean(&self) {
        let left = |name: &str| std::fs::read_dir(self.path(name)).map_or(0, Iterator::count);
        assert_eq!((left("data/run"), left("state")), (0, 0));
        let running = self.running();
        assert!(running.is_empty(), "still running: {running:?}");
    }

    /// The command lines of processes that run for it.
    pub fn running(&self) -> Vec<String> {
        let needle = self.dir.path().to_str().unwrap();
        let entries = std::fs::read_dir("/proc").unwrap().flatten();
        let lines = entries.map(|entry| std::fs::read(entry.path().join("cmdline")).unwrap_or_default());
        lines
            .map(|line| String::from_utf8_lossy(&line).into_owned())
            .filter(|line| line.contains(needle))
            .collect()
    }
}

/// `sha256sum` of every regular file below a directory, by its path from there.
///
/// # Panics
/// If it cannot be read.
pub fn checksums(root: &Path) -> BTreeMap<String, String> {
    let output = Command::new("sh")
        .arg("-c")
        .arg("find . -xdev -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum")
        .current_dir(root)
        .output()
        .unwrap();
    assert!(output.status.success());
    parse_checksums(&String::from_utf8_lossy(&output.stdout))
}

/// The output of `sha256sum` as a map from path to sum.
pub fn parse_checksums(lines: &str) -> BTreeMap<String, String> {
    lines
        .lines()
        .filter_map(|l| l.split_once("  "))
        .map(|(sum, path)| (path.to_owned(), sum.to_owned()))
        .collect()
}
