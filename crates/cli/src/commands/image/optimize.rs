//! `nydusbox image optimize`: an image whose start-up finds what it reads in front.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use indicatif::{DecimalBytes, HumanCount};
use nydusbox_image::source::{ImageRef, Platform, open_sink, open_source};
use nydusbox_image::{
    ImageDir, OptimizeConfig, OptimizeError, OptimizeSummary, StartupTrace, optimize, optimize_dir,
};

use super::bar::{Bar, cancelled_by_signals};
use crate::commands::output::OutputArgs;
use crate::commands::registry::RegistryArgs;
use crate::error::{Failure, INTERRUPTED, say};

#[derive(Debug, Args)]
pub(crate) struct OptimizeArgs {
    /// Image in nydus' form: docker://HOST/REPOSITORY[:TAG], oci:DIR[:TAG] and the like, or the directory `image build`
    /// made
    source: ImageRef,
    /// Where to write it: docker://HOST/REPOSITORY[:TAG] or oci:DIR[:TAG], or a directory if SOURCE is one. Blobs that
    /// are there are not written again
    destination: ImageRef,
    /// What the start-up reads, as `run --record-trace` writes it
    #[arg(long, value_name = "FILE")]
    trace: PathBuf,
    /// Which of several images: OS/ARCH[/VARIANT]; this machine's unless given
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,
    /// Directory for what is under way
    #[arg(long, value_name = "DIR")]
    work_dir: Option<PathBuf>,
    /// Replace an image directory that is there already
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    registry: RegistryArgs,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) fn run(args: &OptimizeArgs) -> Result<(), Failure> {
    let trace = StartupTrace::read(&args.trace).map_err(|e| Failure::new("optimize the image", &e))?;
    let what = format!("optimize the image {}", args.source);
    let failed = |e: &(dyn std::error::Error + 'static)| Failure::new(&what, e);
    let cancelled = cancelled_by_signals()?;
    let bar = Bar::new(Arc::clone(&cancelled));
    let result = match (&args.source, &args.destination) {
        (ImageRef::RootDir { path }, ImageRef::RootDir { path: out }) => {
            let image = ImageDir::open(path).map_err(|e| failed(&e))?;
            optimize_dir(&image, out, args.force, &trace, &bar)
        }
        (ImageRef::RootDir { .. }, _) | (_, ImageRef::RootDir { .. }) => {
            return Err(Failure::plain(
                "an image directory is optimized into an image directory, and any other image into none",
            ));
        }
        (source, destination) => {
            let access = args.registry.access_between(source, &cancelled);
            let source = open_source(source, &access).map_err(|e| failed(&e))?;
            let sink = open_sink(destination, &access).map_err(|e| failed(&e))?;
            let platform = args.platform.clone().unwrap_or_default();
            let config = OptimizeConfig::new(platform).work_dir(args.work_dir.clone());
            optimize(source, &*sink, &trace, &config, &bar)
        }
    };
    bar.clear();
    let summary = result.map_err(|e| {
        let failure = failed(&e);
        match e {
            OptimizeError::Cancelled => failure.code(INTERRUPTED),
            _ => failure,
        }
    })?;
    if !summary.is_same_image {
        say(format_args!(
            "note: {} was recorded of another image",
            args.trace.display()
        ));
    }
    args.output
        .print(&summary, || closing_line(&args.destination.to_string(), &summary))
}

fn closing_line(destination: &str, s: &OptimizeSummary) -> String {
    let missing = match s.missing.len() {
        0 => String::new(),
        count => format!("; {} of the trace are not in the image", HumanCount(count as u64)),
    };
    format!(
        "{destination}: {} chunks, {} of stored data, in front; {} files to be fetched first{missing}",
        HumanCount(s.front_chunks),
        DecimalBytes(s.front_bytes),
        HumanCount(s.files),
    )
}
