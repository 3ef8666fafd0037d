//! The chaos test, for longer than the gate has time for.

use clap::Args;

use crate::command::Cmd;
use crate::debian;
use crate::error::TaskError;
use crate::tasks::peers;
use crate::workspace::Workspace;

#[derive(Debug, Args)]
pub(crate) struct ChaosArgs {
    /// How long
    #[arg(long, value_name = "MINUTES", default_value_t = 10)]
    minutes: u64,
    /// Do what a run with this seed did
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
}

pub(crate) fn run(workspace: &Workspace, args: &ChaosArgs) -> Result<(), TaskError> {
    debian::ensure(&[debian::BUILD])?;
    let peers = peers::ensure(workspace)?;
    // Of all packages, which have one test of that name: for one package alone, dependencies would be built anew.
    let mut test = Cmd::cargo()
        .words("test --workspace --locked --test chaos -- --nocapture")
        .dir(workspace.root())
        .env("NYDUSBOX_REQUIRE_PEERS", "1")
        .env("NYDUSBOX_PEERS", &peers)
        .env("NYDUSBOX_CHAOS_SECONDS", (args.minutes * 60).to_string());
    if let Some(seed) = args.seed {
        test = test.env("NYDUSBOX_CHAOS_SEED", seed.to_string());
    }
    test.shown()
}
