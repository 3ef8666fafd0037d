//! `nydusbox image`: makes RAFS images.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use clap::{Args, Subcommand};
use indicatif::{DecimalBytes, HumanCount, ProgressBar, ProgressStyle};
use nydusbox_image::{
    BuildConfig, BuildSummary, ChunkSize, Compressor, FsVersion, Phase, Progress, Source, build,
};

use super::size::Size;
use crate::error::{FAILED, Failure};

#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Build an image from a directory or a tar archive
    Build(BuildArgs),
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
    /// Version of the RAFS format: 5 or 6
    #[arg(long, value_name = "VERSION", default_value = "6")]
    fs_version: FsVersion,
    /// How chunks are compressed: zstd, lz4_block or none
    #[arg(long, value_name = "NAME", default_value = "zstd")]
    compressor: Compressor,
    /// Size of a chunk, a power of two from 4K to 16M; what is read is fetched in chunks
    #[arg(long, value_name = "SIZE", default_value = "1M")]
    chunk_size: Size,
    /// Replace an image that is there already
    #[arg(long)]
    force: bool,
}

pub(crate) fn main(command: ImageCommand) -> ExitCode {
    let ImageCommand::Build(args) = command;
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(FAILED),
    }
}

fn run(args: &BuildArgs) -> Result<(), Failure> {
    let chunk_size =
        ChunkSize::new(args.chunk_size.bytes()).map_err(|e| Failure::new("use this --chunk-size", &e))?;
    let out = args.out_dir.display().to_string();
    let failed = |e: nydusbox_image::BuildError| Failure::new(&format!("build the image {out}"), &e);
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
        .fs_version(args.fs_version)
        .compressor(args.compressor)
        .chunk_size(chunk_size)
        .force(args.force);
    let bar = Bar::new(cancelled_by_signals()?);
    let result = build(&config, &bar);
    bar.clear();
    println!("{}", closing_line(&out, &result.map_err(failed)?));
    Ok(())
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
fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        0.0
    } else {
        part as f64 * 100.0 / whole as f64
    }
}

/// A flag that Ctrl-C and SIGTERM set, so that a build ends in order and leaves nothing behind.
fn cancelled_by_signals() -> Result<Arc<AtomicBool>, Failure> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&flag))
            .map_err(|e| Failure::new("watch for signals", &e))?;
    }
    Ok(flag)
}

/// A progress bar on stderr; invisible when that is not a terminal.
struct Bar {
    bar: OnceLock<ProgressBar>,
    cancelled: Arc<AtomicBool>,
}

impl Bar {
    fn new(cancelled: Arc<AtomicBool>) -> Self {
        Self {
            bar: OnceLock::new(),
            cancelled,
        }
    }

    fn bar(&self) -> &ProgressBar {
        self.bar.get_or_init(ProgressBar::no_length)
    }

    fn clear(&self) {
        self.bar().finish_and_clear();
    }
}

impl Progress for Bar {
    fn begin(&self, phase: Phase, total: Option<u64>) {
        let (word, template) = match phase {
            Phase::Scan => ("scanning", "{msg} {human_pos} entries"),
            Phase::Data => (
                "building",
                "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
            ),
            _ => ("finishing", "{msg} {spinner}"),
        };
        let bar = self.bar();
        // The templates are constants; one that did not parse would leave the default look.
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(word);
        bar.set_position(0);
        if let Some(total) = total {
            bar.set_length(total);
        }
    }

    fn position(&self, position: u64) {
        self.bar().set_position(position);
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}
