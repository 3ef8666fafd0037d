//! pjdfstest and fsx in a real machine: what POSIX asks of a file system, asked of a share and of the overlay on it.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use nydusbox_vmm::{SharedDir, VmOutcome};

use super::virtiofsd::{Host, path};
use crate::peers::{Peer, require};

/// Set to 1, long tests run at full length.
pub const FULL_VAR: &str = "NYDUSBOX_TEST_FULL";

/// pjdfstest's configuration: what Linux can do, and two users that are made for it.
const CONFIGURATION: &str = r#"
[features]
posix_fallocate = {}
rename_ctime = {}
utimensat = {}
utime_now = {}
[settings]
naptime = 0.05
allow_remount = false
[dummy_auth]
entries = [["nobody", "nogroup"], ["tests", "tests"]]
"#;

/// fsx' configuration: every kind of operation.
const EXERCISES: &str = "
flen = 262144
[weights]
close_open = 1
read = 10
write = 10
mapread = 10
mapwrite = 10
invalidate = 1
truncate = 3
fsync = 1
fdatasync = 1
posix_fallocate = 1
punch_hole = 3
sendfile = 3
posix_fadvise = 1
copy_file_range = 5
";

/// Where tests run in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In a shared directory.
    Share,
    /// In the root file system, an overlay whose upper directory is shared.
    Overlay,
}

impl Place {
    fn dir(self) -> &'static str {
        match self {
            Self::Share => "/share",
            Self::Overlay => "/work",
        }
    }
}

/// What came of one run of pjdfstest.
#[derive(Debug)]
pub struct Verdict {
    /// Names of the tests that failed.
    pub failed: BTreeSet<String>,
    /// How many passed.
    pub passed: usize,
    /// All it wrote.
    pub output: String,
}

/// Whether long tests run at full length.
pub fn full() -> bool {
    std::env::var_os(FULL_VAR).is_some_and(|value| value == "1")
}

/// Puts both programs into the served root, with the libraries they are linked to. `None` where they are absent.
///
/// # Panics
/// If it cannot be written.
pub fn install(host: &Host) -> Option<()> {
    let root = host.dir("rootfs");
    let programs = [
        require(Peer::Pjdfstest).ok()?,
        require(Peer::Fsx).ok()?,
        // A program of its own is run and written to (ETXTBSY); under another name busybox' would not run.
        PathBuf::from("/bin/sleep"),
    ];
    for applet in ["mount", "umount", "which"] {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    for program in &programs {
        host.install(program);
    }
    let etc = root.join("etc");
    fs::write(etc.join("pjdfstest.toml"), CONFIGURATION).unwrap();
    fs::write(etc.join("fsx.toml"), EXERCISES).unwrap();
    let users = "root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\ntests:x:1234:1234::/:/bin/sh\n";
    fs::write(etc.join("passwd"), users).unwrap();
    fs::write(etc.join("group"), "root:x:0:\nnogroup:x:65534:\ntests:x:1234:\n").unwrap();
    for dir in ["tmp", "work"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    Some(())
}

/// Runs the tests of pjdfstest whose names contain one of these patterns; all of them if there is none.
///
/// # Panics
/// If the machine does not run, or the program says nothing that can be understood.
pub async fn pjdfstest(host: &Host, place: Place, patterns: &[&str]) -> Verdict {
    let dir = place.dir();
    let script = format!(
        "umask 022; pjdfstest -c /etc/pjdfstest.toml -p {dir} {} >/tmp/out 2>&1; cat /tmp/out",
        patterns.join(" ")
    );
    let (outcome, output, error) = run(host, &script).await;
    assert_eq!(outcome, VmOutcome::CommandExited { status: 0 }, "{output}{error}");
    let names = |ending: &str| {
        output
            .lines()
            .filter_map(|line| line.strip_suffix(ending))
            .map(|name| name.trim_end().to_owned())
            .collect::<BTreeSet<_>>()
    };
    let passed = names(" ok").len();
    let verdict = Verdict {
        failed: names(" FAILED"),
        passed,
        output,
    };
    assert!(
        verdict.output.contains("\nSummary: ") && passed > 0,
        "{}",
        verdict.output
    );
    verdict
}

/// Runs so many operations of fsx on one file.
///
/// # Panics
/// If it finds the file in another state than it should be in.
pub async fn fsx(host: &Host, place: Place, seed: u32, operations: u32) {
    let script = format!(
        "fsx -q -f /etc/fsx.toml -P /tmp -S {seed} -N {operations} {}/exercised >/tmp/out 2>&1; \
         status=$?; cat /tmp/out; exit $status",
        place.dir()
    );
    let (outcome, output, error) = run(host, &script).await;
    let end = &output[output.len().saturating_sub(4000)..];
    assert_eq!(
        outcome,
        VmOutcome::CommandExited { status: 0 },
        "{place:?}: {end}{error}"
    );
}

async fn run(host: &Host, script: &str) -> (VmOutcome, String, String) {
    let mut spec = host.spec(&["sh", "-c", script]);
    spec.shares = vec![SharedDir {
        source: path("/share0"),
        target: path("/share"),
        read_only: false,
    }];
    host.run(spec).await
}
