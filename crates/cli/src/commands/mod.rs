//! The `nydusbox` command line; each subcommand has its file.

mod doctor;
mod image;
mod list;
mod mount;
mod output;
pub(crate) mod overlayfs;
mod run;
mod size;
mod start;
mod status;
mod stop;
mod umount;
pub(crate) mod virtiofs;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::args::{GlobalArgs, StateDirArg, VirtiofsArgs};
use crate::error::{Failure, RUN_FAILED};
use crate::state_dir::StateDir;
use crate::supervise;

#[derive(Debug, Parser)]
#[command(
    name = "nydusbox",
    version,
    about = "File systems for microVM sandboxes: shared directories and images fetched as they are read"
)]
struct Cli {
    /// Directory with sockets and logs of the live sandboxes; a command's own option comes first
    #[arg(long, value_name = "DIR", env = "NYDUSBOX_STATE_DIR")]
    state_dir: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a sandbox: a daemon that shares a directory, and a process that owns it
    Start(start::StartArgs),
    /// Mount a container's image in a sandbox
    Mount(mount::MountArgs),
    /// Unmount a container's image
    Umount(umount::UmountArgs),
    /// Show how a sandbox is, or all of them
    Status(status::StatusArgs),
    /// List the sandboxes
    List(list::ListArgs),
    /// Stop a sandbox, or all of them: nothing is left
    Stop(stop::StopArgs),
    /// Serve images and directories to a VMM over vhost-user (compatible with `nydusd virtiofs`)
    Virtiofs(DaemonArgs),
    /// Run a command in a microVM on an image that is fetched as it is read
    Run(run::RunArgs),
    /// Make and look at images
    #[command(subcommand)]
    Image(image::ImageCommand),
    /// Mount an overlay, without the options that are meant for a runtime (mount type `fuse.nydus-overlayfs`)
    Overlayfs(overlayfs::OverlayfsArgs),
    /// Say what this machine lacks for running microVMs, and how to mend it
    Doctor(doctor::DoctorArgs),
    /// Own one sandbox; begun by `start`, not by hand
    Supervise(supervise::SuperviseArgs),
}

#[derive(Debug, Args)]
struct DaemonArgs {
    #[command(flatten)]
    global: GlobalArgs,
    #[command(flatten)]
    virtiofs: VirtiofsArgs,
}

pub(crate) fn main() -> ExitCode {
    let Cli { state_dir, command } = Cli::parse();
    let place = |own: &StateDirArg| StateDir::new(own.state_dir.clone().or(state_dir));
    match command {
        Command::Start(args) => done(place(&args.place).and_then(|dir| start::run(args, &dir))),
        Command::Mount(args) => done(place(&args.place).and_then(|dir| mount::run(args, &dir))),
        Command::Umount(args) => done(place(&args.place).and_then(|dir| umount::run(&args, &dir))),
        Command::Status(args) => done(place(&args.place).and_then(|dir| status::run(&args, &dir))),
        Command::List(args) => done(place(&args.place).and_then(|dir| list::run(&args, &dir))),
        Command::Stop(args) => done(place(&args.place).and_then(|dir| stop::run(&args, &dir))),
        Command::Virtiofs(DaemonArgs { global, virtiofs }) => virtiofs::main(global, virtiofs),
        Command::Run(args) => match place(&args.place) {
            Ok(dir) => run::main(args, &dir),
            Err(failure) => failure.report(RUN_FAILED),
        },
        Command::Image(command) => image::main(command),
        Command::Overlayfs(args) => overlayfs::main(args),
        Command::Doctor(args) => doctor::main(args),
        Command::Supervise(args) => supervise::main(args),
    }
}

fn done(result: Result<(), Failure>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.exit(),
    }
}

/// Runs what a command has to wait for.
fn block_on<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::new("start the runtime", &e))?
        .block_on(future)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn every_command_and_option_has_help() {
        fn walk(command: &clap::Command) {
            for arg in command.get_arguments() {
                assert!(
                    arg.get_help().is_some(),
                    "{} {} has no help",
                    command.get_name(),
                    arg.get_id()
                );
            }
            for sub in command.get_subcommands() {
                assert!(sub.get_about().is_some(), "{} has no help", sub.get_name());
                walk(sub);
            }
        }
        let command = Cli::command();
        command.clone().debug_assert();
        walk(&command);
    }
}
