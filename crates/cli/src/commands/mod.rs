//! The `nydusbox` command line; each subcommand has its file.

mod doctor;
mod image;
mod run;
mod size;
pub(crate) mod virtiofs;

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::args::{GlobalArgs, VirtiofsArgs};

#[derive(Debug, Parser)]
#[command(
    name = "nydusbox",
    version,
    about = "File systems for microVM sandboxes: shared directories and images fetched as they are read"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve images and directories to a VMM over vhost-user (compatible with `nydusd virtiofs`)
    Virtiofs(DaemonArgs),
    /// Run a command in a microVM on an image that is fetched as it is read
    Run(run::RunArgs),
    /// Make and look at images
    #[command(subcommand)]
    Image(image::ImageCommand),
    /// Say what this machine lacks for running microVMs, and how to mend it
    Doctor(doctor::DoctorArgs),
}

#[derive(Debug, Args)]
struct DaemonArgs {
    #[command(flatten)]
    global: GlobalArgs,
    #[command(flatten)]
    virtiofs: VirtiofsArgs,
}

pub(crate) fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Virtiofs(DaemonArgs { global, virtiofs }) => virtiofs::main(global, virtiofs),
        Command::Run(args) => run::main(args),
        Command::Image(command) => image::main(command),
        Command::Doctor(args) => doctor::main(args),
    }
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
