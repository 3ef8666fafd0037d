//! The handle of a running sandbox.
//!
//! Holds no state of the sandbox itself: requests go to the driver's task, what it knows comes back through a
//! watch. Next: [`crate::driver`].

use std::future::Future;
use std::time::Duration;

use nydusbox_protocol::{ConfigureCommand, LogLevel, MountPoint, ReadTrace, SandboxId, SocketPath};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tracing::Instrument;

use crate::binds;
use crate::client::{ApiClient, CallError};
use crate::config::SandboxConfig;
use crate::counters::{self, ImageCounters};
use crate::driver::{Driver, Strings};
use crate::error::{MountError, RemountError, StartError, UnmountError};
use crate::events::{EventSink, Events};
use crate::exit::{Exit, ExitCause};
use crate::launch::{self, Serving};
use crate::ledger::UnmountOutcome;
use crate::lifecycle::MountOutcome;
use crate::recovery::OnExit;
use crate::request::{MountRequest, Snapshotdir};
use crate::requests::Envelope;
use crate::secrets::Secrets;
use crate::status::{Status, StatusPhase};
use crate::stop::{StopOutcome, StopStep};
use crate::trace::{self, TraceError};

/// A sandbox whose daemon was started, or taken over, by this process.
///
/// Dropping it kills and reaps the daemon and removes the sandbox's directory. The task that owns the daemon does
/// this as soon as it runs next; if its runtime is shut down before, the same happens while the task is dropped.
/// The end can be awaited: [`Sandbox::status`] yields its last value and then closes when all is gone.
#[derive(Debug)]
pub struct Sandbox {
    id: SandboxId,
    vhost_socket: SocketPath,
    api_socket: SocketPath,
    on_exit: OnExit,
    secrets: Secrets,
    call_deadline: Duration,
    strings: Strings,
    events: Events,
    task: JoinHandle<StopOutcome>,
}

impl Sandbox {
    /// Starts a daemon, waits until it serves, and shares the configured directory at `/containers`.
    ///
    /// # Errors
    /// [`StartError`] with the first cause and the daemon's last lines; everything done so far is undone.
    ///
    /// # Cancel safety
    /// Dropping the future before it is ready kills and reaps the daemon and removes the directory before `drop`
    /// returns (it blocks for the few milliseconds this takes, at most one second).
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O and time enabled.
    pub async fn start(mut config: SandboxConfig) -> Result<Self, StartError> {
        let events = EventSink::new(config.id().clone());
        let span = tracing::info_span!(
            "start",
            sandbox = %config.id(),
            program = %config.program().exe().display(),
            error = tracing::field::Empty,
        );
        let launch = async { noted(launch::launch(&mut config, &events).await) };
        let serving = Box::pin(launch.instrument(span)).await?;
        Ok(Self::supervise(serving, config, events))
    }

    /// The handle of a sandbox that serves, with the task that supervises it. Must be called within a runtime.
    pub(crate) fn supervise(serving: Serving, config: SandboxConfig, events: EventSink) -> Self {
        let from_the_start = events.events();
        let (id, vhost_socket, api_socket) = (
            config.id().clone(),
            config.vhost_socket().clone(),
            config.api_socket().clone(),
        );
        let (on_exit, secrets) = (config.on_exit(), config.secrets().clone());
        let call_deadline = config.call_deadline();
        let (driver, strings) = Driver::new(serving, config, events);
        Self {
            id,
            vhost_socket,
            api_socket,
            on_exit,
            secrets,
            call_deadline,
            strings,
            events: from_the_start,
            task: tokio::spawn(driver.run()),
        }
    }

    /// Mounts something. The same again is a no-op; something else at the same place is an error.
    ///
    /// # Errors
    /// [`MountError`]; where the daemon refused, its `source` says why.
    ///
    /// # Cancel safety
    /// A request whose future is dropped is carried out all the same, and entered in the books, unless it still waits
    /// behind 16 others, or its snapshot's directory is being looked at: then it was never made.
    pub async fn mount(&self, request: MountRequest) -> Result<MountOutcome, MountError> {
        let at = request.at().clone();
        let span = tracing::info_span!("mount", sandbox = %self.id, %at, error = tracing::field::Empty);
        async {
            // The driver must not be held up by a file system that does not answer.
            if let Some(Snapshotdir { source, .. }) = request.snapshotdir()
                && let Err(source) = binds::answers(source, self.call_deadline).await
            {
                return noted(Err(MountError::Snapshotdir { at, source }));
            }
            let (reply, answer) = oneshot::channel();
            // Either end is closed only while the driver ends; what it did not take was not done.
            let _ = self.strings.requests.send(Envelope::Mount(request, reply)).await;
            noted(answer.await.unwrap_or(Err(MountError::Stopping { at })))
        }
        .instrument(span)
        .await
    }

    /// Gives a mounted image a new configuration (fresh credentials, another backend) or a new bootstrap of the same
    /// image. The guest's open files stay open; a snapshot directory is neither added nor taken away.
    ///
    /// # Errors
    /// [`RemountError`]; unless the daemon's answer was lost, the mount is as it was. After a lost answer it has the
    /// old or the new configuration until a remount succeeds.
    ///
    /// # Cancel safety
    /// As for [`Sandbox::mount`].
    pub async fn remount(&self, request: MountRequest) -> Result<(), RemountError> {
        let at = request.at().clone();
        let span = tracing::info_span!("remount", sandbox = %self.id, %at, error = tracing::field::Empty);
        async {
            let (reply, answer) = oneshot::channel();
            let envelope = Envelope::Remount(request, reply);
            let _ = self.strings.requests.send(envelope).await;
            noted(answer.await.unwrap_or(Err(RemountError::Stopping { at })))
        }
        .instrument(span)
        .await
    }

    /// Unmounts what is at a place. Nothing there is a success of its own kind.
    ///
    /// # Errors
    /// [`UnmountError`] when the daemon refused, did not answer, or is gone.
    ///
    /// # Cancel safety
    /// As for [`Sandbox::mount`].
    pub async fn unmount(&self, at: MountPoint) -> Result<UnmountOutcome, UnmountError> {
        let span = tracing::info_span!("unmount", sandbox = %self.id, %at, error = tracing::field::Empty);
        async {
            let (reply, answer) = oneshot::channel();
            let envelope = Envelope::Unmount(at.clone(), reply);
            let _ = self.strings.requests.send(envelope).await;
            noted(answer.await.unwrap_or(Err(UnmountError::Stopping { at })))
        }
        .instrument(span)
        .await
    }

    /// How much of the image mounted at a place was read.
    ///
    /// # Errors
    /// [`CallError`] when the daemon has no counters for it or cannot be asked.
    pub async fn image_counters(&self, at: &MountPoint) -> Result<ImageCounters, CallError> {
        counters::read(self.client(), at).await
    }

    /// Has the daemon record what is read of the image mounted at a place from now on, with nothing recorded yet. A
    /// daemon that takes its place does not go on with it.
    ///
    /// # Errors
    /// [`TraceError`]; a stock nydusd cannot.
    pub async fn start_trace(&self, at: &MountPoint) -> Result<(), TraceError> {
        trace::record(self.client(), at, true).await
    }

    /// What was read of the image mounted at a place since [`Sandbox::start_trace`].
    ///
    /// # Errors
    /// [`TraceError`].
    pub async fn trace(&self, at: &MountPoint) -> Result<ReadTrace, TraceError> {
        trace::read(self.client(), at).await
    }

    /// Ends recording and forgets what was recorded.
    ///
    /// # Errors
    /// [`TraceError`].
    pub async fn stop_trace(&self, at: &MountPoint) -> Result<(), TraceError> {
        trace::record(self.client(), at, false).await
    }

    /// Changes how much the daemon logs, and whichever takes its place.
    ///
    /// # Errors
    /// [`CallError`] when the daemon refuses or cannot be asked.
    pub async fn set_log_level(&self, level: LogLevel) -> Result<(), CallError> {
        let command = ConfigureCommand { log_level: level };
        let span = tracing::info_span!("set_log_level", sandbox = %self.id, %level);
        self.client().configure(command).instrument(span).await?;
        // Refused by a driver that has ended.
        let _ = self.strings.log_level.send(level);
        Ok(())
    }

    /// A connection of its own: what changes no mount waits for none.
    fn client(&self) -> ApiClient {
        ApiClient::new(self.api_socket.clone(), self.call_deadline).with_secrets(&self.secrets)
    }

    /// The sandbox's state, now and whenever it changes.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<Status> {
        self.strings.status.clone()
    }

    /// What has happened since the start and what happens from now on. Of a long life the oldest events are missing:
    /// the first record's number says how many.
    #[must_use]
    pub fn events(&self) -> Events {
        self.events.restarted()
    }

    /// Resolves when the daemon is gone for good, asked or not, or when nobody can say any more: it was killed and would
    /// not end, or the runtime has ended. Its cause is [`ExitCause::Unknown`] then.
    pub fn exited(&self) -> impl Future<Output = Exit> + Send + 'static {
        let mut status = self.strings.status.clone();
        async move {
            let ended =
                |status: &Status| matches!(status.phase, StatusPhase::Exited(_) | StatusPhase::Stopped(_));
            let exit = match status.wait_for(ended).await.map(|status| status.phase.clone()) {
                Ok(StatusPhase::Exited(exit) | StatusPhase::Stopped(Some(exit))) => Some(exit),
                Ok(
                    StatusPhase::Serving
                    | StatusPhase::Recovering { .. }
                    | StatusPhase::Stopping
                    | StatusPhase::Stopped(None),
                )
                | Err(_) => None,
            };
            exit.unwrap_or(Exit {
                cause: ExitCause::Unknown,
                last_lines: Vec::new(),
            })
        }
    }

    /// The sandbox's id.
    #[must_use]
    pub fn id(&self) -> &SandboxId {
        &self.id
    }

    /// What is done when its daemon ends by itself; of one that was adopted, what it was started with.
    #[must_use]
    pub fn on_exit(&self) -> OnExit {
        self.on_exit
    }

    /// The vhost-user socket the VMM connects to.
    #[must_use]
    pub fn vhost_socket(&self) -> &SocketPath {
        &self.vhost_socket
    }

    /// The daemon's API socket.
    #[must_use]
    pub fn api_socket(&self) -> &SocketPath {
        &self.api_socket
    }

    /// Ends the sandbox: mounts, daemon, sockets, directory. Stop the VMM first: a stock nydusd does not end while
    /// its frontend is connected, and costs the grace.
    ///
    /// # Cancel safety
    /// Dropping the future skips to killing.
    pub async fn stop(self) -> StopOutcome {
        let Strings { stop, alive, .. } = self.strings;
        // Refused only when the task is over already, and its outcome is waiting.
        let _ = stop.send(());
        let span = tracing::info_span!("stop", sandbox = %self.id);
        let outcome = self.task.instrument(span).await;
        drop(alive);
        outcome.unwrap_or(StopOutcome {
            step: StopStep::Interrupted,
            unmount_failures: Vec::new(),
            leftovers: Vec::new(),
        })
    }
}

/// Enters an error in the span of the operation that failed.
pub(crate) fn noted<T, E: std::fmt::Display>(result: Result<T, E>) -> Result<T, E> {
    if let Err(error) = &result {
        tracing::Span::current().record("error", tracing::field::display(error));
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sandboxes are started and stopped from tasks of multi-threaded runtimes.
    #[expect(dead_code, reason = "compiling is the test")]
    fn futures_are_send(config: SandboxConfig, sandbox: Sandbox, request: MountRequest) {
        fn send<T: Send>(value: T) {
            drop(value);
        }
        send(sandbox.mount(request.clone()));
        send(sandbox.remount(request));
        send(sandbox.exited());
        send(sandbox.stop());
        send(Sandbox::start(config));
    }
}
