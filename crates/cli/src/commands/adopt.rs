//! `nydusbox adopt`: a supervisor for sandboxes whose own is gone.

use clap::{ArgGroup, Args};
use nydusbox_protocol::{LogLevel, SandboxId};
use serde_json::{Value, json};

use super::block_on;
use super::output::OutputArgs;
use crate::args::StateDirArg;
use crate::control::Presence;
use crate::error::Failure;
use crate::state_dir::StateDir;
use crate::supervise::{self, Begun, Task};

/// A live daemon is taken over with its mounts and binds; of a dead one, what is left is removed. With --json one
/// object, {"id", "outcome": "adopted", "sandbox"} or {"id", "outcome": "cleaned_up", "leftovers"}; an array with --all.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("which").required(true).args(["id", "all"])))]
pub(crate) struct AdoptArgs {
    /// Sandbox to take over
    id: Option<SandboxId>,
    /// Take over every sandbox whose supervisor is gone
    #[arg(long)]
    all: bool,
    /// How much the supervisor logs: off, error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log_level: LogLevel,
    #[command(flatten)]
    pub(super) place: StateDirArg,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) fn run(args: &AdoptArgs, state_dir: &StateDir) -> Result<(), Failure> {
    if let Some(id) = &args.id {
        let (value, text) = adopt(args, state_dir, id)?;
        return args.output.print(&value, || text);
    }
    let (mut values, mut texts, mut first) = (Vec::new(), Vec::new(), None);
    for id in state_dir.list()? {
        if !block_on(async { Ok(Presence::of(state_dir, &id).await.is_abandoned()) })? {
            continue;
        }
        match adopt(args, state_dir, &id) {
            Ok((value, text)) => {
                values.push(value);
                texts.push(text);
            }
            Err(failure) => match first {
                None => first = Some(failure),
                Some(_) => drop(failure.exit()),
            },
        }
    }
    args.output.print(&values, || match texts.is_empty() {
        true => "nothing to adopt".to_owned(),
        false => texts.join("\n"),
    })?;
    first.map_or(Ok(()), Err)
}

fn adopt(args: &AdoptArgs, state_dir: &StateDir, id: &SandboxId) -> Result<(Value, String), Failure> {
    let task = Task::Adopt {
        id: id.clone(),
        state_dir: state_dir.path().to_owned(),
        log_level: args.log_level,
    };
    Ok(match block_on(supervise::begin(&task))? {
        Begun::Serving(info) => (
            json!({"id": id, "outcome": "adopted", "sandbox": info}),
            format!("sandbox {id} is adopted"),
        ),
        Begun::CleanedUp(leftovers) if leftovers.is_empty() => (
            json!({"id": id, "outcome": "cleaned_up", "leftovers": leftovers}),
            format!("sandbox {id} had no daemon any more; what was left of it is removed"),
        ),
        Begun::CleanedUp(leftovers) => {
            return Err(Failure::plain(format!(
                "sandbox {id} had no daemon any more, and could not be removed whole: {}",
                leftovers.join("; ")
            )));
        }
    })
}
