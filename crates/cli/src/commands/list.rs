//! `nydusbox list`: the sandboxes, one a line.

use clap::Args;

use super::output::OutputArgs;
use super::{block_on, status};
use crate::args::StateDirArg;
use crate::error::Failure;
use crate::state_dir::StateDir;

/// With --json the same array as `status --json`.
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    pub(super) place: StateDirArg,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) fn run(args: &ListArgs, state_dir: &StateDir) -> Result<(), Failure> {
    let all = block_on(status::all(state_dir))?;
    args.output.print(&all, || {
        let width = all
            .iter()
            .map(|s| s.id.as_str().len())
            .max()
            .unwrap_or(0)
            .max("SANDBOX".len());
        let mut text = format!("{:width$}  {:9}  {:>6}  DAEMON", "SANDBOX", "STATE", "MOUNTS");
        for sandbox in &all {
            let daemon = match (&sandbox.daemon.program, sandbox.daemon.pid) {
                (Some(program), Some(pid)) => format!("{} ({pid})", program.display()),
                _ => "-".to_owned(),
            };
            text += &format!(
                "\n{:width$}  {:9}  {:>6}  {daemon}",
                sandbox.id.as_str(),
                sandbox.state,
                sandbox.mounts.len()
            );
        }
        text
    })
}
