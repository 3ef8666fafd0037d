//! What a supervisor that was killed has left in a sandbox's directory, and how it is cleared away.
//!
//! Used by a start that finds a predecessor's directory, by [`crate::adopt`] for a daemon that is dead, and by
//! [`crate::sweep`]. It acts only on what the directory's document names and what holds its locks; the caller holds
//! the directory's lock, so nobody else is acting on it.

use std::io;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::event::Timespec;

use crate::dir::{DirError, Leftover, SandboxDir};
use crate::environment::{self, OnSupervisorDeath};
use crate::state::{self, DaemonLock, Holder, PhaseRecord, StateDocument};

/// How long a killed process may take to end. Longer only happens in uninterruptible sleep.
const REAP: Timespec = Timespec {
    tv_sec: 5,
    tv_nsec: 0,
};
/// How long a process that ends may hold the lock and not be seen to.
const CLOSES: Duration = Duration::from_secs(1);
/// How often holders of the lock are looked for: one that forks while it is looked at is found the next time.
const ROUNDS: usize = 8;
/// Every cgroup made for a daemon has a name that begins with this.
const CGROUP_PREFIX: &str = "nydusbox-";

/// What is there.
#[derive(Debug)]
pub(crate) struct Remains {
    dir: SandboxDir,
    document: Option<StateDocument>,
    holders: Vec<Holder>,
}

impl Remains {
    /// Looks at a directory. On an error it is as it was, and its lock is free again.
    pub(crate) fn inspect(dir: SandboxDir) -> Result<Self, DirError> {
        let document = document(&dir)?;
        let holders = holders(&dir)?;
        Ok(Self {
            dir,
            document,
            holders,
        })
    }

    /// What is needed to take the sandbox over, if it was serving, its daemon was to be spared, and lives.
    pub(crate) fn into_daemon(mut self) -> Result<(SandboxDir, Holder, StateDocument), Box<Self>> {
        let document = self.document.take();
        // One that was to end with its supervisor is about to, or cannot: nobody expects it to be there. Nor does one
        // live that was killed and cannot end.
        let serving = document.as_ref().filter(|document| {
            document.phase == PhaseRecord::Serving
                && document.settings.environment.on_supervisor_death == OnSupervisorDeath::Spare
        });
        // The holder is held by a pidfd: if its number is that of the recorded process now, it is that process.
        let found = serving
            .and_then(|document| document.daemon.as_ref())
            .filter(|record| record.is_alive() && !state::is_dead(record.pid))
            .and_then(|record| self.holders.iter().position(|holder| holder.id() == record.pid));
        match (document, found) {
            (Some(document), Some(index)) => {
                let daemon = self.holders.swap_remove(index);
                Ok((self.dir, daemon, document))
            }
            (document, _) => Err(Box::new(Self { document, ..self })),
        }
    }

    /// The processes that live.
    pub(crate) fn processes(&self) -> impl Iterator<Item = u32> {
        self.holders.iter().map(Holder::id)
    }

    /// Where directories are bound, or may be.
    pub(crate) fn binds(&self) -> impl Iterator<Item = PathBuf> {
        let binds = self.document.iter().flat_map(|document| &document.binds);
        binds.map(|record| record.bind.target())
    }

    /// Ends the processes, then takes away what is outside the directory, then the directory. Each is tried whatever
    /// became of the others. If a process or a mount is left, the document stays, for the next attempt.
    pub(crate) fn clear(self) -> Vec<Leftover> {
        // It goes; meanwhile it says who is at it. Without room for that it goes as well.
        let _ = self.dir.sign();
        let mut left = end_all(&self.dir, self.holders);
        if let Some(document) = &self.document {
            left.extend(undo_outside(document));
        }
        if left.iter().any(Leftover::needs_the_document) {
            self.dir.leave();
        } else {
            left.extend(self.dir.remove());
        }
        left
    }
}

/// The document, if there is one. An empty file is none: the machine stopped before its content was on the disk, and
/// what it named has not survived that.
pub(crate) fn document(dir: &SandboxDir) -> Result<Option<StateDocument>, DirError> {
    let path = || dir.file(state::STATE);
    match state::read(dir).map_err(|source| io_error("read", path(), source))? {
        None => Ok(None),
        Some(bytes) if bytes.is_empty() => Ok(None),
        Some(bytes) => StateDocument::parse(&bytes)
            .map(Some)
            .map_err(|source| DirError::State { path: path(), source }),
    }
}

/// The processes that hold the daemon's lock; an error if somebody does and is not to be found: in another namespace of
/// processes, or another user's. It may be served by a daemon that nobody sees.
pub(crate) fn holders(dir: &SandboxDir) -> Result<Vec<Holder>, DirError> {
    let failed = |action| move |source| io_error(action, dir.file(state::DAEMON_LOCK), source);
    let until = Instant::now() + CLOSES;
    loop {
        let inode = match state::probe(dir).map_err(failed("lock"))? {
            None | Some(DaemonLock::Taken(_)) => return Ok(Vec::new()),
            Some(DaemonLock::Held(inode)) => inode,
        };
        let found = state::holders(inode).map_err(failed("find who locks"))?;
        if !found.is_empty() {
            return Ok(found);
        }
        if Instant::now() >= until {
            let nobody = io::Error::new(
                io::ErrorKind::NotFound,
                "no process that can be looked at has it open",
            );
            return Err(failed("find who locks")(nobody));
        }
        sleep(Duration::from_millis(1));
    }
}

fn io_error(action: &'static str, path: PathBuf, source: io::Error) -> DirError {
    DirError::Io { action, path, source }
}

fn end_all(dir: &SandboxDir, mut living: Vec<Holder>) -> Vec<Leftover> {
    for _ in 0..ROUNDS {
        if living.is_empty() {
            return Vec::new();
        }
        living.iter().for_each(Holder::kill);
        let stuck: Vec<_> = living.iter().filter(|holder| !holder.wait(REAP)).collect();
        if !stuck.is_empty() {
            return stuck
                .iter()
                .map(|holder| Leftover::Process { pid: holder.id() })
                .collect();
        }
        living = match holders(dir) {
            Ok(living) => living,
            Err(error) => {
                let source = Box::new(error);
                return vec![Leftover::Unseen { source }];
            }
        };
    }
    living
        .iter()
        .map(|holder| Leftover::Process { pid: holder.id() })
        .collect()
}

/// Takes away what a document names outside the sandbox's directory: binds, and the daemon's cgroup.
pub(crate) fn undo_outside(document: &StateDocument) -> Vec<Leftover> {
    let mut left: Vec<_> = document
        .binds
        .iter()
        .flat_map(|record| record.bind.clone().undo())
        .collect();
    let planned = document.cgroup.as_ref().map(|text| Path::new(&text.0));
    if let Some(path) = planned.filter(|path| is_cgroup(path)) {
        // Its name is this directory's alone. If it was made it is empty: nobody was put in before that was written.
        let _ = rustix::fs::rmdir(path);
    }
    // No cgroup outlives the machine's end.
    let made = document.daemon.as_ref().filter(|daemon| daemon.is_of_this_boot());
    let made = made.and_then(|daemon| Some((Path::new(&daemon.cgroup.as_ref()?.0), daemon.cgroup_inode)));
    if let Some((path, inode)) = made.filter(|(path, _)| is_cgroup(path))
        && let Err(source) = environment::remove_leaf(path, inode)
    {
        left.push(Leftover::Path {
            path: path.to_owned(),
            source,
        });
    }
    left
}

/// Whether it has the name of a cgroup made for a daemon.
fn is_cgroup(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| name.starts_with(CGROUP_PREFIX))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use nydusbox_protocol::SandboxId;

    use rustix::process::{Pid, PidfdFlags, pidfd_open};

    use super::*;
    use crate::binds::Inode;
    use crate::config::SandboxConfig;
    use crate::program::Program;
    use crate::state::{DaemonRecord, OsText};

    /// Held by this process, which is not looked at.
    #[test]
    fn a_lock_that_nobody_is_seen_to_hold_is_not_free() {
        let state_dir = tempfile::tempdir().unwrap();
        let dir = SandboxDir::claim(&state_dir.path().join("s1")).unwrap();
        let lock = state::take(&dir).unwrap();
        let error = holders(&dir).unwrap_err();
        assert!(
            matches!(
                &error,
                DirError::Io {
                    action: "find who locks",
                    ..
                }
            ),
            "{error:?}"
        );

        let mut child = std::process::Command::new("/bin/sleep")
            .arg("1000")
            .spawn()
            .unwrap();
        let pid = Pid::from_child(&child);
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        let left = end_all(&dir, vec![Holder { pid, pidfd }]);
        child.wait().unwrap();
        assert!(matches!(&left[..], [Leftover::Unseen { .. }]), "{left:?}");
        assert!(left[0].needs_the_document());
        drop(lock);
        assert!(holders(&dir).unwrap().is_empty());
    }

    /// What is at the path of the cgroup that a dead daemon had; an empty directory goes like a cgroup.
    #[test]
    fn a_cgroup_is_removed_only_if_it_is_the_daemons() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nydusbox-s1");
        let (id, program) = (SandboxId::new("s1").unwrap(), Program::stock("/bin/sh").unwrap());
        let config = SandboxConfig::new(id.clone(), dir.path(), program.clone()).unwrap();
        let mut document = StateDocument::new(id, program.record(), config.settings());
        let mut stays = |change: &dyn Fn(&mut DaemonRecord, Inode)| {
            std::fs::create_dir_all(&path).unwrap();
            let found = std::fs::metadata(&path).unwrap();
            let (dev, ino) = (found.dev(), found.ino());
            let mut record = DaemonRecord::observe(std::process::id()).unwrap();
            record.cgroup = Some(OsText(path.clone().into()));
            record.cgroup_inode = Some(Inode { dev, ino });
            change(&mut record, Inode { dev, ino });
            document.daemon = Some(record);
            let left = undo_outside(&document);
            assert!(left.is_empty(), "{left:?}");
            path.exists()
        };
        assert!(!stays(&|_, _| ()));
        assert!(stays(&|record, inode| {
            record.cgroup_inode = Some(Inode {
                ino: inode.ino + 1,
                ..inode
            });
        }));
        assert!(stays(&|record, _| record.boot_id.push('x')));
        assert!(!stays(&|record, _| record.cgroup_inode = None), "it is empty");
    }
}
