//! `nydusbox start`: a sandbox of its own, with a process that owns it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use nydusbox::{
    DEFAULT_HEALTH_INTERVAL, DEFAULT_STOP_GRACE, EventRecord, OnExit, RestartPolicy, SandboxEvent,
};
use nydusbox_protocol::{LogLevel, SandboxId, ShareConfig};

use super::output::OutputArgs;
use super::size::Size;
use super::{absolute, block_on};
use crate::args::StateDirArg;
use crate::control::{Client, wire};
use crate::error::{Failure, say};
use crate::state_dir::StateDir;
use crate::supervise::{self, Begun, DaemonChoice, LimitsChoice, NetnsChoice, Order, Task};

/// Returns when the directory is served to whoever connects to the sandbox's vhost-user socket. A process of this
/// program stays and owns the sandbox until `nydusbox stop`.
#[derive(Debug, Args)]
pub(crate) struct StartArgs {
    /// Name of the sandbox
    id: SandboxId,
    /// Directory to share with the guest, at /containers of the share
    #[arg(long, value_name = "DIR")]
    share: PathBuf,
    /// The guest can change nothing in the directory (built-in daemon only)
    #[arg(long)]
    readonly: bool,
    /// Other names for extended attributes on the host than in the guest, in virtiofsd's syntax (built-in daemon
    /// only)
    #[arg(long, value_name = "RULES")]
    xattrmap: Option<String>,
    /// Daemon to use: the built-in one or the path of a nydusd
    #[arg(long, value_name = "builtin|PATH", default_value = "builtin")]
    daemon: String,
    /// How much daemon and supervisor log: off, error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log_level: LogLevel,
    /// Further argument for the daemon (may be repeated)
    #[arg(long, value_name = "ARGUMENT", allow_hyphen_values = true)]
    extra_arg: Vec<OsString>,
    /// What is done when the daemon ends without being asked to
    #[arg(long, value_enum, default_value_t = OnExitArg::Report)]
    on_exit: OnExitArg,
    /// Network namespace of the daemon, from which it reaches registries: host's, this command's, or one by path
    #[arg(long, value_name = "host|current|PATH", default_value = "current")]
    netns: String,
    /// Memory the daemon may use, its page cache included (in a cgroup v2 that you may write to)
    #[arg(long, value_name = "SIZE")]
    memory_max: Option<Size>,
    /// Processes and threads the daemon may have (in a cgroup v2 that you may write to)
    #[arg(long, value_name = "NUMBER")]
    pids_max: Option<u64>,
    /// Cgroup (v2, a directory) in which the daemon's own is made, instead of beside this command's; one is made then
    /// even without a limit
    #[arg(long, value_name = "DIR")]
    cgroup_parent: Option<PathBuf>,
    /// Fail where a limit cannot be applied; otherwise that is an event, and the sandbox runs without it
    #[arg(long)]
    require_limits: bool,
    /// How long the start may take in all
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    timeout: u32,
    /// How often it is looked how well the daemon is; 0 for never
    #[arg(long, value_name = "SECONDS", default_value_t = DEFAULT_HEALTH_INTERVAL.as_secs(),
          value_parser = clap::value_parser!(u64).range(..=86_400))]
    health_interval: u64,
    /// How long the daemon may take to end when the sandbox is stopped, before it is killed
    #[arg(long, value_name = "SECONDS", default_value_t = DEFAULT_STOP_GRACE.as_secs(),
          value_parser = clap::value_parser!(u64).range(..=86_400))]
    stop_grace: u64,
    #[command(flatten)]
    pub(super) place: StateDirArg,
    #[command(flatten)]
    output: OutputArgs,
}

/// `--on-exit`. Every one of them is an event, with how the daemon ended and its last lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OnExitArg {
    /// Stop the sandbox: nothing is left; whoever follows the events ends the VM
    Stop,
    /// Put another daemon in its place with the same mounts; after five exits within a minute, as `stop`
    Restart,
    /// Leave the sandbox as it is, for `status` to show, until it is stopped
    Report,
}

impl From<OnExitArg> for OnExit {
    fn from(arg: OnExitArg) -> Self {
        match arg {
            OnExitArg::Stop => Self::Stop,
            OnExitArg::Restart => Self::Restart(RestartPolicy::default()),
            OnExitArg::Report => Self::Report,
        }
    }
}

pub(crate) fn run(args: StartArgs, state_dir: &StateDir) -> Result<(), Failure> {
    let order = Order {
        id: args.id,
        state_dir: state_dir.path().to_owned(),
        share: absolute(&args.share)?,
        share_config: ShareConfig {
            read_only: args.readonly,
            xattrmap: args.xattrmap,
        },
        daemon: match args.daemon.as_str() {
            "builtin" => DaemonChoice::Builtin,
            path => DaemonChoice::Stock(absolute(Path::new(path))?),
        },
        extra_args: args.extra_arg,
        on_exit: args.on_exit.into(),
        netns: match args.netns.as_str() {
            "host" => NetnsChoice::Host,
            "current" => NetnsChoice::Current,
            path => NetnsChoice::Path(absolute(Path::new(path))?),
        },
        limits: LimitsChoice {
            memory_max_bytes: args.memory_max.map(Size::bytes),
            pids_max: args.pids_max,
            cgroup_parent: args.cgroup_parent.as_deref().map(absolute).transpose()?,
            required: args.require_limits,
        },
        log_level: args.log_level,
        start_deadline: Duration::from_secs(args.timeout.into()),
        health_interval: Some(Duration::from_secs(args.health_interval)).filter(|i| !i.is_zero()),
        stop_grace: Duration::from_secs(args.stop_grace),
    };
    let (id, share) = (order.id.clone(), order.share.clone());
    let info = match block_on(supervise::begin(&Task::Start(Box::new(order))))? {
        Begun::Serving(info) => info,
        Begun::CleanedUp(_) => return Err(Failure::plain("the supervisor cleaned up instead of starting")),
    };
    // The sandbox serves, whether or not it can be asked this.
    let _ = block_on(warn(state_dir, &id));
    args.output.print(&info, || {
        let socket = info
            .sockets
            .as_ref()
            .map_or_else(String::new, |s| format!(" on {}", s.vhost.display()));
        format!("sandbox {} serves {}{socket}", info.id, share.display())
    })
}

/// Says what was not applied as it was asked for.
async fn warn(state_dir: &StateDir, id: &SandboxId) -> Result<(), Failure> {
    let mut client = Client::of(state_dir, id).await?;
    client
        .lines(wire::EVENTS, |line| {
            if let Ok(EventRecord {
                event: SandboxEvent::Degraded { what, reason },
                ..
            }) = serde_json::from_str(line)
            {
                say(format_args!("warning: {what}: {reason}"));
            }
            Ok(true)
        })
        .await
}
