//! The executable under the name `nydusd`: the daemon with nydusd's command line and nothing else.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::args::{GlobalArgs, VirtiofsArgs};
use crate::commands::virtiofs;

/// In the layout of `nydusd --version`, which others parse.
const VERSION: &str = concat!(
    "Version: \t",
    env!("CARGO_PKG_VERSION"),
    "\nGit Commit: \tunknown\nBuild Time: \tunknown\nProfile: \tunknown\nRustc: \t\tunknown"
);

#[derive(Debug, Parser)]
#[command(name = "nydusd", version = VERSION, about = "Serves RAFS images and shared directories to a microVM")]
struct Cli {
    #[command(flatten)]
    global: GlobalArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve over vhost-user
    Virtiofs(VirtiofsArgs),
}

pub(crate) fn main() -> ExitCode {
    let Cli {
        global,
        command: Command::Virtiofs(args),
    } = Cli::parse();
    virtiofs::main(global, args)
}
