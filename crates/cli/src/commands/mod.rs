//! The `nydusbox` command line; each subcommand has its file.

mod adopt;
mod blob_proxy;
mod doctor;
mod emit;
mod events;
mod image;
mod images;
mod kata_config;
mod list;
mod log_level;
mod logs;
mod manual;
mod metrics;
mod mount;
pub(crate) mod output;
pub(crate) mod overlayfs;
pub(crate) mod registry;
mod run;
mod size;
mod start;
mod status;
mod stop;
mod stored;
mod sweep;
mod umount;
pub(crate) mod virtiofs;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::args::{GlobalArgs, StateDirArg, VirtiofsArgs};
use crate::error::{Failure, RUN_FAILED, USAGE};
use crate::nydus_overlayfs::unreadable;
use crate::state_dir::StateDir;
use crate::supervise;

/// As in README; the numbers are those of `error.rs`.
const EXIT_CODES: &str = "\
Exit codes:
  0    success
  1    the command failed; the reason is on stderr
  2    the command line is wrong
  3    there is no such sandbox
  4    the sandbox has no supervisor any more: adopt or sweep
  5    the sandbox is in use, or what was asked for is taken
  125  run: nydusbox failed before or after the guest's command
  130  interrupted by Ctrl-C, SIGTERM or SIGHUP
  141  run: whoever read the command's output has left";

#[derive(Debug, Parser)]
#[command(
    name = "nydusbox",
    version,
    about = "File systems for microVM sandboxes: shared directories and images fetched as they are read",
    after_help = EXIT_CODES
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
    /// Give a mounted image another configuration or bootstrap
    Remount(mount::RemountArgs),
    /// Unmount a container's image
    Umount(umount::UmountArgs),
    /// Show how a sandbox is, or all of them
    Status(status::StatusArgs),
    /// List the sandboxes
    List(list::ListArgs),
    /// Show what has happened to a sandbox
    Events(events::EventsArgs),
    /// Show what a sandbox's daemon has printed
    Logs(logs::LogsArgs),
    /// Change how much a sandbox's daemon logs
    LogLevel(log_level::LogLevelArgs),
    /// Print what a sandbox's daemon has counted, as Prometheus reads it
    Metrics(metrics::MetricsArgs),
    /// Print what a VMM or a Kata agent has to be told about a sandbox
    Emit(emit::EmitArgs),
    /// Stop a sandbox, or all of them: nothing is left
    Stop(stop::StopArgs),
    /// Take over a sandbox whose supervisor is gone
    Adopt(adopt::AdoptArgs),
    /// Remove what crashes have left
    Sweep(sweep::SweepArgs),
    #[command(flatten)]
    Resident(Resident),
    /// Run a command in a microVM on an image that is fetched as it is read
    Run(run::RunArgs),
    /// Make and look at images
    #[command(subcommand)]
    Image(image::ImageCommand),
    /// Mount an overlay, without the options that are meant for a runtime (mount type `fuse.nydus-overlayfs`)
    Overlayfs(overlayfs::OverlayfsArgs),
    /// Print the section of Kata Containers' configuration that has it start this daemon
    KataConfig(kata_config::KataConfigArgs),
    /// Say what this machine lacks for running microVMs, and how to mend it
    Doctor(doctor::DoctorArgs),
    /// Print a shell's completions for this command
    Completions(manual::CompletionsArgs),
    /// Write man pages
    Man(manual::ManArgs),
}

/// The commands that become processes which stay, one or two for each sandbox.
#[derive(Debug, Subcommand)]
enum Resident {
    /// Serve images and directories to a VMM over vhost-user (compatible with `nydusd virtiofs`)
    Virtiofs(Box<DaemonArgs>),
    /// Own one sandbox; begun by `start`, not by hand
    Supervise(supervise::SuperviseArgs),
}

/// Those without the others, whose options would be built each time, and lie about in memory for as long as the
/// sandbox lives.
#[derive(Debug, Parser)]
#[command(name = "nydusbox", version)]
struct ResidentCli {
    #[command(subcommand)]
    command: Resident,
}

#[derive(Debug, Args)]
struct DaemonArgs {
    #[command(flatten)]
    global: GlobalArgs,
    #[command(flatten)]
    virtiofs: VirtiofsArgs,
}

impl Resident {
    const NAMES: [&str; 2] = ["virtiofs", "supervise"];

    fn main(self) -> ExitCode {
        match self {
            Self::Virtiofs(args) => virtiofs::main(args.global, args.virtiofs),
            Self::Supervise(args) => supervise::main(args),
        }
    }
}

pub(crate) fn main() -> ExitCode {
    let first = std::env::args_os().nth(1);
    let is_first = |name: &str| first.as_ref().is_some_and(|first| first == name);
    if Resident::NAMES.into_iter().any(is_first) {
        return ResidentCli::parse().command.main();
    }
    let Cli { state_dir, command } = match Cli::try_parse() {
        Ok(cli) => cli,
        // The parser would quote a mount's options, which hold credentials.
        Err(error) if error.use_stderr() && is_first("overlayfs") => {
            return unreadable(&error, "nydusbox overlayfs").report(USAGE);
        }
        Err(error) => error.exit(),
    };
    let place = |own: &StateDirArg| StateDir::new(own.state_dir.clone().or(state_dir));
    match command {
        Command::Start(args) => done(place(&args.place).and_then(|dir| start::run(args, &dir))),
        Command::Mount(args) => done(place(&args.place).and_then(|dir| mount::mount(args, &dir))),
        Command::Remount(args) => done(place(&args.place).and_then(|dir| mount::remount(args, &dir))),
        Command::Umount(args) => done(place(&args.place).and_then(|dir| umount::run(&args, &dir))),
        Command::Status(args) => done(place(&args.place).and_then(|dir| status::run(&args, &dir))),
        Command::List(args) => done(place(&args.place).and_then(|dir| list::run(&args, &dir))),
        Command::Stop(args) => done(place(&args.place).and_then(|dir| stop::run(&args, &dir))),
        Command::Events(args) => done(place(&args.place).and_then(|dir| events::run(&args, &dir))),
        Command::Logs(args) => done(place(&args.place).and_then(|dir| logs::run(&args, &dir))),
        Command::LogLevel(args) => done(place(&args.place).and_then(|dir| log_level::run(&args, &dir))),
        Command::Metrics(args) => done(place(&args.place).and_then(|dir| metrics::run(&args, &dir))),
        Command::Emit(args) => done(place(&args.place).and_then(|dir| emit::run(&args, &dir))),
        Command::Adopt(args) => done(place(&args.place).and_then(|dir| adopt::run(&args, &dir))),
        Command::Sweep(args) => done(place(&args.place).and_then(|dir| sweep::run(&args, &dir))),
        Command::Resident(command) => command.main(),
        Command::Run(args) => match place(&args.place) {
            Ok(dir) => run::main(args, &dir),
            Err(failure) => failure.report(RUN_FAILED),
        },
        Command::Image(command) => image::main(command, place),
        Command::Overlayfs(args) => overlayfs::main(args),
        Command::KataConfig(args) => done(kata_config::run(args)),
        Command::Doctor(args) => doctor::main(args),
        Command::Completions(args) => done(manual::completions(&args, Cli::command())),
        Command::Man(args) => done(manual::man(&args, Cli::command())),
    }
}

fn done(result: Result<(), Failure>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.exit(),
    }
}

/// A path that means the same to a process in another directory.
fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(|e| Failure::new(&format!("use the path {}", path.display()), &e))
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

    #[test]
    fn resident_commands_are_all_known_by_name() {
        let tree = ResidentCli::command();
        let names: Vec<&str> = tree.get_subcommands().map(clap::Command::get_name).collect();
        assert_eq!(names, Resident::NAMES);
    }

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
