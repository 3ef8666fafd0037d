//! Planned: the directory is ours, the sockets are bound or watched for; nothing runs yet.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;

use command_fds::{CommandFdExt, FdMapping};
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
use crate::output::{LogFile, Output};
use crate::preflight::Fitted;
use crate::process::Process;
use crate::program::ProgramKind;

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
    dir: SandboxDir,
}

impl Planned {
    pub(super) fn plan(config: &SandboxConfig, events: &EventSink) -> Result<Self, StartError> {
        let dir = SandboxDir::claim(config.dir()).map_err(|error| failed(config.id(), error.into()))?;
        match prepare(config, &dir, events) {
            Ok((environment, sockets, log)) => Ok(Self {
                sockets,
                log,
                environment,
                dir,
            }),
            Err(cause) => Err(undo(config, dir, cause)),
        }
    }

    pub(super) fn spawn(
        self,
        config: &SandboxConfig,
        extra: &Fitted,
        events: &EventSink,
    ) -> Result<Spawned, StartError> {
        let Self {
            sockets,
            log,
            environment,
            dir,
        } = self;
        let command = Invocation {
            config,
            extra,
            events,
        };
        match command.start(environment, sockets, log) {
            Ok((daemon, watch)) => {
                tracing::debug!(sandbox = %config.id(), pid = daemon.id(), "daemon spawned");
                Ok(Spawned::new(daemon, dir, watch))
            }
            Err(cause) => Err(undo(config, dir, cause)),
        }
    }
}

fn undo(config: &SandboxConfig, dir: SandboxDir, cause: StartCause) -> StartError {
    StartError {
        leftovers: dir.remove(),
        ..failed(config.id(), cause)
    }
}

fn prepare(
    config: &SandboxConfig,
    dir: &SandboxDir,
    events: &EventSink,
) -> Result<(Prepared, Sockets, LogFile), StartCause> {
    let preparing = |action, path: &Path| {
        let path = path.to_owned();
        move |source| StartCause::Prepare { action, path, source }
    };
    let environment = Prepared::new(
        config.environment(),
        config.program().kind(),
        config.id(),
        &mut |what, reason| events.degraded(what, reason),
    )?;
    let log_path = dir.file(LOG);
    let log = LogFile::create(&log_path, &dir.file(LOG_OLD)).map_err(preparing("create", &log_path))?;
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
        let (reader, writer) = io::pipe().map_err(failed)?;
        let mut command = environment.command(program.exe(), args).map_err(failed)?;
        command
            .envs(program.env())
            .stdout(writer.try_clone().map_err(failed)?)
            .stderr(writer);
        let watch = match sockets {
            // The two sockets were opened before the pipes and took the lowest free numbers, so 3 and 4 are in use
            // here and the mapping in the child cannot hit the pipe that reports a failing exec.
            Sockets::Handed { vhost, api } => {
                let mapping = |parent_fd, child_fd| FdMapping { parent_fd, child_fd };
                command
                    .fd_mappings(vec![mapping(vhost, VHOST_FD), mapping(api, API_FD)])
                    .map_err(|error| failed(io::Error::other(error)))?;
                None
            }
            Sockets::Awaited(watch) => Some(watch),
        };
        let output = Output::new(reader.into(), log, self.config.id().clone()).map_err(failed)?;
        let events = self.events;
        let process = Process::spawn_in(environment, &mut command, &mut |what, reason| {
            events.degraded(what, reason);
        })?;
        // With the command go our copies of the sockets and of the pipe's writing end: from here on a dead daemon is
        // a refused connection and an end of file.
        drop(command);
        Ok((Daemon::new(process, output), watch))
    }
}
