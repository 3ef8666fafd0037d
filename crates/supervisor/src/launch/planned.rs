//! Planned: the directory is ours, the sockets are bound or watched for; nothing runs yet.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};

use command_fds::{CommandFdExt, FdMapping};
use rustix::process::{Resource, getrlimit};

use super::failed;
use super::spawned::Spawned;
use super::watch::DirWatch;
use crate::command::{self, API_FD, VHOST_FD};
use crate::config::SandboxConfig;
use crate::daemon::Daemon;
use crate::dir::{LOG, LOG_OLD, SandboxDir};
use crate::error::{StartCause, StartError};
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
    dir: SandboxDir,
}

impl Planned {
    pub(super) fn plan(config: &SandboxConfig) -> Result<Self, StartError> {
        let dir = SandboxDir::claim(config.dir()).map_err(|error| failed(config.id(), error.into()))?;
        match prepare(config, &dir) {
            Ok((sockets, log)) => Ok(Self { sockets, log, dir }),
            Err(cause) => Err(undo(config, dir, cause)),
        }
    }

    pub(super) fn spawn(self, config: &SandboxConfig, extra: &Fitted) -> Result<Spawned, StartError> {
        let Self { sockets, log, dir } = self;
        match start(config, extra, sockets, log) {
            Ok((daemon, watch)) => {
                tracing::debug!(sandbox = %config.id(), pid = daemon.id(), "daemon spawned");
                Ok(Spawned::new(daemon, dir, watch))
            }
            Err(source) => {
                let exe = config.program().exe().to_owned();
                Err(undo(config, dir, StartCause::Spawn { exe, source }))
            }
        }
    }
}

fn undo(config: &SandboxConfig, dir: SandboxDir, cause: StartCause) -> StartError {
    StartError {
        leftovers: dir.remove(),
        ..failed(config.id(), cause)
    }
}

fn prepare(config: &SandboxConfig, dir: &SandboxDir) -> Result<(Sockets, LogFile), StartCause> {
    let preparing = |action, path: &Path| {
        let path = path.to_owned();
        move |source| StartCause::Prepare { action, path, source }
    };
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
    Ok((sockets, log))
}

fn start(
    config: &SandboxConfig,
    extra: &Fitted,
    sockets: Sockets,
    log: LogFile,
) -> io::Result<(Daemon, Option<DirWatch>)> {
    let (reader, writer) = io::pipe()?;
    let program = config.program();
    let mut command = Command::new(program.exe());
    command
        .args(command::arguments(
            config,
            extra,
            getrlimit(Resource::Nofile).maximum,
        ))
        .envs(program.env())
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer);
    let watch = match sockets {
        // The two sockets were the last descriptors opened and took the lowest free numbers, so 3 and 4 are in
        // use here and the mapping in the child cannot hit the pipe that reports a failing exec.
        Sockets::Handed { vhost, api } => {
            let mapping = |parent_fd, child_fd| FdMapping { parent_fd, child_fd };
            command
                .fd_mappings(vec![mapping(vhost, VHOST_FD), mapping(api, API_FD)])
                .map_err(io::Error::other)?;
            None
        }
        Sockets::Awaited(watch) => Some(watch),
    };
    let output = Output::new(reader.into(), log, config.id().clone())?;
    let process = Process::spawn(&mut command)?;
    // With the command go our copies of the sockets and of the pipe's writing end: from here on a dead daemon is
    // a refused connection and an end of file.
    drop(command);
    Ok((Daemon::new(process, output), watch))
}
