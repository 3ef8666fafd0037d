//! Resource limits of a child that has not been executed yet.

use rustix::io::Errno;
use rustix::process::{Pid, Resource, Rlimit, prlimit};

use super::LimitError;

/// Sets a limit, soft and hard. One above a hard limit that may not be raised becomes the hard limit, and an error.
pub(super) fn apply(pid: Pid, resource: Resource, what: &'static str, wanted: u64) -> Result<(), LimitError> {
    let both = |value| Rlimit {
        current: value,
        maximum: value,
    };
    let hard = rustix::process::getrlimit(resource).maximum;
    match (prlimit(Some(pid), resource, both(Some(wanted))), hard) {
        (Ok(_), _) => Ok(()),
        (Err(Errno::PERM), Some(hard)) if wanted > hard => {
            prlimit(Some(pid), resource, both(Some(hard))).map_err(|errno| LimitError::Refused {
                what,
                source: errno.into(),
            })?;
            Err(LimitError::Hard { what, wanted, hard })
        }
        (Err(errno), _) => Err(LimitError::Refused {
            what,
            source: errno.into(),
        }),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use std::process::{Child, Command};

    fn sleeper() -> (Child, Pid) {
        let child = Command::new("/bin/sleep").arg("1000").spawn().unwrap();
        let pid = Pid::from_child(&child);
        (child, pid)
    }

    fn open_files(pid: Pid) -> String {
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", pid.as_raw_nonzero())).unwrap();
        let line = limits.lines().find(|l| l.starts_with("Max open files")).unwrap();
        line.split_whitespace()
            .skip(3)
            .take(2)
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn what_may_be_set_is_set_and_what_is_too_much_is_cut_and_told() {
        let (mut child, pid) = sleeper();
        apply(pid, Resource::Nofile, "open files", 123).unwrap();
        assert_eq!(open_files(pid), "123 123");
        // Above the system's own ceiling, which root may not pass either.
        let ceiling: u64 = std::fs::read_to_string("/proc/sys/fs/nr_open")
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        let hard = rustix::process::getrlimit(Resource::Nofile).maximum.unwrap();
        match apply(pid, Resource::Nofile, "open files", ceiling + 1) {
            Err(LimitError::Hard { hard: told, .. }) => {
                assert_eq!(told, hard);
                assert_eq!(open_files(pid), format!("{hard} {hard}"));
            }
            // Without CAP_SYS_RESOURCE the child's limit, lowered above, cannot be raised again.
            Err(LimitError::Refused { .. }) => assert_eq!(open_files(pid), "123 123"),
            other => panic!("{other:?}"),
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
