//! `nydusbox status`: how a sandbox is, once or whenever that changes.

use std::fmt::Write as _;

use clap::Args;
use nydusbox::{Health, recorded_mounts};
use nydusbox_protocol::{FsType, SandboxId};
use tokio::time::timeout;

use super::block_on;
use super::output::{self, OutputArgs, Reader};
use crate::args::StateDirArg;
use crate::control::wire::{self, DaemonInfo, MountInfo, SandboxInfo, State, SupervisorInfo, VmmInfo};
use crate::control::{ANSWERS_WITHIN, Client, Presence, no_answer, owner_of};
use crate::error::Failure;
use crate::state_dir::StateDir;

/// With --json one object for the sandbox, or an array of them without ID.
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// Sandbox to show; all of them unless given
    id: Option<SandboxId>,
    /// Show it again whenever it changes, until it ends; with --json one object a line
    #[arg(long, requires = "id")]
    watch: bool,
    #[command(flatten)]
    pub(super) place: StateDirArg,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) fn run(args: &StatusArgs, state_dir: &StateDir) -> Result<(), Failure> {
    block_on(async {
        match &args.id {
            None => {
                let all = all(state_dir).await?;
                args.output.print(&all, || match all.is_empty() {
                    true => format!("no sandbox in {}", state_dir.path().display()),
                    false => all.iter().map(text).collect::<Vec<_>>().join("\n\n"),
                })
            }
            Some(id) if args.watch => watch(args, state_dir, id).await,
            Some(id) => one(args, state_dir, id).await,
        }
    })
}

async fn one(args: &StatusArgs, state_dir: &StateDir, id: &SandboxId) -> Result<(), Failure> {
    match Presence::of(state_dir, id).await {
        Presence::Live(stream) => {
            let owner = owner_of(&stream);
            let asked = async { Client::on(stream, state_dir, id).await?.get(wire::SANDBOX).await };
            let Ok(answer) = timeout(ANSWERS_WITHIN, asked).await else {
                let info = bare(id, State::Unknown, owner);
                args.output.print(&info, || text(&info))?;
                return Err(no_answer(id, owner));
            };
            let info: SandboxInfo = answer?;
            args.output.print(&info, || text(&info))
        }
        other => {
            // What is known is data all the same; the exit code and the sentence say what is the matter.
            if let Some(info) = without_supervisor(state_dir, id, &other) {
                args.output.print(&info, || text(&info))?;
            }
            Err(other.failure(state_dir, id))
        }
    }
}

async fn watch(args: &StatusArgs, state_dir: &StateDir, id: &SandboxId) -> Result<(), Failure> {
    let mut client = Client::of(state_dir, id).await?;
    let target = format!("{}?watch", wire::SANDBOX);
    client
        .lines(&target, |line| {
            let shown = match args.output.json {
                true => line.to_owned(),
                false => {
                    text(
                        &serde_json::from_str(line)
                            .map_err(|e| Failure::new("understand the supervisor", &e))?,
                    ) + "\n"
                }
            };
            output::line(&shown).map(|reader| reader == Reader::Reads)
        })
        .await
}

/// Every sandbox, by name. One whose supervisor does not answer is shown as far as it is known.
pub(super) async fn all(state_dir: &StateDir) -> Result<Vec<SandboxInfo>, Failure> {
    let mut all = Vec::new();
    for id in state_dir.list()? {
        let found = match Presence::of(state_dir, &id).await {
            Presence::Live(stream) => {
                let owner = owner_of(&stream);
                let asked = async { Client::on(stream, state_dir, &id).await?.get(wire::SANDBOX).await };
                match timeout(ANSWERS_WITHIN, asked).await {
                    Ok(Ok(info)) => Some(info),
                    // It ended, or was killed, since the directory was read.
                    Ok(Err(_)) => without_supervisor(state_dir, &id, &Presence::of(state_dir, &id).await),
                    Err(_) => Some(bare(&id, State::Unknown, owner)),
                }
            }
            other => without_supervisor(state_dir, &id, &other),
        };
        all.extend(found);
    }
    Ok(all)
}

/// What can be said of a sandbox nobody answers for.
fn without_supervisor(state_dir: &StateDir, id: &SandboxId, presence: &Presence) -> Option<SandboxInfo> {
    match presence {
        Presence::Absent => None,
        Presence::Busy { owner } => Some(bare(id, State::Busy, *owner)),
        Presence::Abandoned { owner } => {
            // A state that cannot be read is for those to tell who take the sandbox over or clear it away.
            let mounts = recorded_mounts(state_dir.sandbox(id)).unwrap_or_default();
            Some(SandboxInfo {
                mounts: mounts.iter().map(MountInfo::from).collect(),
                ..bare(id, State::Abandoned, *owner)
            })
        }
        Presence::Live(_) | Presence::Closed(_) => Some(bare(id, State::Unknown, None)),
    }
}

fn bare(id: &SandboxId, state: State, owner: Option<u32>) -> SandboxInfo {
    SandboxInfo {
        id: id.clone(),
        state,
        supervisor: SupervisorInfo { pid: owner },
        daemon: DaemonInfo::default(),
        vmm: VmmInfo::default(),
        mounts: Vec::new(),
        health: None,
        sockets: None,
        exit: None,
    }
}

fn text(info: &SandboxInfo) -> String {
    let mut text = format!("sandbox     {}\nstate       {}", info.id, info.state);
    let mut row = |name: &str, value: &str| {
        let _ = write!(text, "\n{name:<12}{value}");
    };
    if let Some(pid) = info.supervisor.pid {
        row("supervisor", &format!("process {pid}"));
    }
    if let Some(program) = &info.daemon.program {
        let version = info
            .daemon
            .version
            .as_deref()
            .map_or_else(String::new, |v| format!(" {v}"));
        let pid = info
            .daemon
            .pid
            .map_or_else(String::new, |pid| format!(", process {pid}"));
        row("daemon", &format!("{}{version}{pid}", program.display()));
    }
    if let Some(sockets) = &info.sockets {
        row("vhost-user", &sockets.vhost.display().to_string());
        row("API", &sockets.api.display().to_string());
    }
    if let Some(attached) = info.vmm.attached {
        row("VMM", if attached { "attached" } else { "not attached" });
    }
    if let Some(health) = &info.health {
        let facts = [
            ("API", &health.api),
            ("backend", &health.backend),
            ("requests", &health.in_flight),
        ];
        for (name, fact) in facts {
            match fact {
                Health::Ok => row("health", &format!("{name} ok")),
                Health::Degraded { reason } | Health::Failed { reason } => {
                    row("health", &format!("{name} NOT OK: {reason}"));
                }
                Health::Unknown { reason } => row("health", &format!("{name} not known: {reason}")),
            }
        }
    }
    for mount in &info.mounts {
        let kind = match mount.fs_type {
            FsType::Rafs => "RAFS",
            FsType::PassthroughFs => "directory",
        };
        let doubt = if mount.confirmed { "" } else { " (not confirmed)" };
        row("mount", &format!("{} {kind} {}{doubt}", mount.at, mount.source));
        if let Some(dir) = &mount.snapshotdir {
            row("", &format!("with the snapshot directory {}", dir.display()));
        }
    }
    if let Some(exit) = &info.exit {
        row("exit", &format!("the daemon {}", exit.reason));
        for line in &exit.last_lines {
            row("", line);
        }
    }
    text
}
