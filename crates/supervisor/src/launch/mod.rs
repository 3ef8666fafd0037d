//! The start of a sandbox as a typestate: `Planned -> Spawned -> Answering -> Serving`.
//!
//! Each phase consumes the one before and has a `fail` that undoes what is there so far, waits for it, and makes
//! the error. Dropping a phase undoes the same without waiting for the runtime: the fields are declared so that
//! the process is killed and reaped before the directory goes. No phase spawns a task, so a start whose future is
//! dropped has left nothing behind when `drop` returns. Next: [`crate::driver`].

mod planned;
mod spawned;
mod watch;

use nydusbox_protocol::SandboxId;
use tokio::time::{Instant, timeout_at};

use crate::binds::BindBook;
use crate::client::ApiClient;
use crate::config::SandboxConfig;
use crate::daemon::Daemon;
use crate::dir::SandboxDir;
use crate::error::{StartCause, StartError, WaitingFor};
use crate::events::EventSink;
use crate::ledger::Ledger;
use crate::preflight::{self, Translation};
use crate::state::Journal;
use planned::Planned;

/// A daemon that serves.
#[derive(Debug)]
pub(crate) struct Serving {
    pub(crate) daemon: Daemon,
    pub(crate) client: ApiClient,
    pub(crate) journal: Journal,
    pub(crate) binds: BindBook,
    pub(crate) dir: SandboxDir,
    pub(crate) ledger: Ledger,
    /// Someone else started it.
    pub(crate) adopted: bool,
}

/// Starts a daemon and shares the configured directory. What could not be had as asked for is an event.
pub(crate) async fn launch(config: &SandboxConfig, events: &EventSink) -> Result<Serving, StartError> {
    let deadline = Deadline {
        at: Instant::now() + config.start_deadline(),
        after: config.start_deadline(),
    };
    let extra = timeout_at(deadline.at, preflight::arguments(config.program()))
        .await
        .unwrap_or_else(|_| Err(deadline.missed(WaitingFor::Preflight)))
        .map_err(|cause| failed(config.id(), cause))?;
    for Translation { argument, reason } in &extra.translations {
        events.degraded(argument, (*reason).to_owned());
    }
    let planned = Planned::plan(config, events)?;
    let spawned = planned.spawn(config, &extra, events)?;
    let answering = spawned.answering(config, deadline).await?;
    answering.serving(config, deadline).await
}

/// The one deadline of a start.
#[derive(Debug, Clone, Copy)]
struct Deadline {
    at: Instant,
    after: std::time::Duration,
}

impl Deadline {
    fn missed(self, waiting_for: WaitingFor) -> StartCause {
        StartCause::Deadline {
            after: self.after,
            waiting_for,
        }
    }
}

/// The error of a start that has nothing (more) to undo.
fn failed(sandbox: &SandboxId, cause: StartCause) -> StartError {
    StartError {
        sandbox: sandbox.clone(),
        cause: Box::new(cause),
        last_lines: Vec::new(),
        leftovers: Vec::new(),
    }
}
