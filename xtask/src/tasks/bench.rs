//! Benchmarks, side by side with the genuine peers.
//!
//! This file builds, runs and writes; `report.rs` reads the figures, `judge.rs` says what they must reach,
//! `table.rs` and `plot.rs` show them. How they are measured is in the testkit's `bench`.

mod image;
mod judge;
mod plot;
mod report;
mod supervisor;
mod table;

use std::fs;
use std::path::Path;

use clap::{Args, Subcommand};
use report::Report;

use crate::command::Cmd;
use crate::debian;
use crate::error::TaskError;
use crate::tasks::peers;
use crate::workspace::{Workspace, make_dir};

/// What to measure.
#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    /// The data path: our daemon, nydusd and virtiofsd under the load of one simulated guest
    Data(DataArgs),
    /// Images: conversions beside nydus-image, starts from a registry beside pulling first, prefetch that was learned
    Image(image::ImageArgs),
    /// The supervisor: starts, mounts, stops and memory, with our daemon and nydusd, beside the same by hand
    Supervisor(supervisor::SupervisorArgs),
}

#[derive(Debug, Args)]
pub(crate) struct DataArgs {
    /// Show only that it runs and that every answer is right
    #[arg(long)]
    quick: bool,
    /// How often each load is run on each daemon
    #[arg(long, value_name = "NUMBER")]
    rounds: Option<usize>,
    /// Only rows whose name contains this; nothing is written below docs/
    #[arg(long, value_name = "PART")]
    row: Option<String>,
    /// Only daemons whose name contains this; nothing is written below docs/
    #[arg(long, value_name = "PART")]
    contender: Option<String>,
}

pub(crate) fn run(workspace: &Workspace, bench: &Bench) -> Result<(), TaskError> {
    debian::ensure(&[debian::BUILD])?;
    let peers = peers::ensure(workspace)?;
    Cmd::cargo()
        .words("build --release --locked --package nydusbox-cli --package nydusbox-testkit")
        .dir(workspace.root())
        .shown()?;
    match bench {
        Bench::Data(args) => data(workspace, &peers, args),
        Bench::Image(args) => image::run(workspace, &peers, args),
        Bench::Supervisor(args) => supervisor::run(workspace, &peers, args),
    }
}

fn data(workspace: &Workspace, peers: &Path, args: &DataArgs) -> Result<(), TaskError> {
    let nydusbox = workspace.release_binary();
    let program = |name: &str, path: &Path| format!("{name}={}", path.display());
    let restrict = [("row", &args.row), ("contender", &args.contender)];
    eprintln!("xtask: measuring; this takes minutes, and figures mean most on an idle machine");
    let json = Cmd::new(nydusbox.with_file_name("bench-data"))
        .args(args.quick.then_some("quick"))
        .arg(program("nydusbox", &nydusbox))
        .arg(program("nydusd", &peers.join("nydusd")))
        .arg(program("virtiofsd", &peers.join("virtiofsd")))
        .args(args.rounds.map(|rounds| format!("rounds={rounds}")))
        .args(
            restrict
                .iter()
                .filter_map(|(name, part)| Some(format!("{name}={}", part.as_ref()?))),
        )
        .output()?;
    let report: Report = serde_json::from_str(&json).map_err(TaskError::Figures)?;
    let table = table::markdown(&report);
    print!("{table}");
    if args.quick || restrict.iter().any(|(_, part)| part.is_some()) {
        return Ok(());
    }
    let docs = workspace.root().join("docs/bench");
    make_dir(&docs)?;
    write(&docs.join("data.json"), &json)?;
    write(&docs.join("data.md"), &table)?;
    write(&docs.join("data.svg"), &plot::svg(&report))
}

fn write(path: &Path, text: &str) -> Result<(), TaskError> {
    fs::write(path, text).map_err(|source| TaskError::io("write", path, source))
}
