//! `cargo xtask TASK`: everything around building that is more than a cargo command.
//!
//! Each task is a file of its own in `tasks/`; what they share is beside this one. Never part of what is
//! shipped.

#![forbid(unsafe_code)]

mod command;
mod debian;
mod error;
mod rootfs;
mod tasks;
mod workspace;

use std::process::ExitCode;

use clap::Parser;

use crate::error::chain;
use crate::tasks::Task;
use crate::workspace::Workspace;

/// Tasks of this repository
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Args {
    #[command(subcommand)]
    task: Task,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match Workspace::find().and_then(|workspace| args.task.run(&workspace)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}
