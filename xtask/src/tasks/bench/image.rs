//! `cargo xtask bench image`: runs the testkit's benchmark of images and shows its figures.
//!
//! This file provides, runs and writes; `image/judge.rs` says what the figures must reach, `image/table.rs` shows them.

mod judge;
mod table;

use std::path::Path;

use clap::Args;

use super::write;
use crate::command::Cmd;
use crate::debian;
use crate::error::TaskError;
use crate::rootfs;
use crate::tasks::guest;
use crate::workspace::{Workspace, make_dir};
use judge::Report;

#[derive(Debug, Args)]
pub(crate) struct ImageArgs {
    /// Show only that it runs and that every answer is right; nothing is written
    #[arg(long)]
    quick: bool,
    /// How often the image is converted by each
    #[arg(long, value_name = "NUMBER")]
    conversions: Option<usize>,
    /// How often each start is made
    #[arg(long, value_name = "NUMBER")]
    starts: Option<usize>,
    /// Measure only this part; nothing is written
    #[arg(long, value_name = "PART", value_parser = ["convert", "large", "start", "learned"])]
    only: Option<String>,
}

pub(super) fn run(workspace: &Workspace, peers: &Path, args: &ImageArgs) -> Result<(), TaskError> {
    debian::ensure(&[debian::VM, debian::ROOTFS, debian::TESTS])?;
    let guest = guest::ensure(workspace)?;
    let archives = rootfs::ensure_layered(workspace)?;
    let nydusbox = workspace.release_binary();
    let work = workspace.bench();
    make_dir(&work)?;
    let path = |name: &str, path: &Path| format!("{name}={}", path.display());
    let numbers = [("conversions", args.conversions), ("starts", args.starts)];
    eprintln!("xtask: measuring; this takes a quarter of an hour, and figures mean most on an idle machine");
    let json = Cmd::new(nydusbox.with_file_name("bench-image"))
        .args(args.quick.then_some("quick"))
        .arg(path("nydusbox", &nydusbox))
        .arg(path("nydus-image", &peers.join("nydus-image")))
        .arg(path("nydusd", &peers.join("nydusd")))
        .arg(path("guest-root", &guest))
        .arg(path("work-dir", &work))
        .args(archives.iter().map(|archive| path("archive", archive)))
        .args(
            numbers
                .iter()
                .filter_map(|(name, n)| Some(format!("{name}={}", (*n)?))),
        )
        .args(args.only.as_ref().map(|part| format!("only={part}")))
        .output()?;
    let report: Report = serde_json::from_str(&json).map_err(TaskError::Figures)?;
    let table = table::markdown(&report);
    print!("{table}");
    if args.quick || args.only.is_some() {
        return Ok(());
    }
    let docs = workspace.root().join("docs/bench");
    make_dir(&docs)?;
    write(&docs.join("image.json"), &json)?;
    write(&docs.join("image.md"), &table)
}
