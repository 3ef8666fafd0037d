//! `nydusbox image convert`: an OCI image in, an image in nydus' form out.

use std::path::PathBuf;

use clap::Args;
use indicatif::DecimalBytes;
use nydusbox_image::source::{ImageRef, Platform, open_sink, open_source};
use nydusbox_image::{ConvertConfig, ConvertError, ConvertSummary, Mode, convert};

use super::bar::{Bar, cancelled_by_signals};
use super::copy::transferred;
use super::format::FormatArgs;
use super::percent;
use crate::commands::output::OutputArgs;
use crate::commands::registry::RegistryArgs;
use crate::error::{Failure, INTERRUPTED};

#[derive(Debug, Args)]
pub(crate) struct ConvertArgs {
    /// Image: docker://HOST/REPOSITORY[:TAG], oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:NAME:TAG] or dir:DIR
    source: ImageRef,
    /// Where to write it: docker://HOST/REPOSITORY[:TAG] or oci:DIR[:TAG]. Layers that were converted for what is there
    /// are not converted again, and blobs that are there not sent
    destination: ImageRef,
    /// Which of several images: OS/ARCH[/VARIANT]; this machine's unless given
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,
    /// Where the data is: native makes blobs of the layers; ref leaves it in the layers, which have to stay where
    /// the image is, and writes an index of each (gzip only; other layers become blobs)
    #[arg(long, value_name = "MODE", default_value = "native")]
    mode: Mode,
    #[command(flatten)]
    format: FormatArgs,
    /// Bootstrap of an image whose chunks need not be stored again; its blobs have to be at the destination
    #[arg(long, value_name = "FILE")]
    chunk_dict: Option<PathBuf>,
    /// Directory for blobs that are being made; the system's temporary directory unless given
    #[arg(long, value_name = "DIR")]
    work_dir: Option<PathBuf>,
    #[command(flatten)]
    registry: RegistryArgs,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) fn run(args: &ConvertArgs) -> Result<(), Failure> {
    let what = format!("convert {}", args.source);
    let config = ConvertConfig::new(args.platform.clone().unwrap_or_default())
        .mode(args.mode)
        .format(args.format.format()?)
        .chunk_dict(args.chunk_dict.clone())
        .work_dir(args.work_dir.clone());
    let cancelled = cancelled_by_signals()?;
    let access = args.registry.access_between(&args.source, &cancelled);
    let source = open_source(&args.source, &access).map_err(|e| Failure::new(&what, &e))?;
    let sink = open_sink(&args.destination, &access).map_err(|e| Failure::new(&what, &e))?;
    // What can't be read as an image is no image to use anything of.
    let previous = open_source(&args.destination, &access).ok();
    let bar = Bar::new(cancelled);
    let result = convert(&*source, &*sink, previous.as_deref(), &config, &bar);
    bar.clear();
    let summary = result.map_err(|e| match e {
        ConvertError::Cancelled => Failure::new(&what, &e).code(INTERRUPTED),
        _ => Failure::new(&what, &e),
    })?;
    args.output.print(&summary, || {
        closing_lines(&args.destination.to_string(), &summary)
    })
}

fn closing_lines(destination: &str, s: &ConvertSummary) -> String {
    let unindexed = s.layers.iter().filter_map(|layer| {
        let why = layer.unindexed?;
        Some(format!("layer {} became a blob: {why}\n", layer.source_digest))
    });
    unindexed.chain([closing_line(destination, s)]).collect()
}

fn closing_line(destination: &str, s: &ConvertSummary) -> String {
    let reused = s.layers.iter().filter(|layer| layer.reused).count();
    let source = s.layers.iter().map(|layer| layer.source_bytes).sum();
    let blobs: u64 = s.layers.iter().map(|layer| layer.blob_bytes).sum();
    let kept = match s.layers.iter().filter(|layer| layer.is_index).count() {
        0 => String::new(),
        count => format!(", {count} kept as they are"),
    };
    format!(
        "{destination}: {} layers{kept}, {reused} of them converted before; {} in {} and a bootstrap of {} ({:.0} %); {}; {}",
        s.layers.len(),
        DecimalBytes(source),
        DecimalBytes(blobs),
        DecimalBytes(s.bootstrap_bytes),
        percent(blobs + s.bootstrap_bytes, source),
        transferred(&s.transfer),
        s.digest,
    )
}
