//! `nydusbox run`: one command in a microVM whose root is an image fetched as it is read.
//!
//! `plan.rs` turns the options into what will be done, without doing it, but for having the image (`../stored.rs`);
//! `process.rs` says what is run in the guest. `session.rs` does it and undoes it in reverse order: VMM, daemon with
//! its mounts, directories (`places.rs`). The machine boots while the image is had and mounted. `timeline.rs` keeps the
//! times, `complaints.rs` says what the guest is not told.

pub(super) mod claim;
mod complaints;
mod places;
mod plan;
mod process;
mod removal;
mod session;
mod stdio;
mod timeline;
mod trace;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering;

use clap::{Args, ValueEnum};
use nydusbox_image::source::ImageRef;
use nydusbox_vmm::{AccelRequest, ContainerUser, Hostname};

use super::image::bar::cancelled_by_signals;
use super::size::Size;
use super::stored::StoredArgs;
use crate::args::StateDirArg;
use crate::data_dir::DataDirArg;
use crate::error::{Failure, INTERRUPTED, RUN_FAILED};
use crate::state_dir::StateDir;
use session::Session;

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Image to run: docker://HOST/NAME[:TAG], oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:NAME:TAG],
    /// dir:DIR, or a directory made by `nydusbox image build`. One that is not in nydus' form is converted the first
    /// time
    image: ImageRef,
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
    /// Go on from a machine that was booted before, instead of booting each. The first one is kept below the data
    /// directory (about 100 MB) as long as it is used, until the host starts anew. All that go on from it have the kernel
    /// at the same random address
    #[arg(long, value_enum, value_name = "WHEN", default_value_t = Template::Auto)]
    template: Template,
    /// Program to run instead of the image's entrypoint; an empty one is none
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<OsString>,
    /// User to run as instead of the image's, by name or number as the image knows them
    #[arg(long, value_name = "USER[:GROUP]")]
    user: Option<ContainerUser>,
    /// Set a variable in the command's environment, beside those of the image (may be repeated)
    #[arg(long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Working directory instead of the image's; made if it isn't there
    #[arg(long, value_name = "DIR")]
    workdir: Option<String>,
    /// Guest's host name; that of the run, run-NUMBER, unless given
    #[arg(long, value_name = "NAME")]
    hostname: Option<Hostname>,
    /// Daemon to use: the built-in one or the path of a nydusd
    #[arg(long, value_name = "builtin|PATH", default_value = "builtin")]
    daemon: String,
    #[command(flatten)]
    pub(super) place: StateDirArg,
    #[command(flatten)]
    data_dir: DataDirArg,
    #[command(flatten)]
    stored: StoredArgs,
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
    /// Command and its arguments instead of the image's; they are given to its entrypoint, if it has one
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// `--accel`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Accel {
    /// KVM where the processor has it, else TCG
    Auto,
    /// KVM or nothing; also KVM that boots only kernels made for it (PVM)
    Kvm,
    /// Emulation
    Tcg,
}

/// `--template`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Template {
    /// Where guests are emulated, and a boot takes seconds
    Auto,
    /// With KVM, too
    Always,
    /// Boot each
    Never,
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
    match run(args, state_dir) {
        Ok(status) => ExitCode::from(status),
        Err(failure) => failure.exit(),
    }
}

fn run(args: RunArgs, state_dir: &StateDir) -> Result<u8, Failure> {
    // Whatever the image turns out to be, these can be wrong.
    let (draft, places) =
        plan::Draft::new(args, state_dir.path()).map_err(|failure| failure.code(RUN_FAILED))?;
    let cancelled = cancelled_by_signals().map_err(|failure| failure.code(RUN_FAILED))?;
    let session = Session::begin(&draft, places, &cancelled).map_err(|failure| failure.code(RUN_FAILED))?;
    let plan = match draft.with_image(&cancelled) {
        Ok(plan) => plan,
        Err(failure) => {
            session.abandon().map_err(|failure| failure.code(RUN_FAILED))?;
            if cancelled.load(Ordering::Relaxed) {
                return Ok(INTERRUPTED);
            }
            return Err(failure.code(RUN_FAILED));
        }
    };
    session
        .run(&plan, &cancelled)
        .map_err(|failure| failure.code(RUN_FAILED))
}
