//! `nydusbox mount`: a container's image in a sandbox.

use std::io::Read;
use std::path::{Path, PathBuf};

use clap::Args;
use hyper::Method;
use nydusbox_protocol::{ContainerId, SandboxId};

use super::block_on;
use super::output::OutputArgs;
use super::start::absolute;
use crate::args::StateDirArg;
use crate::control::Client;
use crate::control::wire::{self, Changed, MountBody, Outcome};
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
    /// Bootstrap of the RAFS image
    #[arg(long, value_name = "FILE")]
    bootstrap: PathBuf,
    /// Configuration of the mount as nydusd takes it, JSON or TOML; `-` reads it from standard input
    #[arg(long, value_name = "FILE|-")]
    config: PathBuf,
    /// File of the image to fetch ahead, an absolute path inside it (may be repeated)
    #[arg(long, value_name = "PATH")]
    prefetch_file: Vec<String>,
    #[command(flatten)]
    pub(super) place: StateDirArg,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) fn run(args: MountArgs, state_dir: &StateDir) -> Result<(), Failure> {
    let body = MountBody {
        container: args.container,
        bootstrap: absolute(&args.bootstrap)?,
        config: read_config(&args.config)?,
        prefetch_files: args.prefetch_file,
    };
    let changed: Changed = block_on(async {
        let mut client = Client::of(state_dir, &args.id).await?;
        client.change(Method::POST, wire::MOUNTS, Some(&body)).await
    })?;
    args.output.print(&changed, || match changed.outcome {
        Outcome::AlreadyMounted => format!("{} was mounted already", changed.at),
        Outcome::Mounted | Outcome::Unmounted | Outcome::WasNotMounted | Outcome::Unknown => {
            format!("{} is mounted", changed.at)
        }
    })
}

fn read_config(file: &Path) -> Result<String, Failure> {
    let failed = |e: std::io::Error| Failure::new(&format!("read the configuration {}", file.display()), &e);
    if file != Path::new("-") {
        return std::fs::read_to_string(file).map_err(failed);
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).map_err(failed)?;
    Ok(text)
}
