//! Spawned: the daemon runs, and its first answer, its end and the deadline race. Answering: it runs and says so;
//! the shared directory is mounted next.

use std::io::ErrorKind;
use std::time::Duration;

use nydusbox_protocol::{BuildVersion, DaemonState, MountPoint, SandboxId, ShareConfig};
use tokio::time::{sleep, timeout, timeout_at};

use super::watch::DirWatch;
use super::{Deadline, Running, failed};
use crate::client::{ApiClient, CallError, ConnectFailure};
use crate::config::SandboxConfig;
use crate::daemon::Daemon;
use crate::dir::Leftover;
use crate::driver::EXIT_SHOWS;
use crate::error::{StartCause, StartError, WaitingFor};
use crate::exit::Exit;
use crate::ledger::Ledger;
use crate::request::MountRequest;

/// Between bind(2), which makes the name, and listen(2) a connection is refused, and no event tells when that is
/// over. It is a matter of microseconds.
const LISTEN_RETRY: Duration = Duration::from_millis(1);
/// A daemon whose state is not RUNNING yet tells of the change only when asked. nydusd never does this in virtiofs
/// mode.
const STATE_RETRY: Duration = Duration::from_millis(20);

/// A daemon that runs; whether it serves is not known.
#[derive(Debug)]
pub(super) struct Spawned {
    daemon: Daemon,
    watch: Option<DirWatch>,
}

/// A daemon that says it runs.
#[derive(Debug)]
pub(super) struct Answering {
    client: ApiClient,
    daemon: Daemon,
}

impl Spawned {
    pub(super) fn new(daemon: Daemon, watch: Option<DirWatch>) -> Self {
        Self { daemon, watch }
    }

    pub(super) fn daemon(&self) -> &Daemon {
        &self.daemon
    }

    /// Waits for the first answer with state RUNNING.
    pub(super) async fn answering(
        mut self,
        config: &SandboxConfig,
        deadline: Deadline,
    ) -> Result<Answering, StartError> {
        let mut client = ApiClient::new(config.api_socket().clone(), config.call_deadline())
            .with_secrets(config.secrets());
        let mut waiting_for = WaitingFor::Socket;
        let answer = timeout_at(
            deadline.at,
            first_answer(&mut client, self.watch.as_mut(), config, &mut waiting_for),
        );
        let result = tokio::select! {
            biased;
            exit = self.daemon.exited() => Err(StartCause::Exited(exit.cause)),
            answer = answer => match answer {
                Ok(result) => result,
                Err(_) => Err(deadline.missed(waiting_for)),
            },
        };
        match result {
            Ok(version) => {
                self.daemon.set_version(version.package_ver);
                Ok(Answering {
                    client,
                    daemon: self.daemon,
                })
            }
            Err(cause) => Err(self.fail(config.id(), cause).await),
        }
    }

    async fn fail(self, sandbox: &SandboxId, cause: StartCause) -> StartError {
        undo(self.daemon, sandbox, cause).await
    }
}

impl Answering {
    /// A daemon that is to get its mounts later.
    pub(super) fn running(self) -> Running {
        Running {
            daemon: self.daemon,
            client: self.client,
        }
    }

    /// Shares the configured directory, if any.
    pub(super) async fn serving(
        mut self,
        config: &SandboxConfig,
        deadline: Deadline,
    ) -> Result<(Running, Ledger), StartError> {
        let mut ledger = Ledger::default();
        if let Some(share) = config.share()
            && let Err(cause) = self
                .share(share, config.share_config(), &mut ledger, deadline)
                .await
        {
            return Err(self.fail(config.id(), cause).await);
        }
        Ok((self.running(), ledger))
    }

    async fn share(
        &mut self,
        share: &str,
        share_config: &ShareConfig,
        ledger: &mut Ledger,
        deadline: Deadline,
    ) -> Result<(), StartCause> {
        let refused = |source| StartCause::Share {
            share: share.to_owned(),
            source,
        };
        let request = MountRequest::passthrough(MountPoint::containers(), share).map_err(|error| {
            // The configuration holds an absolute path in UTF-8.
            refused(CallError::BadSource {
                message: error.to_string(),
            })
        })?;
        let request = request.with_share_config(share_config);
        // The first entry of an empty book is always granted.
        let _ = ledger.admit(&request);
        let call = timeout_at(deadline.at, self.client.mount(request.at(), request.command()));
        tokio::select! {
            biased;
            exit = self.daemon.exited() => Err(StartCause::Exited(exit.cause)),
            answer = call => match answer {
                Ok(answer) => ledger.settle_mount(request.at(), answer).map_err(refused),
                Err(_) => Err(deadline.missed(WaitingFor::Share)),
            },
        }
    }

    async fn fail(self, sandbox: &SandboxId, cause: StartCause) -> StartError {
        drop(self.client);
        undo(self.daemon, sandbox, cause).await
    }
}

/// Kills and reaps. When the connection broke because the daemon was ending, its end is the cause.
async fn undo(mut daemon: Daemon, sandbox: &SandboxId, cause: StartCause) -> StartError {
    let broken = matches!(
        cause,
        StartCause::Api(CallError::Unreachable { .. })
            | StartCause::Share {
                source: CallError::Unreachable { .. },
                ..
            }
    );
    let ended = match broken {
        true => timeout(EXIT_SHOWS, daemon.exited()).await.ok(),
        false => None,
    };
    let cause = match ended {
        Some(Exit { cause, .. }) => StartCause::Exited(cause),
        None => cause,
    };
    let killed = daemon.kill_and_reap().await;
    let stuck = killed.is_none().then(|| Leftover::Process { pid: daemon.id() });
    let last_lines = killed.map_or_else(|| daemon.last_lines(), |exit| exit.last_lines);
    StartError {
        last_lines,
        leftovers: stuck.into_iter().chain(daemon.take_left()).collect(),
        ..failed(sandbox, cause)
    }
}

async fn first_answer(
    client: &mut ApiClient,
    watch: Option<&mut DirWatch>,
    config: &SandboxConfig,
    waiting_for: &mut WaitingFor,
) -> Result<BuildVersion, StartCause> {
    if let Some(watch) = watch {
        connected(client, watch, config).await?;
    }
    *waiting_for = WaitingFor::Answer;
    loop {
        let info = client.daemon_info().await.map_err(StartCause::Api)?;
        if info.state == DaemonState::Running {
            return Ok(info.version);
        }
        *waiting_for = WaitingFor::Running { state: info.state };
        sleep(STATE_RETRY).await;
    }
}

/// Waits for the socket the daemon makes. The watch is older than the daemon, so no creation is missed.
async fn connected(
    client: &mut ApiClient,
    watch: &mut DirWatch,
    config: &SandboxConfig,
) -> Result<(), StartCause> {
    loop {
        match client.connect().await {
            Ok(()) => return Ok(()),
            Err(ConnectFailure(error)) if error.kind() == ErrorKind::NotFound => {
                watch.changed().await.map_err(|source| StartCause::Prepare {
                    action: "watch",
                    path: config.dir().to_owned(),
                    source,
                })?;
            }
            Err(ConnectFailure(error)) if error.kind() == ErrorKind::ConnectionRefused => {
                sleep(LISTEN_RETRY).await;
            }
            Err(failure) => return Err(StartCause::Api(failure.into())),
        }
    }
}
