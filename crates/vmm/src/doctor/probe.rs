//! Asks the machine. Each probe is one question; none of them judges the answer.

use std::error::Error;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use rustix::fs::{MemfdFlags, memfd_create, statvfs};
use rustix::process::{Resource, getrlimit};

use crate::guest;
use crate::qemu::KvmFacts;

/// What `qemu-system-x86_64` answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum QemuFact {
    /// It can't be run.
    NotRun { error: String },
    /// It runs.
    Runs {
        version: String,
        has_vhost_user_fs: bool,
    },
}

/// What was found of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum GuestFact {
    Found { kernel: String, modules: usize },
    Unusable { error: String },
}

/// Everything [`super::decide`] needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) qemu: QemuFact,
    pub(super) guest: GuestFact,
    pub(super) busybox: Result<String, String>,
    pub(super) memfd: Result<(), String>,
    pub(super) kvm: KvmFacts,
    /// Bytes free in `/dev/shm`.
    pub(super) shm_free_bytes: Option<u64>,
    /// Open files: soft and hard limit. `None` is no limit.
    pub(super) open_files: (Option<u64>, Option<u64>),
}

pub(super) fn facts(root: &Path) -> Facts {
    let open_files = getrlimit(Resource::Nofile);
    Facts {
        qemu: qemu(),
        guest: guest(root),
        busybox: guest::static_busybox(root)
            .map(|path| path.display().to_string())
            .map_err(|error| chain(&error)),
        memfd: memfd_create(c"nydusbox-doctor", MemfdFlags::CLOEXEC)
            .map(drop)
            .map_err(|error| error.to_string()),
        kvm: KvmFacts::probe(),
        shm_free_bytes: statvfs("/dev/shm")
            .ok()
            .map(|fs| fs.f_bavail.saturating_mul(fs.f_frsize)),
        open_files: (open_files.current, open_files.maximum),
    }
}

fn qemu() -> QemuFact {
    let ask = |arguments: &[&str]| {
        Command::new("qemu-system-x86_64")
            .args(arguments)
            .output()
            .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
    };
    match (ask(&["-version"]), ask(&["-device", "help"])) {
        (Ok(version), Ok(devices)) => QemuFact::Runs {
            version: version_number(&version).to_owned(),
            has_vhost_user_fs: devices.contains("\"vhost-user-fs-pci\""),
        },
        (Err(error), _) | (_, Err(error)) => QemuFact::NotRun {
            error: error.to_string(),
        },
    }
}

/// The number in `QEMU emulator version 7.2.22 (Debian 1:7.2+…)`.
fn version_number(answer: &str) -> &str {
    answer
        .split_once("version ")
        .and_then(|(_, rest)| rest.split_whitespace().next())
        .unwrap_or("of unknown version")
}

fn guest(root: &Path) -> GuestFact {
    match guest::newest_kernel(root) {
        Ok((kernel, modules)) => GuestFact::Found {
            kernel: kernel.version().to_owned(),
            modules: modules.len(),
        },
        Err(error) => GuestFact::Unusable { error: chain(&error) },
    }
}

/// An error with its causes, on one line.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_number() {
        assert_eq!(
            version_number("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg)\nCopyright"),
            "7.2.22"
        );
        assert_eq!(version_number(""), "of unknown version");
    }

    #[test]
    fn this_machine_answers_every_question() {
        let facts = facts(Path::new("/nonexistent"));
        assert!(matches!(facts.guest, GuestFact::Unusable { .. }));
        assert!(facts.busybox.is_err());
        assert!(facts.open_files.0 != Some(0));
    }
}
