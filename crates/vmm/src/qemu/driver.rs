//! The owner of a VMM's process, and the only `select!` loop about it.
//!
//! ```text
//! Booting --command-started--> Running --exit N, both markers--> Leaving --process ends--> outcome
//!    |  error STEP                 |                                ^  (deadline: stop)
//!    +-----------------------------|--------------------------------+
//!    +-- boot deadline, stop ------+--> stopping (SIGTERM, SIGKILL) --> outcome
//! any: the process ends by itself --> VmmExited
//! ```
//! What was learnt first is the outcome; how the process then ends never replaces it. Next: [`super::stream`].

use std::future::pending;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::process::Child;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::boot::GuestStdio;
use super::event::{GuestEvent, LineBuffer};
use super::outcome::VmOutcome;
use super::stream::{pump_input, pump_output};
use super::tail;

/// What QEMU gets to end after SIGTERM; it needs a few milliseconds unless it hangs in the kernel.
const TERM_GRACE: Duration = Duration::from_secs(1);
/// What the guest gets to sync and power off once we have everything. It needs well under a second, but a
/// busy host may emulate slowly.
const POWER_OFF_GRACE: Duration = Duration::from_secs(10);
/// What the output's readers get to take the rest after the VMM ended. A reader may be slow, or stopped for good.
const DRAIN_GRACE: Duration = Duration::from_secs(5);

/// A task that ended.
enum Ended {
    Output { complete: bool },
    Input,
    VmmLog(Vec<String>),
}

/// Owns the process and everything connected to it.
pub(super) struct Driver {
    child: Child,
    control: UnixStream,
    tasks: JoinSet<Ended>,
    console: PathBuf,
    boot_deadline: Duration,
    events: watch::Sender<Vec<GuestEvent>>,
    stop_requests: mpsc::Receiver<()>,
    lines: LineBuffer,
    /// Output streams whose marker has come.
    complete: usize,
    /// Output streams that ended, with or without marker.
    outputs_ended: usize,
    vmm_log: Option<Vec<String>>,
}

/// Why the loop ended while the process still runs.
enum Verdict {
    /// The guest has said its last word and may power off.
    Leave(VmOutcome),
    /// The process has to be stopped.
    Stop(VmOutcome),
    /// The process ended first.
    Gone(ExitStatus),
}

impl Driver {
    #[expect(
        clippy::too_many_arguments,
        reason = "one caller, which made each of these for this purpose"
    )]
    pub(super) fn new(
        mut child: Child,
        ports: [UnixStream; 4],
        stdio: GuestStdio,
        marker: &str,
        console: PathBuf,
        boot_deadline: Duration,
        events: watch::Sender<Vec<GuestEvent>>,
        stop_requests: mpsc::Receiver<()>,
    ) -> Self {
        let [stdin, stdout, stderr, control] = ports;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            pump_input(stdio.stdin, stdin).await;
            Ended::Input
        });
        for (port, sink, name) in [(stdout, stdio.stdout, "stdout"), (stderr, stdio.stderr, "stderr")] {
            let marker = marker.to_owned();
            tasks.spawn(async move {
                Ended::Output {
                    complete: pump_output(port, sink, &marker, name).await,
                }
            });
        }
        if let Some(log) = child.stderr.take() {
            tasks.spawn(async move { Ended::VmmLog(tail::of_stream(log).await) });
        }
        Self {
            child,
            control,
            tasks,
            console,
            boot_deadline,
            events,
            stop_requests,
            lines: LineBuffer::default(),
            complete: 0,
            outputs_ended: 0,
            vmm_log: None,
        }
    }

    /// Runs to the end of the process.
    pub(super) async fn run(mut self) -> VmOutcome {
        let outcome = match self.watch().await {
            Verdict::Gone(status) => self.gone(status).await,
            Verdict::Leave(outcome) => {
                self.let_go().await;
                outcome
            }
            Verdict::Stop(outcome) => {
                self.stop().await;
                outcome
            }
        };
        tracing::info!(outcome = ?outcome, "machine ended");
        outcome
    }

    async fn watch(&mut self) -> Verdict {
        let mut deadline = Some(Instant::now() + self.boot_deadline);
        let mut exit_status = None;
        let mut buffer = [0; 4096];
        let mut control_open = true;
        let mut stop_possible = true;
        loop {
            if let Some(status) = exit_status
                && self.complete == 2
            {
                return Verdict::Leave(VmOutcome::CommandExited { status });
            }
            tokio::select! {
                // In this order: an event that is already here is better news than the end of the process.
                biased;
                read = self.control.read(&mut buffer), if control_open => match read {
                    Ok(read @ 1..) => {
                        for line in self.lines.feed(&buffer[..read]) {
                            let Some(event) = GuestEvent::parse(&line) else { continue };
                            tracing::debug!(?event, "guest");
                            self.events.send_modify(|events| events.push(event.clone()));
                            match event {
                                GuestEvent::Ready | GuestEvent::ShareMounted | GuestEvent::RootfsMounted => {}
                                GuestEvent::CommandStarted => deadline = None,
                                // The first counts; init sends no second.
                                GuestEvent::Exited { status } => exit_status = exit_status.or(Some(status)),
                                GuestEvent::Failed { step, message } => {
                                    return Verdict::Leave(VmOutcome::GuestFailed { step, message });
                                }
                            }
                        }
                    }
                    // QEMU is ending; its exit status is about to come.
                    Ok(_) | Err(_) => control_open = false,
                },
                status = self.child.wait() => match status {
                    Ok(status) => return Verdict::Gone(status),
                    // Nothing else may reap our child; if something did, stopping it is all that is left.
                    Err(error) => {
                        tracing::error!(%error, "cannot wait for the VMM");
                        return Verdict::Stop(VmOutcome::Killed);
                    }
                },
                request = self.stop_requests.recv(), if stop_possible => match request {
                    Some(()) => return Verdict::Stop(VmOutcome::Killed),
                    None => stop_possible = false,
                },
                Some(ended) = self.tasks.join_next() => self.task_ended(ended),
                () = at(deadline) => {
                    return Verdict::Stop(VmOutcome::BootDeadline {
                        after: self.boot_deadline,
                        reached: self.events.borrow().last().cloned(),
                        console: tail::of_file(&self.console),
                    });
                }
            }
        }
    }

    fn task_ended(&mut self, ended: Result<Ended, tokio::task::JoinError>) {
        match ended {
            Ok(Ended::Output { complete }) => {
                self.complete += usize::from(complete);
                self.outputs_ended += 1;
            }
            Ok(Ended::Input) => {}
            Ok(Ended::VmmLog(lines)) => self.vmm_log = Some(lines),
            Err(error) => tracing::error!(%error, "a task of the machine failed"),
        }
    }

    /// The process ended by itself: collect what it and the guest said last.
    async fn gone(&mut self, status: ExitStatus) -> VmOutcome {
        let rest = async {
            while (self.outputs_ended < 2 || self.vmm_log.is_none())
                && let Some(ended) = self.tasks.join_next().await
            {
                self.task_ended(ended);
            }
        };
        if timeout(DRAIN_GRACE, rest).await.is_err() {
            tracing::warn!("output was still unread when the machine had been gone for {DRAIN_GRACE:?}");
        }
        VmOutcome::VmmExited {
            status,
            vmm: self.vmm_log.take().unwrap_or_default(),
            console: tail::of_file(&self.console),
        }
    }

    /// Tells the guest that we have everything; it syncs and powers off. A stop request or a deadline cuts it short.
    async fn let_go(&mut self) {
        let told = self.control.write_all(b"done\n").await;
        let ended = async {
            tokio::select! {
                status = self.child.wait() => status.map(Some),
                Some(()) = self.stop_requests.recv() => Ok(None),
            }
        };
        match (told, timeout(POWER_OFF_GRACE, ended).await) {
            (_, Ok(Ok(Some(_)))) => {}
            (told, ended) => {
                tracing::debug!(?told, ?ended, "the guest did not power off; stopping it");
                self.stop().await;
            }
        }
    }

    /// SIGTERM, grace, SIGKILL; returns when the process is reaped.
    async fn stop(&mut self) {
        // `id` is None once reaped, so this can't hit a process that got the number later.
        let pid = self
            .child
            .id()
            .and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        if let Some(pid) = pid
            && let Err(error) = kill_process(pid, Signal::TERM)
        {
            tracing::debug!(%error, "cannot signal the VMM");
        }
        if timeout(TERM_GRACE, self.child.wait()).await.is_err()
            && let Err(error) = self.child.kill().await
        {
            tracing::error!(%error, "cannot kill the VMM");
        }
    }
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
}
