//! `nydusbox image`: makes RAFS images, looks at them, and keeps those that were asked for.

pub(super) mod bar;
mod convert;
mod copy;
mod format;
mod look;
mod mount;
mod optimize;
pub(super) mod store;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use indicatif::{DecimalBytes, HumanCount};
use nydusbox_image::{BuildConfig, BuildError, BuildSummary, Source, build};

use self::bar::{Bar, cancelled_by_signals};
use self::format::FormatArgs;
use super::output;
use crate::args::StateDirArg;
use crate::error::{Failure, INTERRUPTED};
use crate::state_dir::StateDir;

#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Build an image from a directory or a tar archive
    Build(BuildArgs),
    /// Convert an OCI image to one that is fetched as it is read
    Convert(convert::ConvertArgs),
    /// Copy an image as it is: into a registry, or out of one
    Copy(copy::CopyArgs),
    /// Have an image here, ready to run
    Pull(store::PullArgs),
    /// List the images that are here
    Ls(store::LsArgs),
    /// Remove images that are here
    Rm(store::RmArgs),
    /// Remove what no image needs any more
    Gc(store::GcArgs),
    /// Mount an image on this host, to look around in
    Mount(mount::MountArgs),
    /// Put what a start-up reads in front, so that it is fetched before it is asked for
    Optimize(optimize::OptimizeArgs),
    /// Show what is in an image in nydus' form
    Inspect(look::InspectArgs),
    /// Verify an image in nydus' form, every chunk by its digest
    Check(look::CheckArgs),
    /// Show in which files two images in nydus' form differ
    Diff(look::DiffArgs),
}

#[derive(Debug, Args)]
pub(crate) struct BuildArgs {
    /// Root file system: a directory, or a tar archive (plain or gzip)
    source: PathBuf,
    /// Where to put the image: image.boot, blobs/ and image.json
    out_dir: PathBuf,
    /// Layer of an OCI image above SOURCE, which is one then too: a tar archive, plain, gzip or zstd, with
    /// whiteouts (may be repeated, each above those before)
    #[arg(long, value_name = "FILE")]
    layer: Vec<PathBuf>,
    #[command(flatten)]
    format: FormatArgs,
    /// Replace an image that is there already
    #[arg(long)]
    force: bool,
}

/// `state_dir` is the one for a command that names one of its own, or none.
pub(crate) fn main(
    command: ImageCommand,
    state_dir: impl FnOnce(&StateDirArg) -> Result<StateDir, Failure>,
) -> ExitCode {
    let done = match command {
        ImageCommand::Build(args) => run(&args),
        ImageCommand::Convert(args) => convert::run(&args),
        ImageCommand::Copy(args) => copy::run(&args),
        ImageCommand::Pull(args) => store::pull(args),
        ImageCommand::Ls(args) => store::ls(args),
        ImageCommand::Rm(args) => state_dir(&args.place).and_then(|dir| store::rm(args, &dir)),
        ImageCommand::Gc(args) => state_dir(&args.place).and_then(|dir| store::gc(args, &dir)),
        ImageCommand::Mount(args) => mount::run(args),
        ImageCommand::Optimize(args) => optimize::run(&args),
        ImageCommand::Inspect(args) => look::inspect(&args),
        ImageCommand::Check(args) => look::check(&args),
        ImageCommand::Diff(args) => look::diff(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.exit(),
    }
}

fn run(args: &BuildArgs) -> Result<(), Failure> {
    let format = args.format.format()?;
    let out = args.out_dir.display().to_string();
    let failed = |e: BuildError| {
        let failure = Failure::new(&format!("build the image {out}"), &e);
        match e {
            BuildError::Cancelled => failure.code(INTERRUPTED),
            _ => failure,
        }
    };
    let source = if args.layer.is_empty() {
        Source::detect(&args.source).map_err(failed)?
    } else {
        Source::Layers(
            std::iter::once(&args.source)
                .chain(&args.layer)
                .cloned()
                .collect(),
        )
    };
    let config = BuildConfig::new(source, &args.out_dir)
        .format(format)
        .force(args.force);
    let bar = Bar::new(cancelled_by_signals()?);
    let result = build(&config, &bar);
    bar.clear();
    output::line(&closing_line(&out, &result.map_err(failed)?)).map(drop)
}

fn closing_line(out: &str, s: &BuildSummary) -> String {
    format!(
        "{out}: {} files, {} directories, {} symlinks, {} others, {} hard links; {} chunks, {} of data in {} ({:.0} %)",
        HumanCount(s.regular_files),
        HumanCount(s.directories),
        HumanCount(s.symlinks),
        HumanCount(s.others),
        HumanCount(s.hard_links),
        HumanCount(s.chunks),
        DecimalBytes(s.uncompressed_bytes),
        DecimalBytes(s.image_bytes()),
        percent(s.image_bytes(), s.uncompressed_bytes),
    )
}

#[expect(clippy::cast_precision_loss, reason = "a percentage for reading")]
pub(super) fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        0.0
    } else {
        part as f64 * 100.0 / whole as f64
    }
}
