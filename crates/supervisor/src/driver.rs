//! The one loop of a running sandbox: events in, [`Lifecycle::step`], actions out.
//!
//! It owns the daemon, the client and the directory; nobody else touches them. Every decision is the lifecycle's.
//! If the task is aborted (its runtime shuts down), dropping the fields kills and reaps the daemon and removes
//! the directory, in the order they are declared.

mod call;

use std::future::Future;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use nydusbox_protocol::{FsType, LogLevel, MountPoint};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};
use tracing::{Instrument, Span};

use crate::binds::BindBook;
use crate::client::{ApiClient, CallError};
use crate::config::SandboxConfig;
use crate::daemon::{Daemon, REAP};
use crate::dir::{Leftover, SandboxDir};
use crate::error::{MountError, RemountError, StartCause, StartError, UnmountError, chain};
use crate::events::{EventSink, SandboxEvent};
use crate::frontend::FrontendWatch;
use crate::health::{Found, Health, HealthReport, Watch};
use crate::launch::{self, Running, Serving};
use crate::ledger::{Knowledge, UnmountOutcome};
use crate::lifecycle::{Action, Event, Lifecycle, MountOutcome, Phase, Reply, Request, Timer};
use crate::program::ProgramKind;
use crate::recovery::{OnExit, Recovery};
use crate::request::{MountRequest, Snapshotdir};
use crate::requests::{Envelope, Requests};
use crate::snapshot::{self, snapshot, status_phase};
use crate::state::{Books, Journal, OsText, PhaseRecord};
use crate::status::{Status, StatusPhase};
use crate::stop::{StopOutcome, StopStep, ending};

/// How long a broken connection may precede the end of the process that caused it.
pub(crate) const EXIT_SHOWS: Duration = Duration::from_millis(50);
/// All the unmounting of a stop; a mount takes a millisecond.
const UNMOUNT_ALL: Duration = Duration::from_millis(500);

#[derive(Debug)]
enum ReplyTo {
    Mount(oneshot::Sender<Result<MountOutcome, MountError>>),
    Remount(oneshot::Sender<Result<(), RemountError>>),
    Unmount(oneshot::Sender<Result<UnmountOutcome, UnmountError>>),
}

/// The owner's end of the loop.
#[derive(Debug)]
pub(crate) struct Strings {
    pub(crate) requests: mpsc::Sender<Envelope>,
    pub(crate) stop: oneshot::Sender<()>,
    /// Dropping it abandons the sandbox.
    pub(crate) alive: oneshot::Sender<std::convert::Infallible>,
    /// How much the daemon was told to log.
    pub(crate) log_level: mpsc::UnboundedSender<LogLevel>,
    pub(crate) status: watch::Receiver<Status>,
}

type UnderWay<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// The loop's state.
pub(crate) struct Driver {
    call: Option<UnderWay<(ApiClient, Result<(), CallError>)>>,
    launch: Option<UnderWay<Result<Running, StartError>>>,
    /// `None` while a call has it.
    client: Option<ApiClient>,
    /// The last one; it may have ended.
    daemon: Daemon,
    /// What is left of those before, and of attempts to replace them.
    left: Vec<Leftover>,
    /// The last daemon's.
    frontend: FrontendWatch,
    binds: BindBook,
    journal: Journal,
    /// Whether the journal has what the lifecycle has decided last.
    recorded: io::Result<()>,
    /// Something that was done is still to be written down.
    unrecorded: bool,
    dir: SandboxDir,
    config: SandboxConfig,
    lifecycle: Lifecycle,
    begun: Instant,
    /// The span of the recovery that is under way. Of no other: whoever started the sandbox has long gone on.
    recovery: Option<Span>,
    timer: Option<Instant>,
    reply_to: Option<ReplyTo>,
    requests: Requests,
    stop: oneshot::Receiver<()>,
    alive: oneshot::Receiver<std::convert::Infallible>,
    log_level: mpsc::UnboundedReceiver<LogLevel>,
    status: watch::Sender<Status>,
    events: EventSink,
}

impl Driver {
    pub(crate) fn new(serving: Serving, config: SandboxConfig, events: EventSink) -> (Self, Strings) {
        let Serving {
            running,
            ledger,
            journal,
            binds,
            dir,
            adopted,
            successor,
        } = serving;
        let Running { daemon, client } = running;
        let pid = daemon.id();
        events.emit(match adopted {
            true => SandboxEvent::Adopted { pid },
            false => SandboxEvent::Started {
                pid,
                program: config.program().exe().display().to_string(),
            },
        });
        for (at, _, knowledge) in ledger.iter() {
            if knowledge == Knowledge::Confirmed {
                events.emit(SandboxEvent::Mounted { at: at.clone() });
            }
        }
        let (requests_in, requests) = mpsc::channel(16);
        let (stop_in, stop) = oneshot::channel();
        let (alive_in, alive) = oneshot::channel();
        let (log_level_in, log_level) = mpsc::unbounded_channel();
        let mut lifecycle = Lifecycle::serving(ledger, config.program().kind().body_limit_bytes());
        if let OnExit::Restart(policy) = config.on_exit() {
            lifecycle = lifecycle.with_recovery(Recovery::new(policy, Duration::ZERO));
        }
        let mut sockets = [config.vhost_socket(), config.successor_vhost_socket()];
        if successor {
            sockets.reverse();
        }
        let frontend = FrontendWatch::new(config.program().kind(), pid, sockets[0], sockets[1]);
        let (status, status_out) = watch::channel(snapshot(&lifecycle, &binds, &daemon));
        let strings = Strings {
            requests: requests_in,
            stop: stop_in,
            alive: alive_in,
            log_level: log_level_in,
            status: status_out,
        };
        let mut driver = Self {
            call: None,
            launch: None,
            client: Some(client),
            daemon,
            left: Vec::new(),
            frontend,
            binds,
            journal,
            recorded: Ok(()),
            unrecorded: false,
            dir,
            lifecycle,
            begun: Instant::now(),
            recovery: None,
            timer: None,
            reply_to: None,
            requests: Requests::new(requests, config.call_deadline()),
            config,
            stop,
            alive,
            log_level,
            status,
            events,
        };
        // An adopted one may have binds whose mounts are gone.
        driver.undo_binds();
        driver.record();
        driver.expect_vmm();
        driver.publish();
        (driver, strings)
    }

    /// Runs to the sandbox's end.
    pub(crate) async fn run(mut self) -> StopOutcome {
        let untold = self.lifecycle.ledger().is_untold();
        let mut health = Watch::new(&self.config, self.status.subscribe(), untold);
        self.daemon.tell_of_frontends(Arc::clone(health.look()));
        // Waited for beside what has the rest of this to itself.
        let (_none, nothing) = mpsc::unbounded_channel();
        let mut log_level = std::mem::replace(&mut self.log_level, nothing);
        loop {
            let event = tokio::select! {
                biased;
                Some(level) = log_level.recv() => {
                    // For the daemon that may take this one's place.
                    self.config.set_log_level(level);
                    self.record();
                    continue;
                }
                event = self.next_event() => event,
                found = health.report() => {
                    self.take_health(found);
                    continue;
                }
                () = tokio::task::yield_now(), if self.unrecorded => {
                    self.record();
                    self.journal.tidy();
                    self.config.secrets().read_configs();
                    continue;
                }
            };
            match event {
                Event::Exited(_) => self.last_look_for_vmm(),
                Event::Launched(_) => {
                    self.daemon.tell_of_frontends(Arc::clone(health.look()));
                    health.look().notify_one();
                }
                _ => {}
            }
            if let Event::Request(request) = &event {
                self.announce(request);
            }
            if let Event::Request(Request::Mount(request)) = &event
                && let Err(error) = self.plan_bind(request)
            {
                self.withdraw();
                self.reply(Reply::Mount(Err(error)));
                continue;
            }
            let mut end = None;
            let actions = self.lifecycle.at(self.begun.elapsed()).step(event);
            if !actions.iter().any(|action| matches!(action, Action::Call(_))) {
                self.withdraw();
            }
            self.follow_recovery();
            self.undo_binds();
            if actions.iter().all(Action::only_tells) {
                // Something was done, and nothing is going to be. Whoever waits for it goes first, and if that asks for
                // more, both are written down at once. Until then a successor finds it out by asking the daemon.
                self.unrecorded = true;
                self.publish();
                for action in actions {
                    self.perform(action);
                }
                // Whoever was told goes on before all that is waited for is polled anew.
                tokio::task::yield_now().await;
                continue;
            }
            self.record();
            for action in actions {
                end = self.perform(action).or(end);
            }
            if let Some(step) = end {
                return self.finish(step);
            }
            self.send().await;
            self.publish();
        }
    }

    fn follow_recovery(&mut self) {
        if !self.lifecycle.is_recovering() {
            self.recovery = None;
        } else if self.recovery.is_none() {
            self.recovery = Some(tracing::info_span!(parent: None, "recover", sandbox = %self.config.id()));
        }
    }

    fn take_health(&mut self, found: Found) {
        // A round that began before is of a daemon that no longer serves, and there is no other to correct it.
        if self.lifecycle.phase() != &Phase::Serving {
            return;
        }
        let Found { report, worse, told } = found;
        if let Some(told) = told {
            for action in self.lifecycle.step(Event::Told(told)) {
                self.perform(action);
            }
            self.unrecorded = true;
            self.publish();
        }
        // The embedded daemon is asked; with another program this is what was known before.
        let attached = match report.vmm {
            Health::Ok => Some(true),
            Health::Degraded { .. } => Some(false),
            Health::Failed { .. } | Health::Unknown { .. } => None,
        };
        if let Some(attached) = attached {
            for action in self.lifecycle.step(Event::Vmm(attached)) {
                self.perform(action);
            }
            self.publish();
        }
        for event in worse {
            self.events.emit(event);
        }
        self.status.send_if_modified(|status| {
            let changed = status.health != report;
            if changed {
                status.health = report;
                status.generation += 1;
            }
            changed
        });
    }

    /// Cancel safe.
    async fn next_event(&mut self) -> Event {
        let gone = match self.lifecycle.phase() {
            Phase::Waiting(_) | Phase::Launching(_) | Phase::Exited(_) | Phase::Ended(_) => true,
            Phase::Serving
            | Phase::Unmounting { .. }
            | Phase::Terminating
            | Phase::Killing
            | Phase::Restoring(_) => false,
        };
        let timer = self.timer;
        let recovering = self.lifecycle.is_recovering();
        tokio::select! {
            biased;
            exit = self.daemon.exited(), if !gone => Event::Exited(exit),
            Err(_) = &mut self.alive, if !self.alive.is_terminated() => Event::Abandoned,
            Ok(()) = &mut self.stop, if !self.stop.is_terminated() => {
                Event::Stop(ending(self.config.program().kind(), self.frontend.seen()))
            }
            (client, answer) = end_of(&mut self.call), if self.call.is_some() => {
                self.call = None;
                self.client = Some(client);
                Event::Answer(answer)
            }
            launched = end_of(&mut self.launch), if self.launch.is_some() => {
                self.launch = None;
                self.take_over(launched)
            }
            () = sleep_until(timer.unwrap_or_else(Instant::now)), if timer.is_some() => {
                self.timer = None;
                Event::Elapsed
            }
            connected = self.frontend.look(), if !gone => Event::Vmm(connected),
            Some(envelope) = self.requests.next(recovering), if recovering || self.lifecycle.takes_requests() => {
                Event::Request(match envelope {
                    Envelope::Mount(request, reply) => {
                        self.reply_to = Some(ReplyTo::Mount(reply));
                        Request::Mount(request.fitted(self.config.program().kind()))
                    }
                    Envelope::Remount(request, reply) => {
                        self.reply_to = Some(ReplyTo::Remount(reply));
                        Request::Remount(request.fitted(self.config.program().kind()))
                    }
                    Envelope::Unmount(at, reply) => {
                        self.reply_to = Some(ReplyTo::Unmount(reply));
                        Request::Unmount(at)
                    }
                })
            }
            // All senders of events are gone: only an owner that is gone has none.
            else => Event::Abandoned,
        }
    }

    fn perform(&mut self, action: Action) -> Option<StopStep> {
        match action {
            Action::Call(call) => self.begin(call),
            // The client goes with its call: an answer may still be under way on its connection.
            Action::AbandonCall => self.call = None,
            Action::Reply(reply) => self.reply(reply),
            Action::Arm(timer) => self.timer = Some(Instant::now() + self.duration(timer)),
            Action::Disarm => self.timer = None,
            Action::Terminate => self.daemon.terminate(),
            Action::Kill => self.daemon.kill(),
            Action::Launch => self.begin_launch(),
            Action::AbandonLaunch => self.launch = None,
            Action::Emit(event) => self.events.emit(event),
            Action::Finish(step) => return Some(step),
        }
        None
    }

    fn begin_launch(&mut self) {
        self.client = None;
        let prepared = self.prepare_launch();
        let (config, events) = (self.config.for_successor(), self.events.clone());
        let launch = async move {
            match prepared {
                Ok(dir) => Box::pin(launch::relaunch(&config, &events, dir)).await,
                Err(cause) => Err(launch::failed(config.id(), cause)),
            }
        };
        let span = self.recovery.clone().unwrap_or_else(Span::none);
        self.launch = Some(Box::pin(launch.instrument(span)));
    }

    /// Makes room for a new daemon and writes down what is going to be made for it; the directory, for the launch.
    fn prepare_launch(&mut self) -> Result<OwnedFd, StartCause> {
        let preparing = |action| {
            let path = self.config.dir().to_owned();
            move |source| StartCause::Prepare { action, path, source }
        };
        self.dir.clear_for_successor()?;
        let cgroup = self
            .config
            .environment()
            .cgroup(self.config.id(), self.config.dir());
        let recorded = self.journal.write(|document| {
            document.daemon = None;
            document.cgroup = cgroup.map(|path| OsText(path.into()));
        });
        recorded.map_err(preparing("write the state in"))?;
        let dir = self.dir.as_fd().try_clone_to_owned();
        dir.map_err(preparing("open"))
    }

    fn take_over(&mut self, launched: Result<Running, StartError>) -> Event {
        match launched {
            Ok(running) => {
                let Running { daemon, client } = running;
                launch::note_process(&self.config, &mut self.journal, &daemon, true);
                self.left.extend(self.daemon.take_left());
                (self.daemon, self.client) = (daemon, Some(client));
                let bound = self.config.successor_vhost_socket();
                self.frontend =
                    FrontendWatch::new(self.config.program().kind(), self.daemon.id(), bound, bound);
                self.expect_vmm();
                Event::Launched(self.daemon.id())
            }
            Err(error) => {
                self.left.extend(error.leftovers);
                Event::LaunchFailed {
                    reason: chain(&error.cause),
                    last_lines: error.last_lines,
                }
            }
        }
    }

    /// A stock nydusd that has just been started has no VMM yet; one that was taken over may have.
    fn expect_vmm(&mut self) {
        if let Some(connected) = self.frontend.look_at_once() {
            for action in self.lifecycle.step(Event::Vmm(connected)) {
                self.perform(action);
            }
        }
    }

    /// A VMM that connected just before the daemon ended has been seen, too. The embedded daemon can be asked no
    /// more, and what it said last is as old as the last observation of its health.
    fn last_look_for_vmm(&mut self) {
        if self.config.program().kind() == ProgramKind::Embedded {
            self.lifecycle.vmm_may_have_come();
        }
        if self.frontend.came_unseen() {
            for action in self.lifecycle.step(Event::Vmm(true)) {
                self.perform(action);
            }
        }
    }

    /// Enters the bind of a request that has a snapshot directory; [`Driver::begin`] makes it.
    fn plan_bind(&mut self, request: &MountRequest) -> Result<(), MountError> {
        let Some(Snapshotdir { container, source }) = request.snapshotdir() else {
            return Ok(());
        };
        let at = request.at();
        let mounted = |at: &MountPoint| self.lifecycle.ledger().iter().find(|(place, _, _)| *place == at);
        let share = match mounted(&MountPoint::containers()) {
            Some((_, command, _)) if command.fs_type == FsType::PassthroughFs => Path::new(&command.source),
            _ => return Err(MountError::NoShare { at: at.clone() }),
        };
        // What is mounted without a bind does not get one: that would be another mount than was asked for first.
        let is_mounted = mounted(at).is_some();
        if is_mounted && self.binds.find(at).is_none() {
            return Err(MountError::Conflict { at: at.clone() });
        }
        match self.binds.enter(at, is_mounted, share, container, source) {
            Ok(true) => Ok(()),
            Ok(false) => Err(MountError::Conflict { at: at.clone() }),
            Err(source) => Err(MountError::Snapshotdir {
                at: at.clone(),
                source,
            }),
        }
    }

    /// Takes away the binds of mounts that are gone.
    fn undo_binds(&mut self) {
        let ledger = self.lifecycle.ledger();
        let stays = |at: &MountPoint| ledger.iter().any(|(place, _, _)| place == at);
        for left in self.binds.undo_all_but(stays) {
            tracing::warn!(
                sandbox = %self.config.id(),
                error = &left as &dyn std::error::Error,
                "not undone yet; tried again at the next change and at the end"
            );
        }
    }

    /// Writes down what the lifecycle has decided, before any of it is done.
    fn record(&mut self) {
        let phase = match self.lifecycle.phase() {
            Phase::Serving | Phase::Exited(_) => PhaseRecord::Serving,
            // A daemon that lacks its mounts is none to be taken over.
            Phase::Waiting(_) | Phase::Launching(_) | Phase::Restoring(_) => PhaseRecord::Starting,
            Phase::Unmounting { .. } | Phase::Terminating | Phase::Killing | Phase::Ended(_) => {
                PhaseRecord::Stopping
            }
        };
        self.unrecorded = false;
        self.recorded = self.journal.enter(&Books {
            phase,
            ledger: self.lifecycle.ledger(),
            binds: &self.binds,
            version: self.daemon.version(),
            log_level: self.config.log_level(),
        });
        if let Err(error) = &self.recorded {
            tracing::error!(sandbox = %self.config.id(), %error, "cannot write the state down");
        }
    }

    /// A receiver that is gone was dropped by its caller, who does not want the reply.
    fn reply(&mut self, reply: Reply) {
        match (reply, self.reply_to.take()) {
            (Reply::Mount(result), Some(ReplyTo::Mount(to))) => drop(to.send(result)),
            (Reply::Remount(result), Some(ReplyTo::Remount(to))) => drop(to.send(result)),
            (Reply::Unmount(result), Some(ReplyTo::Unmount(to))) => drop(to.send(result)),
            (reply, to) => tracing::error!(?reply, ?to, "a reply for another request"),
        }
    }

    fn duration(&self, timer: Timer) -> Duration {
        match timer {
            Timer::ExitShows => EXIT_SHOWS,
            Timer::Unmount => UNMOUNT_ALL,
            Timer::Grace => self.config.stop_grace(),
            Timer::Reap => REAP,
            Timer::Backoff(pause) => pause,
        }
    }

    fn publish(&self) {
        let pid = self.daemon.id();
        self.status.send_if_modified(|status| {
            let changed = snapshot::refresh(status, &self.lifecycle, &self.binds, &self.daemon);
            if changed {
                if let StatusPhase::Exited(exit) = &status.phase {
                    tracing::warn!(sandbox = %self.config.id(), pid, "{exit}");
                }
                status.generation += 1;
            }
            changed
        });
    }

    fn finish(mut self, step: StopStep) -> StopOutcome {
        let unmount_failures = self.lifecycle.take_unmount_failures();
        let mut leftovers: Vec<Leftover> = Vec::new();
        if step == StopStep::Unkillable {
            leftovers.push(Leftover::Process {
                pid: self.daemon.id(),
            });
        }
        drop((self.call.take(), self.launch.take(), self.client.take()));
        let (phase, pid) = (self.lifecycle.phase().clone(), self.daemon.id());
        leftovers.extend(self.daemon.take_left());
        drop(self.daemon);
        leftovers.extend(self.left.into_iter().filter(Leftover::is_there));
        leftovers.extend(self.binds.undo_all_but(|_| false));
        match leftovers.iter().any(Leftover::needs_the_document) {
            true => self.dir.leave(),
            false => leftovers.extend(self.dir.remove()),
        }
        self.events.emit(SandboxEvent::Stopped {
            step: step.clone(),
            leftovers: leftovers.iter().map(ToString::to_string).collect(),
        });
        self.status.send_modify(|status| {
            status.generation += 1;
            status.pid = pid;
            status.mounts.clear();
            status.health = HealthReport::unknown("the daemon is gone");
            status.phase = status_phase(&phase);
        });
        tracing::debug!(sandbox = %self.config.id(), ?step, "stopped");
        StopOutcome {
            step,
            unmount_failures,
            leftovers,
        }
    }
}

/// Waits for what is under way, for ever if nothing is.
async fn end_of<T>(under_way: &mut Option<UnderWay<T>>) -> T {
    match under_way {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}
