//! The start of a sandbox as a typestate: `Planned -> Spawned -> Answering -> Serving`.
//!
//! Each phase consumes the one before and has a `fail` that undoes what is there so far, waits for it, and makes
//! the error. Dropping a phase undoes the same without waiting for the runtime. The directory belongs to [`launch`]
//! and goes last. A daemon that takes another one's place goes the same way up to `Answering`; its directory is the
//! driver's. No phase spawns a task, so a start whose future is dropped has left nothing behind when `drop` returns.
//! Next: [`crate::driver`].

mod planned;
mod spawned;
mod watch;

use std::os::fd::{AsFd, OwnedFd};

use nydusbox_protocol::SandboxId;
use tokio::time::{Instant, timeout_at};
use tracing::Instrument;

use crate::binds::BindBook;
use crate::client::ApiClient;
use crate::config::SandboxConfig;
use crate::daemon::Daemon;
use crate::dir::{Leftover, SandboxDir};
use crate::error::{StartCause, StartError, WaitingFor};
use crate::events::EventSink;
use crate::ledger::Ledger;
use crate::preflight::{self, Fitted, Translation};
use crate::state::Journal;
use planned::Planned;
pub(crate) use planned::note_process;

/// A daemon that serves.
#[derive(Debug)]
pub(crate) struct Serving {
    pub(crate) running: Running,
    pub(crate) ledger: Ledger,
    pub(crate) journal: Journal,
    pub(crate) binds: BindBook,
    pub(crate) dir: SandboxDir,
    /// Someone else started it.
    pub(crate) adopted: bool,
    /// In the place of another one.
    pub(crate) successor: bool,
}

/// A daemon that answers.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) daemon: Daemon,
    pub(crate) client: ApiClient,
}

/// Starts a daemon and shares the configured directory. What could not be had as asked for is an event.
pub(crate) async fn launch(config: &mut SandboxConfig, events: &EventSink) -> Result<Serving, StartError> {
    let deadline = Deadline::of(config);
    let extra = extra_arguments(config, events, deadline).await?;
    // Of a successor the level is the last that was asked for, whatever the arguments said at first.
    if let Some(level) = extra.log_level {
        config.set_log_level(level);
    }
    let config = &*config;
    let dir = SandboxDir::claim(config.dir()).map_err(|error| failed(config.id(), error.into()))?;
    // When this future is dropped, what `serve` holds goes before the directory.
    match serve(config, &extra, events, &dir, deadline).await {
        Ok((running, ledger, journal)) => Ok(Serving {
            running,
            ledger,
            journal,
            binds: BindBook::default(),
            dir,
            adopted: false,
            successor: false,
        }),
        Err(mut error) => {
            match error.leftovers.iter().any(Leftover::needs_the_document) {
                // A daemon that does not go keeps its sockets and the document, for the next attempt.
                true => dir.leave(),
                false => error.leftovers.extend(dir.remove()),
            }
            Err(error)
        }
    }
}

async fn serve(
    config: &SandboxConfig,
    extra: &Fitted,
    events: &EventSink,
    dir: &SandboxDir,
    deadline: Deadline,
) -> Result<(Running, Ledger, Journal), StartError> {
    let mut journal = planned::journal(config, dir).map_err(|cause| failed(config.id(), cause))?;
    let spawned = Planned::plan(config, events)?.spawn(config, extra, events, dir.as_fd())?;
    note_process(config, &mut journal, spawned.daemon(), false);
    let ready = tracing::info_span!("ready");
    let answering = spawned.answering(config, deadline).instrument(ready).await?;
    let sharing = tracing::info_span!("share");
    let (running, ledger) = answering.serving(config, deadline).instrument(sharing).await?;
    // It executes its program by now, whatever it was spawned as.
    note_process(config, &mut journal, &running.daemon, false);
    Ok((running, ledger, journal))
}

/// Starts a daemon in the place of one that ended. What goes wrong leaves the directory as it is.
pub(crate) async fn relaunch(
    config: &SandboxConfig,
    events: &EventSink,
    dir: OwnedFd,
) -> Result<Running, StartError> {
    let deadline = Deadline::of(config);
    let extra = extra_arguments(config, events, deadline).await?;
    let spawned = Planned::plan(config, events)?.spawn(config, &extra, events, dir.as_fd())?;
    let ready = tracing::info_span!("ready");
    Ok(spawned
        .answering(config, deadline)
        .instrument(ready)
        .await?
        .running())
}

async fn extra_arguments(
    config: &SandboxConfig,
    events: &EventSink,
    deadline: Deadline,
) -> Result<Fitted, StartError> {
    let extra = timeout_at(deadline.at, preflight::arguments(config.program()))
        .await
        .unwrap_or_else(|_| Err(deadline.missed(WaitingFor::Preflight)))
        .map_err(|cause| failed(config.id(), cause))?;
    for Translation { argument, reason } in &extra.translations {
        events.degraded(argument, (*reason).to_owned());
    }
    Ok(extra)
}

/// The one deadline of a start.
#[derive(Debug, Clone, Copy)]
struct Deadline {
    at: Instant,
    after: std::time::Duration,
}

impl Deadline {
    fn of(config: &SandboxConfig) -> Self {
        Self {
            at: Instant::now() + config.start_deadline(),
            after: config.start_deadline(),
        }
    }

    fn missed(self, waiting_for: WaitingFor) -> StartCause {
        StartCause::Deadline {
            after: self.after,
            waiting_for,
        }
    }
}

/// The error of a start that has nothing (more) to undo.
pub(crate) fn failed(sandbox: &SandboxId, cause: StartCause) -> StartError {
    StartError {
        sandbox: sandbox.clone(),
        cause: Box::new(cause),
        last_lines: Vec::new(),
        leftovers: Vec::new(),
    }
}
