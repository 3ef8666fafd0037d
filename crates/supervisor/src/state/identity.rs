//! A process by when it began and what it executes, beside its number.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::os_text::OsText;
use crate::binds::Inode;

/// A daemon's process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DaemonRecord {
    pub(crate) pid: u32,
    /// Field 22 of `/proc/<pid>/stat`, in clock ticks since the boot.
    pub(crate) start_ticks: u64,
    pub(crate) boot_id: String,
    /// The file it executes; `None` where that may not be seen.
    pub(crate) exe: Option<Inode>,
    /// The cgroup made for it.
    pub(crate) cgroup: Option<OsText>,
    /// That cgroup's directory: another sandbox may have one with this path since. Older documents do not say.
    #[serde(default)]
    pub(crate) cgroup_inode: Option<Inode>,
    /// Whether it took another one's place: then it has bound its vhost-user socket to another name than the VMM knows.
    #[serde(default)]
    pub(crate) successor: bool,
}

impl DaemonRecord {
    /// Looks at a process.
    pub(crate) fn observe(pid: u32) -> io::Result<Self> {
        let process = PathBuf::from(format!("/proc/{pid}"));
        let stat = std::fs::read_to_string(process.join("stat"))?;
        let start_ticks = start_ticks(&stat).ok_or(io::ErrorKind::InvalidData)?;
        let exe = std::fs::metadata(process.join("exe")).ok().map(|file| Inode {
            dev: file.dev(),
            ino: file.ino(),
        });
        Ok(Self {
            pid,
            start_ticks,
            boot_id: boot_id()?,
            exe,
            cgroup: None,
            cgroup_inode: None,
            successor: false,
        })
    }

    /// Whether the machine has not been started since.
    pub(crate) fn is_of_this_boot(&self) -> bool {
        boot_id().is_ok_and(|found| found == self.boot_id)
    }

    /// Whether the process with the recorded number is the recorded one.
    pub(crate) fn is_alive(&self) -> bool {
        Self::observe(self.pid).is_ok_and(|found| {
            let same_exe = self.exe.is_none() || found.exe.is_none() || self.exe == found.exe;
            same_exe && (found.start_ticks, &found.boot_id) == (self.start_ticks, &self.boot_id)
        })
    }
}

/// Which start of the machine this is.
pub(crate) fn boot_id() -> io::Result<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(text.trim().to_owned())
}

/// Whether no process has this number, or one that has ended and was not waited for.
pub(crate) fn is_dead(pid: u32) -> bool {
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => has_ended(&stat),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

fn has_ended(stat: &str) -> bool {
    let state = stat.rsplit_once(')').map(|(_, rest)| rest.trim_start());
    state.is_some_and(|state| state.starts_with(['Z', 'X']))
}

/// `pid (comm) state …`: comm may hold anything but ends with the last parenthesis.
fn start_ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_itself_and_no_other() {
        let own = DaemonRecord::observe(std::process::id()).unwrap();
        assert!(own.is_alive());
        let mut later = own.clone();
        later.start_ticks += 1;
        assert!(!later.is_alive());
        let mut rebooted = own.clone();
        rebooted.boot_id.push('x');
        assert!(!rebooted.is_alive());
        let mut replaced = own.clone();
        replaced.exe = Some(Inode { dev: 0, ino: 0 });
        assert!(!replaced.is_alive());
        let nobody = DaemonRecord { pid: u32::MAX, ..own };
        assert!(!nobody.is_alive());
    }

    #[test]
    fn a_name_with_parentheses_is_no_trap() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 0 0";
        assert_eq!(start_ticks(stat), Some(4711));
        assert_eq!(start_ticks("7 (sh"), None);
        assert!(!has_ended(stat) && has_ended("7 (a) S) Z 1 7"));
    }
}
