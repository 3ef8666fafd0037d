//! The owner of a VMM's process, and the only `select!` loop about it.
//!
//! ```text
//! Booting --waiting (saved, if it is to be)--> Waiting --errand--> Provided --command-started--> running
//!    | (or goes on from a template: Waiting)                          |  error STEP                |
//!    |                                                                |                 exit N, both markers
//!    +-- boot deadline, stop --> stopping (SIGTERM, SIGKILL)          +-------> Leaving <----------+
//! running: its reader leaves, its output cannot be written --> stopping
//! any: the process ends by itself --> VmmExited
//! ```
//! What was learnt first is the outcome; how the process then ends never replaces it. Next: [`super::stream`].

use std::fs::File;
use std::future::pending;
use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::Child;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::config::VmConfig;
use super::console::Console;
use super::event::{GuestEvent, GuestStep, LineBuffer, WAITING};
use super::machine::GuestStdio;
use super::outcome::{BootStage, VmOutcome};
use super::provide::{ProvideError, Waiting, provide, reassure};
use super::qmp::QmpError;
use super::save::{SaveError, save};
use super::spawn::Spawned;
use super::stream::{Output, pump_input, pump_output};
use super::tail;
use crate::template::{Slot, Template};

/// What QEMU gets to end after SIGTERM; it needs a few milliseconds unless it hangs in the kernel.
const TERM_GRACE: Duration = Duration::from_secs(1);
/// What the guest gets to sync and power off once we have everything. It needs well under a second, but a
/// busy host may emulate slowly.
const POWER_OFF_GRACE: Duration = Duration::from_secs(10);
/// As many events are remembered. A guest has a handful of them to tell; but what has taken it over may go on for ever.
const MAX_EVENTS: usize = 64;
/// So often is it heard at once, before something else decides. Init has told all it has to tell by then.
const HEARD_AT_ONCE: usize = 16;
/// What the output's readers get to take the rest after the VMM ended. A reader may be slow, or stopped for good.
const DRAIN_GRACE: Duration = Duration::from_secs(5);

/// Where the guest stands when the driver begins.
#[derive(Debug)]
pub(super) enum Guest {
    /// It boots; and is then saved, if there is a place for that.
    Boots(Option<Slot>),
    /// It goes on from a template, and waits.
    GoesOn(Arc<Template>),
}

/// What the machine is for.
#[derive(Debug)]
pub(super) struct Errand {
    pub(super) config: VmConfig,
    pub(super) stdio: GuestStdio,
}

/// How far the machine is on its way to its command.
enum Stage {
    /// The guest boots. It is told when it says that it waits.
    Booting { waits: Option<oneshot::Sender<()>> },
    /// It waits for its errand.
    Waiting(Waiting),
    /// It is being given what it needs, or has it, and the way to it is here.
    Provided(Option<OwnedWriteHalf>),
}

impl Stage {
    fn shown(&self) -> BootStage {
        match self {
            Self::Booting { waits: Some(_) } => BootStage::Booting,
            Self::Booting { waits: None } => BootStage::Saving,
            Self::Waiting(_) => BootStage::Waiting,
            Self::Provided(None) => BootStage::BeingProvided,
            Self::Provided(Some(_)) => BootStage::Provided,
        }
    }
}

/// A task that ended.
enum Ended {
    Ready(Result<Waiting, QmpError>),
    Provided(Result<OwnedWriteHalf, ProvideError>),
    Output {
        complete: bool,
    },
    /// Why one of the outputs can't be written any longer, or that nobody will any more.
    Sink(Output, Option<io::Error>),
    Input,
    VmmLog(Vec<String>),
    Console,
}

/// Owns the process and everything connected to it.
pub(super) struct Driver {
    child: Child,
    control: OwnedReadHalf,
    /// stdin, stdout, stderr, until there is somebody for them.
    streams: Option<[UnixStream; 3]>,
    stage: Stage,
    /// What the guest goes on from, until it has shown that it can.
    template: Option<Arc<Template>>,
    marker: String,
    errand: Option<Errand>,
    tasks: JoinSet<Ended>,
    console: Console,
    boot_deadline: Duration,
    deadline: Option<Instant>,
    events: watch::Sender<Vec<GuestEvent>>,
    stop_requests: mpsc::Receiver<()>,
    errands: oneshot::Receiver<Errand>,
    lines: LineBuffer,
    command_started: bool,
    /// The command's, once it has ended.
    exit_status: Option<u8>,
    /// Output streams whose marker has come.
    complete: usize,
    /// Output streams that ended, with or without marker.
    outputs_ended: usize,
    /// Of how many outputs it is known that nobody writes any longer.
    sinks_ended: u8,
    vmm_log: Option<Vec<String>>,
    console_ended: bool,
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
        spawned: Spawned,
        guest: Guest,
        marker: String,
        console_file: PathBuf,
        boot_deadline: Duration,
        events: watch::Sender<Vec<GuestEvent>>,
        stop_requests: mpsc::Receiver<()>,
        errands: oneshot::Receiver<Errand>,
    ) -> Self {
        let Spawned {
            mut child,
            ports: [stdin, stdout, stderr, control],
            qmp,
            memory,
            console: console_out,
            state: _,
        } = spawned;
        let mut tasks = JoinSet::new();
        if let Some(log) = child.stderr.take() {
            tasks.spawn(async move { Ended::VmmLog(tail::of_stream(log).await) });
        }
        let console = Console::default();
        let followed = console.clone();
        tasks.spawn(async move {
            followed.follow(console_out, &console_file).await;
            Ended::Console
        });
        let (control, control_out) = control.into_split();
        let mut template = None;
        let (stage, deadline) = match guest {
            Guest::GoesOn(from) => {
                template = Some(from);
                let control = control_out;
                (Stage::Waiting(Waiting { qmp, control }), None)
            }
            Guest::Boots(slot) => {
                let (waits, waiting) = oneshot::channel();
                tasks.spawn(async move {
                    let saved = slot.map(|slot| (slot, memory));
                    let waiting_machine = Waiting {
                        qmp,
                        control: control_out,
                    };
                    Ended::Ready(ready(waiting_machine, waiting, saved).await)
                });
                let deadline = Instant::now() + boot_deadline;
                (Stage::Booting { waits: Some(waits) }, Some(deadline))
            }
        };
        Self {
            child,
            control,
            streams: Some([stdin, stdout, stderr]),
            stage,
            template,
            marker,
            errand: None,
            tasks,
            console,
            boot_deadline,
            deadline,
            events,
            stop_requests,
            errands,
            lines: LineBuffer::default(),
            command_started: false,
            exit_status: None,
            complete: 0,
            outputs_ended: 0,
            sinks_ended: 0,
            vmm_log: None,
            console_ended: false,
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
        if let Some(template) = self.template.take()
            && is_the_templates_fault(&outcome)
        {
            template.discard();
        }
        tracing::info!(outcome = ?outcome, "machine ended");
        outcome
    }

    async fn watch(&mut self) -> Verdict {
        let mut buffer = [0; 4096];
        let mut control_open = true;
        let mut stop_possible = true;
        let mut errand_possible = true;
        loop {
            if let Some(verdict) = self.all_there() {
                return verdict;
            }
            tokio::select! {
                // In this order: the guest may go on talking for ever, and must not keep us from anything. But what it has
                // said already is better news than the end of the process, a deadline or a reader that has left.
                biased;
                request = self.stop_requests.recv(), if stop_possible => match request {
                    Some(()) => return Verdict::Stop(VmOutcome::Killed),
                    None => stop_possible = false,
                },
                status = self.child.wait() => {
                    if let Some(verdict) = self.hear_what_is_said().or_else(|| self.all_there()) {
                        return verdict;
                    }
                    match status {
                        Ok(status) => return Verdict::Gone(status),
                        // Nothing else may reap our child; if something did, stopping it is all that is left.
                        Err(error) => {
                            tracing::error!(%error, "cannot wait for the VMM");
                            return Verdict::Stop(VmOutcome::Killed);
                        }
                    }
                }
                () = at(self.deadline) => {
                    if let Some(verdict) = self.hear_what_is_said() {
                        return verdict;
                    }
                    if self.deadline.is_some() {
                        return Verdict::Stop(VmOutcome::BootDeadline {
                            after: self.boot_deadline,
                            stage: self.stage.shown(),
                            reached: self.events.borrow().last().cloned(),
                            console: self.console.last_lines(),
                        });
                    }
                }
                errand = &mut self.errands, if errand_possible => {
                    errand_possible = false;
                    // Without one, whoever would give it is gone, and stops the machine.
                    if let Ok(errand) = errand {
                        self.deadline = Some(Instant::now() + self.boot_deadline);
                        self.errand = Some(errand);
                        self.provide();
                    }
                },
                Some(ended) = self.tasks.join_next() => {
                    if let Some(verdict) = self.hear_what_is_said().or_else(|| self.task_ended(ended)) {
                        return verdict;
                    }
                }
                read = self.control.read(&mut buffer), if control_open => match read {
                    Ok(read @ 1..) => if let Some(verdict) = self.hear(&buffer[..read]) {
                        return verdict;
                    },
                    // QEMU is ending; its exit status is about to come.
                    Ok(_) | Err(_) => control_open = false,
                },
            }
        }
    }

    /// Whether the command has ended and all its output has been delivered.
    fn all_there(&self) -> Option<Verdict> {
        let delivered = self.complete == 2 && self.sinks_ended == 2;
        let status = self.exit_status.filter(|_| delivered)?;
        Some(Verdict::Leave(VmOutcome::CommandExited { status }))
    }

    /// Hears what the guest has said up to now, but not more of it than it has to say.
    fn hear_what_is_said(&mut self) -> Option<Verdict> {
        let mut buffer = [0; 4096];
        for _ in 0..HEARD_AT_ONCE {
            let Ok(read @ 1..) = self.control.try_read(&mut buffer) else {
                break;
            };
            if let Some(verdict) = self.hear(&buffer[..read]) {
                return Some(verdict);
            }
        }
        None
    }

    fn hear(&mut self, said: &[u8]) -> Option<Verdict> {
        for line in self.lines.feed(said) {
            if line == WAITING {
                self.guest_waits();
                continue;
            }
            let Some(event) = GuestEvent::parse(&line) else {
                continue;
            };
            tracing::debug!(?event, "guest");
            remember(&self.events, &event);
            match event {
                GuestEvent::Ready | GuestEvent::ShareMounted | GuestEvent::RootfsMounted => {}
                GuestEvent::CommandStarted => {
                    self.command_started = true;
                    self.deadline = None;
                    self.template = None;
                }
                // The first counts; init sends no second.
                GuestEvent::Exited { status } => {
                    self.exit_status = self.exit_status.or(Some(status));
                }
                GuestEvent::Failed { step, message } => {
                    return Some(Verdict::Leave(VmOutcome::GuestFailed { step, message }));
                }
            }
        }
        None
    }

    /// The guest says that it waits: what is to be done meanwhile can be done.
    fn guest_waits(&mut self) {
        if let Stage::Booting { waits } = &mut self.stage
            && let Some(waits) = waits.take()
        {
            // If its task is gone, QEMU is.
            let _ = waits.send(());
        }
    }

    /// Gives the machine what it needs for its errand, once it waits and there is one.
    fn provide(&mut self) {
        if self.errand.is_none() || !matches!(self.stage, Stage::Waiting(_)) {
            return;
        }
        let stage = std::mem::replace(&mut self.stage, Stage::Provided(None));
        let (Stage::Waiting(waiting), Some(errand)) = (stage, self.errand.take()) else {
            unreachable!("both were seen to be there");
        };
        let Errand { config, stdio } = errand;
        let [stdin, stdout, stderr] = self.streams.take().expect("there is one errand");
        // Not before: what is saved as a template must not have anybody's input in it.
        self.tasks.spawn(async move {
            pump_input(stdio.stdin, stdin).await;
            Ended::Input
        });
        for (port, sink, name) in [
            (stdout, stdio.stdout, Output::Stdout),
            (stderr, stdio.stderr, Output::Stderr),
        ] {
            let marker = self.marker.clone();
            let (lost, told) = oneshot::channel();
            self.tasks.spawn(async move {
                Ended::Output {
                    complete: pump_output(port, sink, &marker, name, lost).await,
                }
            });
            self.tasks
                .spawn(async move { Ended::Sink(name, told.await.ok()) });
        }
        let marker = self.marker.clone();
        self.tasks
            .spawn(async move { Ended::Provided(provide(waiting, &config, &marker).await) });
    }

    fn task_ended(&mut self, ended: Result<Ended, tokio::task::JoinError>) -> Option<Verdict> {
        match ended {
            Ok(Ended::Ready(Ok(waiting))) => {
                self.stage = Stage::Waiting(waiting);
                if self.errand.is_none() {
                    self.deadline = None;
                }
                self.provide();
            }
            Ok(Ended::Provided(Ok(control))) => self.stage = Stage::Provided(Some(control)),
            // QEMU is ending; its exit status is about to come, and what it said is the reason.
            Ok(
                Ended::Ready(Err(QmpError::Closed(_)))
                | Ended::Provided(Err(ProvideError::Qmp(QmpError::Closed(_)) | ProvideError::Control(_))),
            ) => {}
            Ok(Ended::Ready(Err(error))) => {
                let message = error.to_string();
                return Some(Verdict::Stop(VmOutcome::ShareFailed { message }));
            }
            Ok(Ended::Provided(Err(error))) => {
                let message = error.to_string();
                return Some(Verdict::Stop(VmOutcome::ShareFailed { message }));
            }
            Ok(Ended::Output { complete }) => {
                self.complete += usize::from(complete);
                self.outputs_ended += 1;
            }
            Ok(Ended::Sink(of, lost)) => {
                self.sinks_ended += 1;
                match lost {
                    Some(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                        let message = error.to_string();
                        return Some(Verdict::Stop(VmOutcome::OutputLost { message }));
                    }
                    // A command that has ended has its own status, and one goes on whose errors nobody reads.
                    Some(_) if self.exit_status.is_none() && of == Output::Stdout => {
                        return Some(Verdict::Stop(VmOutcome::ReaderLeft));
                    }
                    Some(_) | None => {}
                }
            }
            Ok(Ended::Input) => {}
            Ok(Ended::VmmLog(lines)) => self.vmm_log = Some(lines),
            Ok(Ended::Console) => self.console_ended = true,
            Err(error) => tracing::error!(%error, "a task of the machine failed"),
        }
        None
    }

    /// The process ended by itself: collect what it and the guest said last.
    async fn gone(&mut self, status: ExitStatus) -> VmOutcome {
        let outputs = match self.streams {
            Some(_) => 0,
            None => 2,
        };
        let rest = async {
            while (self.outputs_ended < outputs || self.vmm_log.is_none() || !self.console_ended)
                && let Some(ended) = self.tasks.join_next().await
            {
                // What it says now comes too late.
                let _ = self.task_ended(ended);
            }
        };
        if timeout(DRAIN_GRACE, rest).await.is_err() {
            tracing::warn!("output was still unread when the machine had been gone for {DRAIN_GRACE:?}");
        }
        VmOutcome::VmmExited {
            status,
            command_started: self.command_started,
            vmm: self.vmm_log.take().unwrap_or_default(),
            console: self.console.last_lines(),
        }
    }

    /// Tells the guest that we have everything; it syncs and powers off. A stop request or a deadline cuts it short.
    async fn let_go(&mut self) {
        let Stage::Provided(Some(control)) = &mut self.stage else {
            // It has not even been given its parameters.
            return self.stop().await;
        };
        let told = control.write_all(b"done\n").await;
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

/// Greets QEMU and waits until the guest waits; then saves the machine, if it is to be.
async fn ready(
    mut machine: Waiting,
    guest_waits: oneshot::Receiver<()>,
    saved: Option<(Slot, Arc<File>)>,
) -> Result<Waiting, QmpError> {
    machine.qmp.greet().await?;
    if guest_waits.await.is_err() {
        // The driver is gone.
        return Err(QmpError::Closed(io::ErrorKind::Interrupted.into()));
    }
    if let Some((slot, memory)) = saved {
        match save(&mut machine.qmp, slot, memory).await {
            Ok(()) => {}
            Err(SaveError::Qmp(error @ QmpError::Closed(_))) => return Err(error),
            Err(error) => tracing::warn!(%error, "the machine was not saved as a template"),
        }
    }
    reassure(&mut machine.control).await.map_err(QmpError::Closed)?;
    Ok(machine)
}

/// Whether the guest never did what it does in a machine that has booted.
fn is_the_templates_fault(outcome: &VmOutcome) -> bool {
    match outcome {
        VmOutcome::VmmExited { .. } | VmOutcome::BootDeadline { .. } => true,
        VmOutcome::GuestFailed { step, .. } => *step == GuestStep::Share,
        VmOutcome::CommandExited { .. }
        | VmOutcome::ReaderLeft
        | VmOutcome::OutputLost { .. }
        | VmOutcome::ShareFailed { .. }
        | VmOutcome::Killed => false,
    }
}

fn remember(events: &watch::Sender<Vec<GuestEvent>>, event: &GuestEvent) {
    events.send_if_modified(|events| {
        let room = events.len() < MAX_EVENTS;
        if room {
            events.push(event.clone());
        }
        room
    });
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
}

#[cfg(test)]
#[path = "driver/tests.rs"]
mod tests;
