//! `nydusbox umount`: a container's image out of a sandbox.

use clap::Args;
use hyper::Method;
use nydusbox_protocol::{ContainerId, SandboxId};

use super::block_on;
use super::output::OutputArgs;
use crate::args::StateDirArg;
use crate::control::Client;
use crate::control::wire::{self, Changed, Outcome};
use crate::error::Failure;
use crate::state_dir::StateDir;

/// What is not mounted (any more) is a success too.
#[derive(Debug, Args)]
pub(crate) struct UmountArgs {
    /// Sandbox to unmount in
    id: SandboxId,
    /// Container whose image goes
    container: ContainerId,
    #[command(flatten)]
    pub(super) place: StateDirArg,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) fn run(args: &UmountArgs, state_dir: &StateDir) -> Result<(), Failure> {
    // The only character of an id that means something else in a query.
    let container = args.container.as_str().replace('+', "%2B");
    let target = format!("{}?container={container}", wire::MOUNTS);
    let changed: Changed = block_on(async {
        let mut client = Client::of(state_dir, &args.id).await?;
        client.change(Method::DELETE, &target, None::<&()>).await
    })?;
    args.output.print(&changed, || match changed.outcome {
        Outcome::WasNotMounted => format!("{} was not mounted", changed.at),
        Outcome::Mounted
        | Outcome::AlreadyMounted
        | Outcome::Remounted
        | Outcome::Unmounted
        | Outcome::Unknown => {
            format!("{} is unmounted", changed.at)
        }
    })
}
