//! Whether a sandbox is there and who owns it, found out without disturbing anyone.
//!
//! Its lock is looked up in the kernel's table, not tried, unless that leaves it open: trying it would make a start
//! that comes at the same moment believe that the sandbox is in use.

use std::io;
use std::os::fd::BorrowedFd;

use nydusbox::{CONTROL_SOCKET, LookedAt};
use nydusbox_protocol::SandboxId;
use rustix::fs::{FlockOperation, flock, fstat};
use rustix::io::Errno;
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
        match LookedAt::new(&dir) {
            Some(found) if found.is_sandbox() => {
                let owner = found.owner();
                match is_locked(found.lock()) {
                    true => Self::Busy { owner },
                    false => Self::Abandoned { owner },
                }
            }
            // A directory that nothing shows to be a sandbox's is none, whatever its name.
            Some(_) | None => Self::Absent,
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
            Self::Live(stream) => no_answer(id, owner_of(stream)),
        }
    }
}

/// Who listens at the other end.
pub(crate) fn owner_of(stream: &UnixStream) -> Option<u32> {
    stream.peer_cred().ok()?.pid()?.try_into().ok()
}

/// What there is to say of a supervisor that takes connections and no more.
pub(crate) fn no_answer(id: &SandboxId, owner: Option<u32>) -> Failure {
    let who = was(owner);
    Failure::plain(format!("the supervisor of sandbox {id}{who} does not answer"))
        .hint("it is stopped, or waits for a file system; until it ends or goes on nobody else can take the sandbox over")
}

fn by(owner: Option<u32>) -> String {
    owner.map_or_else(String::new, |pid| format!(" by process {pid}"))
}

fn was(owner: Option<u32>) -> String {
    owner.map_or_else(String::new, |pid| format!(" (process {pid})"))
}

/// Whether somebody holds a flock on a file.
fn is_locked(file: BorrowedFd<'_>) -> bool {
    let Ok(found) = fstat(file) else { return false };
    let table = std::fs::read_to_string("/proc/locks").unwrap_or_default();
    match look_up(&table, found.st_dev, found.st_ino) {
        Listed::No => false,
        Listed::Yes => true,
        // If it is this one, trying disturbs nobody. If it is another file system's, that is rare enough.
        Listed::Perhaps => flock(file, FlockOperation::NonBlockingLockShared) == Err(Errno::WOULDBLOCK),
    }
}

/// Whether the kernel's table of locks has a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Listed {
    No,
    Yes,
    /// One of this number is locked on another device. The table has the file system's, which on btrfs and overlayfs is
    /// not the one that a file is said to be on.
    Perhaps,
}

fn look_up(table: &str, device: u64, inode: u64) -> Listed {
    let mut found = Listed::No;
    for line in table.lines() {
        // 1: FLOCK  ADVISORY  WRITE 4242 00:1a:12345 0 EOF
        let mut fields = line.split_ascii_whitespace().skip(1);
        if fields.next() != Some("FLOCK") {
            continue;
        }
        let mut place = fields.nth(3).unwrap_or_default().split(':');
        let mut number = |radix| u64::from_str_radix(place.next()?, radix).ok();
        let (major, minor, listed) = (number(16), number(16), number(10));
        if listed == Some(inode) {
            let here = (Some(major_of(device)), Some(minor_of(device)));
            match (major, minor) == here {
                true => return Listed::Yes,
                false => found = Listed::Perhaps,
            }
        }
    }
    found
}

fn major_of(device: u64) -> u64 {
    rustix::fs::major(device).into()
}

fn minor_of(device: u64) -> u64 {
    rustix::fs::minor(device).into()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use nydusbox::{LOCK_FILE, STATE_FILE};

    use super::*;

    #[tokio::test]
    async fn a_directory_that_nothing_shows_to_be_a_sandboxs_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let state_dir = StateDir::new(Some(dir.path().to_owned())).unwrap();
        let id = SandboxId::new("project").unwrap();
        let project = dir.path().join("project");
        std::fs::create_dir(&project).unwrap();
        assert!(matches!(Presence::of(&state_dir, &id).await, Presence::Absent));
        let lock = project.join(LOCK_FILE);
        for text in ["", "4711"] {
            std::fs::write(&lock, text).unwrap();
            assert!(matches!(Presence::of(&state_dir, &id).await, Presence::Absent));
        }
        // Nor does a file of this name show anything, locked or not.
        std::fs::write(project.join(STATE_FILE), "").unwrap();
        assert!(matches!(Presence::of(&state_dir, &id).await, Presence::Absent));
        let held = File::open(&lock).unwrap();
        flock(&held, FlockOperation::NonBlockingLockExclusive).unwrap();
        assert!(matches!(Presence::of(&state_dir, &id).await, Presence::Absent));
        drop(held);
        assert_eq!(nydusbox::sweep(dir.path(), true).unwrap().foreign, [project]);

        std::fs::write(&lock, "nydusbox sandbox\n4711\n").unwrap();
        assert!(Presence::of(&state_dir, &id).await.is_abandoned());
        let held = File::open(&lock).unwrap();
        flock(&held, FlockOperation::NonBlockingLockExclusive).unwrap();
        assert!(matches!(
            Presence::of(&state_dir, &id).await,
            Presence::Busy { owner: Some(4711) }
        ));
    }

    /// It would be waited for.
    #[tokio::test]
    async fn a_lock_that_is_no_file_is_not_opened() {
        let dir = tempfile::tempdir().unwrap();
        let state_dir = StateDir::new(Some(dir.path().to_owned())).unwrap();
        let id = SandboxId::new("project").unwrap();
        let lock = dir.path().join("project").join(LOCK_FILE);
        std::fs::create_dir(dir.path().join("project")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, &lock, rustix::fs::Mode::RWXU).unwrap();
        assert!(matches!(Presence::of(&state_dir, &id).await, Presence::Absent));
    }

    #[test]
    fn a_lock_shows_while_it_is_held() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = File::create(&path).unwrap();
        let looked_at = File::open(&path).unwrap();
        assert!(!is_locked(looked_at.as_fd()));
        flock(&held, FlockOperation::NonBlockingLockExclusive).unwrap();
        assert!(is_locked(looked_at.as_fd()));
    }

    #[test]
    fn a_file_of_the_same_number_on_another_device_is_not_taken_for_it() {
        let table = "1: POSIX  ADVISORY  WRITE 1 00:1a:7 0 EOF\n\
            2: FLOCK  ADVISORY  WRITE 2 fe:10:12345 0 EOF\n\
            2: -> FLOCK  ADVISORY  WRITE 3 00:1a:8 0 EOF\n\
            3: FLOCK\n";
        let device = rustix::fs::makedev(0xfe, 0x10);
        let other = rustix::fs::makedev(0, 0x1a);
        assert_eq!(look_up(table, device, 12345), Listed::Yes);
        assert_eq!(look_up(table, other, 12345), Listed::Perhaps);
        assert_eq!(look_up(table, device, 7), Listed::No);
        assert_eq!(look_up(table, other, 8), Listed::No, "it waits");
    }
}
