//! `nydusbox log-level`: how much a running daemon logs.

use clap::Args;
use hyper::Method;
use nydusbox_protocol::{LogLevel, SandboxId};

use super::block_on;
use super::output::OutputArgs;
use crate::args::StateDirArg;
use crate::control::Client;
use crate::control::wire::{self, LevelBody};
use crate::error::Failure;
use crate::state_dir::StateDir;

/// It lasts as long as the sandbox, also if another daemon takes this one's place.
#[derive(Debug, Args)]
pub(crate) struct LogLevelArgs {
    /// Sandbox whose daemon is to log more or less
    id: SandboxId,
    /// How much: off, error, warn, info, debug or trace
    level: LogLevel,
    #[command(flatten)]
    pub(super) place: StateDirArg,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) fn run(args: &LogLevelArgs, state_dir: &StateDir) -> Result<(), Failure> {
    let body = LevelBody { level: args.level };
    let set: LevelBody = block_on(async {
        let mut client = Client::of(state_dir, &args.id).await?;
        client.change(Method::PUT, wire::LOG_LEVEL, Some(&body)).await
    })?;
    args.output.print(&set, || {
        format!("the daemon of sandbox {} logs {}", args.id, set.level)
    })
}
