//! `nydusbox run`: one command in a microVM whose root is an image fetched as it is read.
//!
//! `plan.rs` turns the options into what will be done, without doing it; `session.rs` does it and undoes it in
//! reverse order: VMM, daemon with its mounts, directories. `timeline.rs` keeps the times.

mod plan;
mod session;
mod timeline;
mod trace;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use nydusbox_vmm::AccelRequest;

use super::size::Size;
use crate::args::StateDirArg;
use crate::data_dir::DataDirArg;
use crate::error::RUN_FAILED;
use crate::state_dir::StateDir;

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Image to run: a directory made by `nydusbox image build`
    #[arg(long, value_name = "DIR")]
    image: PathBuf,
    /// Show a host directory to the guest; GUEST_PATH is /share unless given, `ro` makes it read-only
    #[arg(long, value_name = "HOST_DIR[:GUEST_PATH[:ro]]")]
    share: Vec<String>,
    /// Guest kernel instead of the newest one below --guest-root
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Directory below which the guest's kernel, modules and busybox are looked for
    #[arg(long, value_name = "DIR", default_value = "/", env = "NYDUSBOX_GUEST_ROOT")]
    guest_root: PathBuf,
    /// Guest memory
    #[arg(long, value_name = "SIZE", default_value = "512M")]
    memory: Size,
    /// Virtual processors; as many as the host has, two at most, unless given
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(1..))]
    cpus: Option<u16>,
    /// How the guest's instructions are run
    #[arg(long, value_enum, default_value_t = Accel::Auto)]
    accel: Accel,
    /// Set a variable in the command's environment (may be repeated)
    #[arg(long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Working directory of the command
    #[arg(long, value_name = "DIR", default_value = "/")]
    workdir: String,
    /// Daemon to use: the built-in one or the path of a nydusd
    #[arg(long, value_name = "builtin|PATH", default_value = "builtin")]
    daemon: String,
    #[command(flatten)]
    pub(super) place: StateDirArg,
    #[command(flatten)]
    data_dir: DataDirArg,
    /// Keep what the guest wrote, and say where (root only: for others it stays in the guest's memory)
    #[arg(long)]
    keep: bool,
    /// Write what was read of the image, in order, to a file for `nydusbox image optimize`
    #[arg(long, value_name = "FILE")]
    record_trace: Option<PathBuf>,
    /// Write times and byte counts to a file, as JSON
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Show each step with its time
    #[arg(short, long)]
    verbose: bool,
    /// Command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// `--accel`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Accel {
    /// KVM where it works, else TCG
    Auto,
    /// KVM or nothing
    Kvm,
    /// Emulation
    Tcg,
}

impl From<Accel> for AccelRequest {
    fn from(accel: Accel) -> Self {
        match accel {
            Accel::Auto => Self::Auto,
            Accel::Kvm => Self::Kvm,
            Accel::Tcg => Self::Tcg,
        }
    }
}

pub(crate) fn main(args: RunArgs, state_dir: &StateDir) -> ExitCode {
    let plan = match plan::Plan::new(args, state_dir.path()) {
        Ok(plan) => plan,
        Err(failure) => return failure.report(RUN_FAILED),
    };
    match session::run(&plan) {
        Ok(status) => ExitCode::from(status),
        Err(failure) => failure.report(RUN_FAILED),
    }
}
