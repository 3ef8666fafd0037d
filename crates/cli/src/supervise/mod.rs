//! `nydusbox supervise`: the process that owns one sandbox from its start to its end.
//!
//! `nydusbox start` begins it (`spawn.rs`) and tells it what to do (`handover.rs`). It starts the sandbox, serves
//! `control.sock` (`handler.rs` says what each request means, `layers.rs` that a mount is whole), and ends by itself
//! when the sandbox is stopped (`owner.rs`). SIGTERM and SIGINT stop the sandbox; SIGKILL leaves the daemon serving, to
//! be adopted.

mod cache_keeper;
mod handler;
mod handover;
mod layers;
mod owner;
mod report;
mod spawn;
mod trust;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::fs::Permissions;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use clap::Args;
use nydusbox::{
    AdoptError, Adoption, BoundedLog, CONTROL_SOCKET, DirError, Health, Netns, OnExit, OnSupervisorDeath,
    Program, SUPERVISOR_LOG, SUPERVISOR_LOG_OLD, Sandbox, SandboxConfig, StartCause, StartError, Status,
    StatusPhase, apart,
};
use nydusbox_protocol::{SandboxId, SocketPath};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::Instrument;

use crate::cache_quota;
use crate::control::wire::{Code, ControlError};
use crate::control::{self};
use crate::daemon_env;
use crate::error::Failure;
use crate::logging::{self, SupervisorLog};
use crate::otlp::{self, Traces};
use cache_keeper::CacheKeeper;
use handler::Requests;
use handover::{ARRIVED, Reply};
pub(crate) use handover::{DaemonChoice, LimitsChoice, NetnsChoice, Order, Task};
use owner::Owner;
use report::Subject;
pub(crate) use spawn::{Begun, begin};
use trust::Trust;

/// How long a supervisor waits at most for the first look at its sandbox, which takes milliseconds.
const FIRST_LOOK: Duration = Duration::from_secs(1);
/// How many commands may connect at once: as many as the system lets.
const BACKLOG: i32 = -1;
/// How long a supervisor that has begun is left alone before it counts as being at rest.
const CALM: Duration = Duration::from_millis(50);

#[derive(Debug, Args)]
pub(crate) struct SuperviseArgs {
    /// Sandbox to own; `nydusbox start` says on standard input what it is to be
    id: SandboxId,
    /// As `start` was given it; shown here so that a list of processes tells sandboxes apart
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "every command takes its arguments by value"
)]
pub(crate) fn main(args: SuperviseArgs) -> ExitCode {
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.exit(),
    }
}

fn run(args: &SuperviseArgs) -> Result<(), Failure> {
    let stream = handover_socket(args)?;
    let handover = stream
        .try_clone()
        .map_err(|e| Failure::new("prepare to supervise", &e))?;
    // Away from the terminal: its Ctrl-C and its end are not ours. Fails for the leader of a process group, which
    // nobody makes of us but a user at a shell.
    let _ = rustix::process::setsid();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::new("start the runtime", &e))?;
    let (starter, signals, task) = runtime.block_on(told(stream))?;
    let log = OnceLock::new().into();
    let traces = logging::start_supervisors(task.id(), task.log_level(), Arc::clone(&log))?;
    let life = otlp::life(task.id());
    let supervised = supervise(starter, signals, &task, &log, &traces);
    let ended = runtime.block_on(supervised.instrument(life));
    if traces.are_exported() {
        // Everything is done or undone. Who waits for that need not wait for a collector.
        let _ = handover.shutdown(Shutdown::Both);
        traces.flush();
    }
    ended
}

/// Standard input, if it is the socket of a start.
fn handover_socket(args: &SuperviseArgs) -> Result<StdStream, Failure> {
    let by_hand = |e: io::Error| {
        Failure::new("take over from `nydusbox start`", &e).hint(format!(
            "this command is begun by `nydusbox start {}`, which hands it a socket as standard input",
            args.id
        ))
    };
    let stdin = io::stdin().as_fd().try_clone_to_owned().map_err(by_hand)?;
    let stream = StdStream::from(stdin);
    stream.peer_addr().map_err(by_hand)?;
    stream.set_nonblocking(true).map_err(by_hand)?;
    Ok(stream)
}

/// The start's end of the handover, as the supervisor sees it. Not split: dropping a half would tell the start that
/// everything is undone.
struct Starter(BufReader<UnixStream>);

impl Starter {
    async fn task(&mut self) -> Result<Task, Failure> {
        let mut line = String::new();
        self.0
            .read_line(&mut line)
            .await
            .map_err(|e| Failure::new("read what is to be started", &e))?;
        // The error would quote what it cannot read.
        serde_json::from_str(&line).map_err(|_| Failure::plain("what is to be started cannot be understood"))
    }

    /// Says how it went. A starter that is gone shows in [`Starter::gone`] or [`Starter::arrived`].
    async fn reply(&mut self, reply: &Reply) {
        // Structs of strings and numbers always serialise.
        let mut line = serde_json::to_string(reply).unwrap_or_default();
        line.push('\n');
        let _ = self.0.get_mut().write_all(line.as_bytes()).await;
    }

    /// Resolves when the starter gives up.
    async fn gone(&mut self) {
        // Nothing is sent before the reply: whatever comes is the end.
        let _ = self.0.read_u8().await;
    }

    /// Tells a starter that waits for it that nothing more is done for it.
    async fn hang_up(&mut self) {
        let _ = self.0.get_mut().shutdown().await;
    }

    /// Whether the reply has arrived.
    async fn arrived(&mut self) -> bool {
        self.0.read_u8().await.is_ok_and(|byte| byte == ARRIVED)
    }
}

/// What there is to do, and who wants to hear of it.
async fn told(stream: StdStream) -> Result<(Starter, Signals, Task), Failure> {
    let failed = |e: io::Error| Failure::new("prepare to supervise", &e);
    let signals = Signals::watch().map_err(failed)?;
    let mut starter = Starter(BufReader::new(UnixStream::from_std(stream).map_err(failed)?));
    let task = starter.task().await?;
    Ok((starter, signals, task))
}

async fn supervise(
    mut starter: Starter,
    mut signals: Signals,
    task: &Task,
    log: &SupervisorLog,
    traces: &Traces,
) -> Result<(), Failure> {
    let served = tokio::select! {
        biased;
        // What was started is gone when the drop of its future returns.
        () = starter.gone() => return Ok(()),
        () = signals.any() => Err(ControlError::new(Code::StartFailed, "the supervisor was told to end")),
        served = Served::by(task, log) => served,
    };
    let served = match served {
        Ok(Ok(served)) => served,
        Ok(Err(CleanedUp(leftovers))) => {
            starter.reply(&Reply::CleanedUp(leftovers)).await;
            return Ok(());
        }
        Err(error) => {
            starter.reply(&Reply::Failed(error)).await;
            return Ok(());
        }
    };
    let Served {
        sandbox,
        listener,
        subject,
    } = served;
    traces.complain();
    let adopted = matches!(task, Task::Adopt { .. });
    let (status, events, end, begun) = (
        sandbox.status(),
        sandbox.events(),
        sandbox.status(),
        sandbox.status(),
    );
    let ends_with_daemon = sandbox.on_exit() != OnExit::Report;
    let (owner, desk) = Owner::new(sandbox);
    let api = subject.api_socket.clone();
    let keeper = Arc::new(CacheKeeper::default());
    if adopted {
        keeper.changed();
    }
    let requests = Arc::new(Requests::new(subject, status, events, desk, Arc::clone(&keeper)));
    let mut has_told = false;
    let asked = {
        let requests = Arc::clone(&requests);
        let (starter, has_told) = (&mut starter, &mut has_told);
        async move {
            starter
                .reply(&Reply::Serving(Box::new(requests.info().await)))
                .await;
            *has_told = true;
            // A daemon that was there before outlives a command that is interrupted.
            if starter.arrived().await || adopted {
                starter.hang_up().await;
                tokio::select! {
                    () = signals.any() => {}
                    () = given_up(end, ends_with_daemon) => {}
                    never = rest(begun) => match never {},
                }
            }
        }
    };
    let mut caches = BTreeSet::new();
    let outcome = tokio::select! {
        outcome = control::serve(listener, requests, owner.run(asked)) => outcome,
        never = keeper.run(&api, &mut caches) => match never {},
    };
    if !has_told {
        // Another command was quicker than the answer.
        let said = format!("sandbox {} was stopped as soon as it served", task.id());
        starter
            .reply(&Reply::Failed(ControlError::new(Code::Stopping, said)))
            .await;
    }
    // Whoever waits for the end does not wait for more.
    starter.hang_up().await;
    // Once more, now that nothing is mounted any longer.
    cache_quota::keep_finally(&caches).await;
    match outcome.leftovers.is_empty() {
        true => Ok(()),
        false => Err(Failure::plain("the sandbox could not be removed whole")),
    }
}

/// Gives back what starting took, once that is over: the sandbox has been looked at for the first time, and the command
/// that started it has asked what it wants to know. What is to come is a look every few seconds and a call now and then.
async fn rest(mut status: watch::Receiver<Status>) -> Infallible {
    let looked_at = |status: &Status| !matches!(status.health.api, Health::Unknown { .. });
    // Of a sandbox that is never looked at nothing is ever known.
    let _ = timeout(FIRST_LOOK, status.wait_for(looked_at)).await;
    sleep(CALM).await;
    nydusbox_fsd::give_back();
    std::future::pending().await
}

/// Resolves when the daemon has ended and is not replaced, if that is the sandbox's end.
async fn given_up(mut status: watch::Receiver<Status>, ends_with_daemon: bool) {
    let ended = |status: &Status| matches!(status.phase, StatusPhase::Exited(_));
    if !ends_with_daemon || status.wait_for(ended).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// A sandbox that is there, with the socket by which it is ruled.
struct Served {
    sandbox: Sandbox,
    listener: UnixListener,
    subject: Subject,
}

/// There was nothing to own; what could not be removed.
struct CleanedUp(Vec<String>);

impl Served {
    async fn by(task: &Task, log: &SupervisorLog) -> Result<Result<Self, CleanedUp>, ControlError> {
        match task {
            Task::Start(order) => Self::start(order, log).await.map(Ok),
            Task::Adopt { id, state_dir, .. } => Self::adopt(id, state_dir, log).await,
        }
    }

    async fn adopt(
        id: &SandboxId,
        state_dir: &Path,
        log: &SupervisorLog,
    ) -> Result<Result<Self, CleanedUp>, ControlError> {
        let mut reins = None;
        // Made before the sandbox is ours: without them its daemon would have to be ended, or left to nobody.
        let adopted = Sandbox::adopt_with(state_dir, id, |dir| {
            reins = Some(Reins::make(dir)?);
            Ok(())
        });
        let sandbox = match adopted.await {
            Ok(Adoption::Running(sandbox)) => sandbox,
            Ok(Adoption::CleanedUp { leftovers }) => {
                let left = leftovers.iter().map(|l| Failure::of(l).into_parts().0);
                return Ok(Err(CleanedUp(left.collect())));
            }
            Err(error) => return Err(adopt_error(id, &error)),
        };
        let Some(reins) = reins else {
            return Err(ControlError::new(Code::Internal, "nothing was prepared"));
        };
        let pid = sandbox.status().borrow().pid;
        let program = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        Self::ruled(sandbox, program, reins, log).map(Ok)
    }

    /// Makes a sandbox that is there one that is ruled.
    fn ruled(
        sandbox: Sandbox,
        program: PathBuf,
        reins: Reins,
        log: &SupervisorLog,
    ) -> Result<Self, ControlError> {
        let listener = listen(reins.socket)
            .map_err(|e| ControlError::of(Code::Internal, Failure::new("listen for commands", &e)))?;
        let _ = log.set(Mutex::new(reins.log));
        let subject = Subject {
            id: sandbox.id().clone(),
            program,
            vhost_socket: sandbox.vhost_socket().clone(),
            api_socket: sandbox.api_socket().clone(),
            trust: reins.trust,
        };
        tracing::info!(sandbox = %subject.id, "serving");
        Ok(Self {
            sandbox,
            listener,
            subject,
        })
    }

    async fn start(order: &Order, log: &SupervisorLog) -> Result<Self, ControlError> {
        let begun = Instant::now();
        let looking = order.clone();
        let (config, exe) = apart(&order.share, order.start_deadline, move || configured(&looking))
            .await
            .unwrap_or_else(|error| Err(not_looked_at(order, &error)))?;
        // In whole seconds, because it is told.
        let taken = Duration::from_secs(begun.elapsed().as_secs());
        let config = config.with_start_deadline(order.start_deadline.saturating_sub(taken));
        let dir = config.dir().to_owned();
        let sandbox = Sandbox::start(config).await.map_err(|e| start_error(&e))?;
        let reins = Reins::make(&dir).map_err(|e| refused(Failure::of(&e)))?;
        Self::ruled(sandbox, exe, reins, log)
    }
}

/// What is to be started, with the daemon's program. It looks at that and at the directory to share, and may wait for
/// their file systems.
fn configured(order: &Order) -> Result<(SandboxConfig, PathBuf), ControlError> {
    let program = match &order.daemon {
        DaemonChoice::Builtin => {
            let exe =
                std::env::current_exe().map_err(|e| refused(Failure::new("find this executable", &e)))?;
            Program::embedded(exe)
        }
        DaemonChoice::Stock(path) => Program::stock(path),
    };
    let program = program
        .map_err(|e| refused(Failure::of(&e)))?
        .with_args(&order.extra_args);
    let exe = program.exe().to_owned();
    let trust = Trust::in_sandbox(&order.state_dir.join(order.id.as_str()));
    let program = daemon_env::trusting(daemon_env::beside_proxies(program), trust.file());
    let config = SandboxConfig::new(order.id.clone(), &order.state_dir, program)
        .and_then(|config| config.with_share(&order.share))
        .and_then(|config| config.with_share_config(order.share_config.clone()))
        .map_err(|e| refused(Failure::of(&e)))?
        .with_log_level(order.log_level)
        .with_on_exit(order.on_exit)
        .with_netns(match &order.netns {
            NetnsChoice::Host => Netns::Host,
            NetnsChoice::Current => Netns::Current,
            NetnsChoice::Path(path) => Netns::Path(path.clone()),
        })
        .with_limits(order.limits.limits())
        // To be adopted.
        .with_on_supervisor_death(OnSupervisorDeath::Spare)
        .with_health_interval(order.health_interval)
        .with_stop_grace(order.stop_grace);
    // Checked before anything runs: its name is longer than the other sockets'.
    SocketPath::new(config.dir().join(CONTROL_SOCKET)).map_err(|e| refused(Failure::of(&e)))?;
    Ok((config, exe))
}

fn refused(failure: Failure) -> ControlError {
    ControlError::of(Code::StartFailed, failure)
}

fn not_looked_at(order: &Order, error: &io::Error) -> ControlError {
    let failure = Failure::new(&format!("open the directory {}", order.share.display()), error);
    refused(match error.kind() {
        io::ErrorKind::TimedOut => {
            failure.hint("its file system does not answer, or that of the daemon's program does not")
        }
        _ => failure,
    })
}

/// By what a sandbox is ruled: the control socket, the log, and the certificates its daemon trusts.
struct Reins {
    /// Bound; a command that connects is refused until [`listen`], instead of waiting for a daemon that hangs.
    socket: OwnedFd,
    log: BoundedLog,
    trust: Trust,
}

/// A file of a sandbox that could not be made.
#[derive(Debug, thiserror::Error)]
#[error("make {path:?}")]
struct NotMade {
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl Reins {
    /// Makes them in a directory that is ours by now.
    fn make(dir: &Path) -> Result<Self, NotMade> {
        let not_made = |path: &Path| {
            let path = path.to_owned();
            |source| NotMade { path, source }
        };
        let (control, log) = (dir.join(CONTROL_SOCKET), dir.join(SUPERVISOR_LOG));
        let trust = Trust::in_sandbox(dir);
        trust.begin().map_err(not_made(trust.file()))?;
        Ok(Self {
            socket: bind(&control).map_err(not_made(&control))?,
            log: BoundedLog::resume(&log, &dir.join(SUPERVISOR_LOG_OLD)).map_err(not_made(&log))?,
            trust,
        })
    }
}

/// A predecessor's socket has no listener.
fn bind(control: &Path) -> io::Result<OwnedFd> {
    match std::fs::remove_file(control) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(control)?)?;
    std::fs::set_permissions(control, Permissions::from_mode(0o600))?;
    Ok(socket)
}

fn listen(socket: OwnedFd) -> io::Result<UnixListener> {
    rustix::net::listen(&socket, BACKLOG)?;
    UnixListener::from_std(socket.into())
}

fn start_error(error: &StartError) -> ControlError {
    let failure = Failure::start(error);
    let id = &error.sandbox;
    match &*error.cause {
        StartCause::Dir(DirError::Held { .. }) => ControlError::of(
            Code::SandboxInUse,
            failure.hint(format!(
                "`nydusbox status {id}` shows it, `nydusbox stop {id}` ends it"
            )),
        ),
        StartCause::Dir(DirError::SocketInUse { .. } | DirError::DaemonLives { .. }) => ControlError::of(
            Code::SandboxInUse,
            failure.hint(format!(
                "its supervisor is gone: `nydusbox adopt {id}` takes it over, `nydusbox sweep` removes it"
            )),
        ),
        StartCause::Dir(DirError::Foreign { .. }) => {
            let hint = "it is left as it is: choose another id, or another directory with --state-dir";
            ControlError::of(Code::StartFailed, failure.hint(hint))
        }
        StartCause::Dir(DirError::Io { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => {
            let hint = "without root: set XDG_RUNTIME_DIR, or name a directory of your own with --state-dir";
            ControlError::of(Code::StartFailed, failure.hint(hint))
        }
        _ => ControlError::of(Code::StartFailed, failure),
    }
}

fn adopt_error(id: &SandboxId, error: &AdoptError) -> ControlError {
    let failure = Failure::of(error);
    match error {
        AdoptError::Missing { .. } | AdoptError::Dir(DirError::Foreign { .. }) => {
            ControlError::of(Code::NoSandbox, failure)
        }
        AdoptError::Dir(DirError::Held { .. }) => ControlError::of(
            Code::SandboxInUse,
            failure.hint(format!("its supervisor lives; `nydusbox status {id}` shows it")),
        ),
        _ => ControlError::of(Code::StartFailed, failure),
    }
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn watch() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn any(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
