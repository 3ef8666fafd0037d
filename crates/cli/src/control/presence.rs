//! Whether a sandbox is there and who owns it, found out without disturbing anyone.
//!
//! Its lock is looked up in the kernel's table, not tried: trying it would make a start that comes at the same
//! moment believe that the sandbox is in use.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nydusbox::{CONTROL_SOCKET, LOCK_FILE, lock_owner};
use nydusbox_protocol::SandboxId;
use tokio::net::UnixStream;

use crate::error::{ABANDONED, Failure, NO_SANDBOX, TAKEN};
use crate::state_dir::StateDir;

/// How a sandbox is found.
#[derive(Debug)]
pub(crate) enum Presence {
    /// There is none.
    Absent,
    /// Its supervisor listens.
    Live(UnixStream),
    /// Someone holds its lock and does not listen: it is starting or ending, or belongs to another program.
    Busy { owner: Option<u32> },
    /// Its directory is there and nobody owns it.
    Abandoned { owner: Option<u32> },
    /// It is not ours to look at.
    Closed(io::Error),
}

impl Presence {
    pub(crate) async fn of(state_dir: &StateDir, id: &SandboxId) -> Self {
        let dir = state_dir.sandbox(id);
        match UnixStream::connect(dir.join(CONTROL_SOCKET)).await {
            Ok(stream) => return Self::Live(stream),
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => return Self::Closed(e),
            Err(_) => {}
        }
        let lock = dir.join(LOCK_FILE);
        let owner = std::fs::read_to_string(&lock)
            .ok()
            .and_then(|text| lock_owner(&text));
        match std::fs::metadata(&lock) {
            Ok(file) if is_locked(file.ino()) => Self::Busy { owner },
            Ok(_) => Self::Abandoned { owner },
            Err(_) if dir.exists() => Self::Abandoned { owner: None },
            Err(_) => Self::Absent,
        }
    }

    pub(crate) fn is_abandoned(&self) -> bool {
        matches!(self, Self::Abandoned { .. })
    }

    /// The sentence, the hint and the exit code for a command that needs a supervisor.
    pub(crate) fn failure(&self, state_dir: &StateDir, id: &SandboxId) -> Failure {
        match self {
            Self::Absent => Failure::plain(format!(
                "there is no sandbox {id} in {}",
                state_dir.path().display()
            ))
            .code(NO_SANDBOX)
            .hint("`nydusbox list` shows those that are there"),
            Self::Abandoned { owner } => {
                Failure::plain(format!("the supervisor of sandbox {id}{} is gone", was(*owner)))
                    .code(ABANDONED)
                    .hint(format!(
                        "`nydusbox adopt {id}` takes it over, `nydusbox sweep` removes what is left of it"
                    ))
            }
            Self::Busy { owner } => Failure::plain(format!(
                "sandbox {id} is in use{} and takes no commands",
                by(*owner)
            ))
            .code(TAKEN)
            .hint("it is starting or stopping, or belongs to another program"),
            Self::Closed(e) => Failure::new(&format!("reach the supervisor of sandbox {id}"), e)
                .hint("only the user who started it can use it"),
            Self::Live(_) => Failure::plain(format!("the supervisor of sandbox {id} does not answer")),
        }
    }
}

fn by(owner: Option<u32>) -> String {
    owner.map_or_else(String::new, |pid| format!(" by process {pid}"))
}

fn was(owner: Option<u32>) -> String {
    owner.map_or_else(String::new, |pid| format!(" (process {pid})"))
}

/// Whether somebody holds a flock on the file with this inode number.
fn is_locked(inode: u64) -> bool {
    let table = std::fs::read_to_string(Path::new("/proc/locks")).unwrap_or_default();
    table.lines().any(|line| {
        // 1: FLOCK  ADVISORY  WRITE 4242 00:1a:12345 0 EOF
        let mut fields = line.split_ascii_whitespace().skip(1);
        fields.next() == Some("FLOCK")
            && fields
                .nth(3)
                .and_then(|place| place.rsplit(':').next())
                .is_some_and(|number| number.parse() == Ok(inode))
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use rustix::fs::{FlockOperation, flock};

    #[test]
    fn a_lock_shows_while_it_is_held() {
        let file = tempfile::tempfile().unwrap();
        let inode = file.metadata().unwrap().ino();
        assert!(!is_locked(inode));
        flock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
        assert!(is_locked(inode));
    }
}
