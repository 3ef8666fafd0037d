//! What the supervisor's tests share: a place of their own, and the check that nothing is left of it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use nydusbox::protocol::{MountPoint, SandboxId};
use nydusbox::{MountRequest, Program, SandboxConfig};
use tempfile::TempDir;

/// Marks every process of a test, and their children: environments are inherited.
pub(crate) const MARK: &str = "NYDUSBOX_TEST_PLACE";

/// A state directory and a shared directory, used by one test alone.
pub(crate) struct Place {
    dir: TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("nb-").tempdir().unwrap();
        std::fs::create_dir(dir.path().join("share")).unwrap();
        Self { dir }
    }

    pub(crate) fn root(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn share(&self) -> PathBuf {
        self.path("share")
    }

    /// A sandbox without a share.
    pub(crate) fn config(&self, id: &str, program: Program) -> SandboxConfig {
        let program = program.with_env(MARK, self.root());
        SandboxConfig::new(SandboxId::new(id).unwrap(), self.path("state"), program)
            .unwrap()
            .with_start_deadline(Duration::from_secs(20))
    }

    pub(crate) fn request(&self, at: &str) -> MountRequest {
        MountRequest::passthrough(MountPoint::new(at).unwrap(), self.share()).unwrap()
    }

    /// No file in the state directory, no process started from here, no child of this process that is not reaped.
    pub(crate) fn assert_clean(&self) {
        let files: Vec<_> = std::fs::read_dir(self.path("state"))
            .map(|entries| entries.map(|e| e.unwrap().path()).collect())
            .unwrap_or_default();
        assert_eq!(files, Vec::<PathBuf>::new(), "left in the state directory");
        assert_eq!(self.processes(), Vec::<String>::new(), "left running");
        assert_eq!(children(), Vec::<u32>::new(), "children of the test");
    }

    /// Processes that carry this place's mark.
    pub(crate) fn processes(&self) -> Vec<String> {
        let mark = format!("{MARK}={}\0", self.root().display());
        let own = std::process::id().to_string();
        let entries = std::fs::read_dir("/proc").unwrap().flatten();
        entries
            .filter(|e| e.file_name().to_str() != Some(&own))
            .filter_map(|e| {
                let environment = std::fs::read(e.path().join("environ")).ok()?;
                let marked = environment.windows(mark.len()).any(|w| w == mark.as_bytes());
                let line = std::fs::read(e.path().join("cmdline")).ok()?;
                marked.then(|| format!("{:?} {}", e.file_name(), String::from_utf8_lossy(&line)))
            })
            .collect()
    }
}

/// Children of this process, zombies included. Each test has a process of its own under nextest.
pub(crate) fn children() -> Vec<u32> {
    let own = std::process::id().to_string();
    let parent = |pid: &str| -> Option<String> {
        let stat = std::fs::read_to_string(Path::new("/proc").join(pid).join("stat")).ok()?;
        // pid (comm) state ppid; comm may hold anything but ends with the last parenthesis.
        let (_, rest) = stat.rsplit_once(')')?;
        rest.split_whitespace().nth(1).map(str::to_owned)
    };
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter_map(|e| e.file_name().into_string().ok())
        .filter(|name| name.bytes().all(|b| b.is_ascii_digit()))
        .filter(|pid| parent(pid).as_deref() == Some(&own))
        .map(|pid| pid.parse().unwrap())
        .collect()
}
