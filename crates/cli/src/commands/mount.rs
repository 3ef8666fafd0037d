//! `nydusbox mount` and `nydusbox remount`: a container's image in a sandbox.

use std::path::PathBuf;

use clap::Args;
use hyper::Method;
use nydusbox_protocol::{ContainerId, SandboxId};

use super::block_on;
use super::images::ImageArgs;
use super::output::OutputArgs;
use crate::args::StateDirArg;
use crate::control::Client;
use crate::control::wire::{self, Changed, Outcome};
use crate::error::Failure;
use crate::state_dir::StateDir;

/// The image appears at /rafs/CONTAINER/lowerdir of the share. The same mount again is a success; another image at
/// the same place is refused.
#[derive(Debug, Args)]
pub(crate) struct MountArgs {
    /// Sandbox to mount in
    id: SandboxId,
    /// Container the image is for
    container: ContainerId,
    #[command(flatten)]
    image: ImageArgs,
    /// Snapshot's directory with `fs` and `work`, shown in the share while the image is mounted (takes CAP_SYS_ADMIN)
    #[arg(long, value_name = "DIR")]
    snapshotdir: Option<PathBuf>,
    #[command(flatten)]
    pub(super) place: StateDirArg,
    #[command(flatten)]
    output: OutputArgs,
}

/// Gives a mounted image fresh credentials, another backend or a new bootstrap, while the guest's files stay open.
#[derive(Debug, Args)]
pub(crate) struct RemountArgs {
    /// Sandbox the image is mounted in
    id: SandboxId,
    /// Container the image is for
    container: ContainerId,
    #[command(flatten)]
    image: ImageArgs,
    #[command(flatten)]
    pub(super) place: StateDirArg,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) fn mount(args: MountArgs, state_dir: &StateDir) -> Result<(), Failure> {
    check_sandbox(&args.image, &args.id, state_dir)?;
    let image = args.image.had(args.container, args.snapshotdir.as_deref())?;
    let changed: Changed = block_on(async {
        let mut client = Client::of(state_dir, &args.id).await?;
        client.change(Method::POST, wire::MOUNTS, Some(&image.body)).await
    })?;
    args.output.print(&changed, || match changed.outcome {
        Outcome::AlreadyMounted => format!("{} was mounted already", changed.at),
        Outcome::Mounted
        | Outcome::Remounted
        | Outcome::Unmounted
        | Outcome::WasNotMounted
        | Outcome::Unknown => format!("{} is mounted", changed.at),
    })
}

pub(crate) fn remount(args: RemountArgs, state_dir: &StateDir) -> Result<(), Failure> {
    check_sandbox(&args.image, &args.id, state_dir)?;
    let image = args.image.had(args.container, None)?;
    let changed: Changed = block_on(async {
        let mut client = Client::of(state_dir, &args.id).await?;
        client.change(Method::PUT, wire::MOUNTS, Some(&image.body)).await
    })?;
    args.output
        .print(&changed, || format!("{} is remounted", changed.at))
}

/// Before an image is fetched, the sandbox it is for has to be there.
fn check_sandbox(image: &ImageArgs, id: &SandboxId, state_dir: &StateDir) -> Result<(), Failure> {
    match image.is_reference() {
        true => block_on(async { Client::of(state_dir, id).await.map(drop) }),
        false => Ok(()),
    }
}
