//! Planned: the sockets are bound or watched for; nothing runs yet.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;

use command_fds::{CommandFdExt, FdMapping};
use nydusbox_protocol::{MountCommand, MountPoint};
use rustix::process::{Resource, getrlimit};

use super::failed;
use super::spawned::Spawned;
use super::watch::DirWatch;
use crate::command::{self, API_FD, VHOST_FD};
use crate::config::SandboxConfig;
use crate::daemon::Daemon;
use crate::dir::{LOG, LOG_OLD, SandboxDir};
use crate::environment::Prepared;
use crate::error::{StartCause, StartError};
use crate::events::EventSink;
use crate::outlet::Outlet;
use crate::output::{LogFile, Output};
use crate::preflight::Fitted;
use crate::process::Process;
use crate::program::ProgramKind;
use crate::state::{self, DaemonLock, DaemonRecord, Journal, MountRecord, OsText, STATE, StateDocument};

/// How the daemon comes by its sockets.
#[derive(Debug)]
enum Sockets {
    /// Listening already; handed down. The first request waits in the backlog.
    Handed { vhost: OwnedFd, api: OwnedFd },
    /// The daemon binds them; their directory is watched.
    Awaited(DirWatch),
}

/// Everything a daemon needs, before it runs.
#[derive(Debug)]
pub(super) struct Planned {
    sockets: Sockets,
    log: LogFile,
    environment: Prepared,
}

impl Planned {
    pub(super) fn plan(config: &SandboxConfig, events: &EventSink) -> Result<Self, StartError> {
        let (environment, sockets, log) =
            prepare(config, events).map_err(|cause| failed(config.id(), cause))?;
        Ok(Self {
            sockets,
            log,
            environment,
        })
    }

    pub(super) fn spawn(
        self,
        config: &SandboxConfig,
        extra: &Fitted,
        events: &EventSink,
        dir: BorrowedFd<'_>,
    ) -> Result<Spawned, StartError> {
        let Self {
            sockets,
            log,
            environment,
        } = self;
        let command = Invocation {
            config,
            extra,
            events,
        };
        match command.start(dir, environment, sockets, log) {
            Ok((daemon, watch)) => {
                tracing::debug!(sandbox = %config.id(), pid = daemon.id(), "daemon spawned");
                Ok(Spawned::new(daemon, watch))
            }
            Err(cause) => Err(failed(config.id(), cause)),
        }
    }
}

/// The lock tells the daemon already; this makes it quicker to find, and is no reason to fail.
pub(crate) fn note_process(config: &SandboxConfig, journal: &mut Journal, daemon: &Daemon, successor: bool) {
    let noted = DaemonRecord::observe(daemon.id()).and_then(|mut record| {
        record.cgroup = daemon.cgroup().map(|path| OsText(path.into()));
        record.cgroup_inode = daemon.cgroup_inode();
        record.successor = successor;
        journal.write(|document| {
            document.daemon = Some(record);
            document.cgroup = None;
        })
    });
    if let Err(error) = noted {
        tracing::warn!(sandbox = %config.id(), %error, "the daemon's process is not written down");
    }
}

/// The document of a sandbox that is being started: with everything the start is going to do.
fn document(config: &SandboxConfig) -> StateDocument {
    let program = config.program().record();
    let mut document = StateDocument::new(config.id().clone(), program, config.settings());
    let share = config.share().map(|share| MountRecord {
        at: MountPoint::containers(),
        command: MountCommand::passthrough(share)
            .with_share_config(config.share_config())
            .into(),
        slot: None,
        unplaced: false,
        replacements: Vec::new(),
    });
    document.mounts.extend(share);
    document.cgroup = config
        .environment()
        .cgroup(config.id(), config.dir())
        .map(|path| OsText(path.into()));
    document
}

/// The document of a sandbox that is being started, written.
pub(super) fn journal(config: &SandboxConfig, dir: &SandboxDir) -> Result<Journal, StartCause> {
    let preparing = |action, path| move |source| StartCause::Prepare { action, path, source };
    let mut journal =
        Journal::new(dir, document(config)).map_err(preparing("open", config.dir().to_owned()))?;
    journal
        .write(|_| ())
        .map_err(preparing("write", dir.file(STATE)))?;
    Ok(journal)
}

fn prepare(config: &SandboxConfig, events: &EventSink) -> Result<(Prepared, Sockets, LogFile), StartCause> {
    let preparing = |action, path: &Path| {
        let path = path.to_owned();
        move |source| StartCause::Prepare { action, path, source }
    };
    let environment = Prepared::new(
        config.environment(),
        config.program().kind(),
        config.id(),
        config.dir(),
        &mut |what, reason| events.degraded(what, reason),
    )?;
    let log_path = config.dir().join(LOG);
    let log =
        LogFile::create(&log_path, &config.dir().join(LOG_OLD)).map_err(preparing("create", &log_path))?;
    let sockets = match config.program().kind() {
        ProgramKind::Embedded => {
            let bind = |path: &Path| {
                UnixListener::bind(path)
                    .map(OwnedFd::from)
                    .map_err(preparing("bind", path))
            };
            Sockets::Handed {
                vhost: bind(config.vhost_socket().as_path())?,
                api: bind(config.api_socket().as_path())?,
            }
        }
        ProgramKind::Stock => {
            let watch = DirWatch::new(config.dir()).map_err(preparing("watch", config.dir()))?;
            Sockets::Awaited(watch)
        }
    };
    Ok((environment, sockets, log))
}

/// What the daemon is executed with.
struct Invocation<'a> {
    config: &'a SandboxConfig,
    extra: &'a Fitted,
    events: &'a EventSink,
}

impl Invocation<'_> {
    fn start(
        self,
        dir: BorrowedFd<'_>,
        mut environment: Prepared,
        sockets: Sockets,
        log: LogFile,
    ) -> Result<(Daemon, Option<DirWatch>), StartCause> {
        let program = self.config.program();
        let failed = |source| StartCause::Spawn {
            exe: program.exe().to_owned(),
            source,
        };
        let nofile_hard = getrlimit(Resource::Nofile).maximum;
        let args = command::arguments(self.config, self.extra, nofile_hard);
        let Outlet { reader, writer } = Outlet::make(dir).map_err(failed)?;
        // It was free when the directory was claimed, and a daemon of ours that died has given it up.
        let DaemonLock::Taken(lock) = state::take(dir).map_err(failed)? else {
            return Err(failed(io::ErrorKind::ResourceBusy.into()));
        };
        let mut command = environment.command(program.exe(), args).map_err(failed)?;
        command
            .envs(command::environment(program, |name| {
                std::env::var_os(name).is_some()
            }))
            .envs(program.env())
            .stdout(writer.try_clone().map_err(failed)?)
            .stderr(writer);
        let mapping = |parent_fd, child_fd| FdMapping { parent_fd, child_fd };
        let mut mappings = vec![mapping_to_itself(lock)];
        let watch = match sockets {
            // The two sockets were opened before the pipes and took the lowest free numbers, so 3 and 4 are in use
            // here and the mapping in the child cannot hit the pipe that reports a failing exec.
            Sockets::Handed { vhost, api } => {
                mappings.extend([mapping(vhost, VHOST_FD), mapping(api, API_FD)]);
                None
            }
            Sockets::Awaited(watch) => Some(watch),
        };
        command
            .fd_mappings(mappings)
            .map_err(|error| failed(io::Error::other(error)))?;
        let secrets = self.config.secrets().clone();
        let output = Output::new(reader, log, self.config.id().clone(), secrets).map_err(failed)?;
        let events = self.events;
        let process = Process::spawn_in(environment, &mut command, &mut |what, reason| {
            events.degraded(what, reason);
        })?;
        // With the command go our copies of the sockets, of the pipe's writing end and of the lock: from here on a
        // dead daemon is a refused connection, an end of file and a free lock.
        drop(command);
        Ok((Daemon::new(process, output), watch))
    }
}

fn mapping_to_itself(fd: OwnedFd) -> FdMapping {
    FdMapping {
        child_fd: fd.as_raw_fd(),
        parent_fd: fd,
    }
}
