//! An environment made ready, and a child put into it.
//!
//! A cgroup moves whole processes and resource limits belong to them, so neither can be set by a thread of ours, and
//! code of ours cannot run between fork and exec without `unsafe`. What is to be executed with limits therefore waits
//! as a shell that reads one line (the *gate*), until everything round it is in place; then it executes the program
//! in its stead. If the supervisor dies before, the shell reads an end of file and ends.

use std::ffi::OsString;
use std::io::{self, PipeWriter, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nydusbox_protocol::SandboxId;
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Resource};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::cgroup::{self, Leaf};
use super::guardian::Guardian;
use super::{Environment, EnvironmentError, LimitError, OnSupervisorDeath, SHELL, rlimit};
use crate::binds::Inode;
use crate::error::{StartCause, chain};
use crate::program::ProgramKind;

/// The two gates: the daemon keeps the pipe as its standard input, or has none.
const GATE_KEEPING_STDIN: &str = "read -r _ && exec \"$0\" \"$@\"";
const GATE: &str = "read -r _ && exec \"$0\" \"$@\" </dev/null";

/// `NSFS_MAGIC` of linux/magic.h.
const NSFS_MAGIC: rustix::fs::FsWord = 0x6e73_6673;

/// Called with a limit that is not applied, and why.
pub(crate) type Notice<'a> = &'a mut dyn FnMut(&'static str, String);

/// Who ends the daemon when the supervisor is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Watch {
    Nobody,
    /// The daemon itself.
    Daemon,
    Guardian,
}

/// Everything that can be made before there is a child. Dropping it undoes it.
#[derive(Debug)]
pub(crate) struct Prepared {
    netns: Option<(PathBuf, OwnedFd)>,
    leaf: Option<Leaf>,
    rlimits: Vec<(Resource, &'static str, u64)>,
    required: bool,
    watch: Watch,
    /// Our end of the child's standard input.
    stdin: Option<PipeWriter>,
}

/// What is round a running daemon and goes with it.
#[derive(Debug, Default)]
pub(crate) struct Surroundings {
    leaf: Option<Leaf>,
    guardian: Option<Guardian>,
    /// Closing it ends an embedded daemon.
    _lifeline: Option<PipeWriter>,
}

impl Prepared {
    /// Opens the namespace and makes the cgroup, for the sandbox with this directory.
    pub(crate) fn new(
        environment: &Environment,
        kind: ProgramKind,
        sandbox: &SandboxId,
        dir: &Path,
        notice: Notice<'_>,
    ) -> Result<Self, EnvironmentError> {
        let limits = &environment.limits;
        let netns = match environment.netns.path() {
            None => None,
            Some(path) => match open_namespace(&path) {
                Ok(fd) => Some((path, fd)),
                Err(source) => return Err(EnvironmentError::Netns { path, source }),
            },
        };
        let leaf = match limits.wants_cgroup() {
            true => make_leaf(environment, sandbox, dir, notice)?,
            false => None,
        };
        Ok(Self {
            netns,
            leaf,
            rlimits: limits.rlimits(),
            required: limits.required,
            watch: match (environment.on_supervisor_death, kind) {
                (OnSupervisorDeath::Spare, _) => Watch::Nobody,
                (OnSupervisorDeath::Kill, ProgramKind::Embedded) => Watch::Daemon,
                (OnSupervisorDeath::Kill, ProgramKind::Stock) => Watch::Guardian,
            },
            stdin: None,
        })
    }

    fn gated(&self) -> bool {
        self.leaf.is_some() || !self.rlimits.is_empty()
    }

    /// The command that becomes the program, with its standard input.
    pub(crate) fn command(&mut self, exe: &Path, args: Vec<OsString>) -> io::Result<Command> {
        let mut command = if self.gated() {
            let gate = match self.watch {
                Watch::Daemon => GATE_KEEPING_STDIN,
                Watch::Nobody | Watch::Guardian => GATE,
            };
            let mut command = Command::new(SHELL);
            command.args(["-c", gate]).arg(exe);
            command
        } else {
            Command::new(exe)
        };
        command.args(args);
        if self.gated() || self.watch == Watch::Daemon {
            let (reader, writer) = io::pipe()?;
            command.stdin(reader);
            self.stdin = Some(writer);
        } else {
            command.stdin(Stdio::null());
        }
        Ok(command)
    }

    /// Spawns a command made by [`Prepared::command`], as a member of the process group that is returned.
    pub(crate) fn spawn(
        mut self,
        command: &mut Command,
        notice: Notice<'_>,
    ) -> Result<(Child, Pid, Surroundings), StartCause> {
        let guardian = match self.watch {
            Watch::Nobody | Watch::Daemon => None,
            Watch::Guardian => match Guardian::start() {
                Ok(guardian) => Some(guardian),
                Err(source) => {
                    notice("end with the supervisor", chain(&LimitError::Guardian { source }));
                    None
                }
            },
        };
        let group = guardian.as_ref().map(Guardian::group);
        command.process_group(group.map_or(0, |pid| pid.as_raw_nonzero().get()));
        let mut child = match self.netns.take() {
            None => command.spawn().map_err(|source| spawn_failed(command, source)),
            Some((path, fd)) => spawn_in(command, path, &fd),
        }?;
        if self.gated()
            && let Err(error) = self.open_gate(&child, notice)
        {
            // Nothing of the program has run.
            let ended = child.kill().and_then(|()| child.wait());
            if let Err(error) = ended {
                tracing::warn!(pid = child.id(), %error, "cannot end what was not to be executed");
            }
            return Err(error);
        }
        let group = group.unwrap_or(Pid::from_child(&child));
        let surroundings = Surroundings {
            leaf: self.leaf.take(),
            guardian,
            _lifeline: self.stdin.take().filter(|_| self.watch == Watch::Daemon),
        };
        Ok((child, group, surroundings))
    }

    /// Puts the limits round the child that waits, and lets it go on.
    fn open_gate(&mut self, child: &Child, notice: Notice<'_>) -> Result<(), StartCause> {
        let pid = Pid::from_child(child);
        let placed = self.leaf.as_ref().map_or(Ok(()), |leaf| leaf.place(pid));
        if let Err(source) = placed {
            degrade("cgroup", source, self.required, notice)?;
        }
        for &(resource, what, wanted) in &self.rlimits {
            if let Err(source) = rlimit::apply(pid, resource, what, wanted) {
                degrade(what, source, self.required, notice)?;
            }
        }
        let opened = self.stdin.as_mut().map_or(Ok(()), |stdin| stdin.write_all(b"\n"));
        match opened {
            Ok(()) => Ok(()),
            // It has died already; whoever waits for it will find out how.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            Err(source) => Err(StartCause::Spawn {
                exe: SHELL.into(),
                source,
            }),
        }
    }
}

impl Surroundings {
    /// What is round a daemon that someone else has started: nothing that would end with the supervisor.
    pub(crate) fn recalled(cgroup: Option<(PathBuf, Inode)>) -> Self {
        Self {
            leaf: cgroup.map(|(path, inode)| Leaf::recalled(path, inode)),
            ..Self::default()
        }
    }

    /// Whether the kernel has killed in the daemon's cgroup because its memory was used up.
    pub(crate) fn oom_killed(&self) -> bool {
        self.leaf.as_ref().is_some_and(|leaf| leaf.oom_kills() > 0)
    }

    /// The daemon's cgroup.
    pub(crate) fn cgroup(&self) -> Option<&Path> {
        self.leaf.as_ref().map(Leaf::path)
    }

    /// Its directory, by what it is.
    pub(crate) fn cgroup_inode(&self) -> Option<Inode> {
        self.leaf.as_ref().map(Leaf::inode)
    }

    /// Removes all of it once the daemon is reaped; the cgroup that could not be, and why.
    pub(crate) fn remove(&mut self) -> Option<(PathBuf, io::Error)> {
        self.guardian = None;
        self.leaf.take().and_then(|leaf| leaf.remove().err())
    }
}

/// Opens a namespace. Anything else could be waited for, as the other end of a named pipe is.
fn open_namespace(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(path, flags, Mode::empty())?;
    match rustix::fs::fstatfs(&fd)?.f_type {
        NSFS_MAGIC => Ok(fd),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no namespace")),
    }
}

/// A limit that is not applied: an event, or the end.
fn degrade(
    what: &'static str,
    source: LimitError,
    required: bool,
    notice: Notice<'_>,
) -> Result<(), EnvironmentError> {
    if required {
        return Err(EnvironmentError::Limit { what, source });
    }
    notice(what, chain(&source));
    Ok(())
}

/// A leaf with the limits that can be set; none when none can, and nobody asked for a cgroup as such.
fn make_leaf(
    environment: &Environment,
    sandbox: &SandboxId,
    dir: &Path,
    notice: Notice<'_>,
) -> Result<Option<Leaf>, EnvironmentError> {
    let limits = &environment.limits;
    let required = limits.required;
    let parent = match limits
        .cgroup_parent
        .clone()
        .map_or_else(cgroup::default_parent, Ok)
    {
        Ok(parent) => parent,
        Err(source) => return degrade("cgroup", source, required, notice).map(|()| None),
    };
    let wanted = [
        ("memory.max", "memory", limits.memory_max_bytes),
        ("pids.max", "pids", limits.pids_max),
    ];
    let mut possible = Vec::new();
    for (file, controller, value) in wanted {
        let Some(value) = value else { continue };
        match cgroup::ensure_controller(&parent, controller) {
            Ok(()) => possible.push((file, value)),
            Err(source) => degrade(file, source, required, notice)?,
        }
    }
    if possible.is_empty() && limits.cgroup_parent.is_none() {
        return Ok(None);
    }
    let made = cgroup::leaf_name(sandbox, dir).and_then(|name| Leaf::create(&parent, &name));
    let leaf = match made {
        Ok(leaf) => leaf,
        Err(source) => return degrade("cgroup", source, required, notice).map(|()| None),
    };
    for (file, value) in possible {
        if let Err(source) = leaf.set(file, value) {
            degrade(file, source, required, notice)?;
        }
    }
    Ok(Some(leaf))
}

/// Spawns from a thread of its own that enters the namespace first. The thread ends with the spawn, so no thread of
/// the runtime is ever in a namespace that is not its own.
fn spawn_in(command: &mut Command, path: PathBuf, netns: &OwnedFd) -> Result<Child, StartCause> {
    let entered = std::thread::scope(|scope| {
        let spawning = std::thread::Builder::new()
            .name("nydusbox-spawn".to_owned())
            .spawn_scoped(scope, || {
                move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
                Ok(command.spawn().map_err(|source| spawn_failed(command, source)))
            })?;
        spawning
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the spawning thread panicked")))
    });
    entered.unwrap_or_else(|source| Err(EnvironmentError::Netns { path, source }.into()))
}

fn spawn_failed(command: &Command, source: io::Error) -> StartCause {
    StartCause::Spawn {
        exe: command.get_program().into(),
        source,
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_namespace_is_refused_and_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let (pipe, file) = (dir.path().join("pipe"), dir.path().join("file"));
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, Mode::RWXU).unwrap();
        std::fs::write(&file, "").unwrap();
        for path in [&pipe, &file, &"/dev/null".into()] {
            let refused = open_namespace(path).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::InvalidInput, "{path:?}");
        }
        assert!(open_namespace("/proc/self/ns/net".as_ref()).is_ok());
    }
}
