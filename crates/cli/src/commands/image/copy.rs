//! `nydusbox image copy`: an image goes from one place to another, with its digest.

use clap::Args;
use indicatif::DecimalBytes;
use nydusbox_image::source::{ImageRef, ImageSource, Platform, open_sink, open_source};
use nydusbox_image::{BuiltSource, CopyError, CopySummary, ImageDir, TransferSummary, copy};

use super::bar::{Bar, cancelled_by_signals};
use crate::commands::output::OutputArgs;
use crate::commands::registry::RegistryArgs;
use crate::error::{Failure, INTERRUPTED};

/// The manifest stays as it is, byte for byte, and so does its digest. Blobs that are at the destination are not sent
/// again. Of an image by reference (--mode ref) the original layers go along. What `image build` made becomes an image
/// with the blobs and the bootstrap as its layers.
#[derive(Debug, Args)]
pub(crate) struct CopyArgs {
    /// Image: docker://HOST/REPOSITORY[:TAG], oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:NAME:TAG],
    /// dir:DIR, or the directory `image build` made
    source: ImageRef,
    /// Where to write it: docker://HOST/REPOSITORY[:TAG] or oci:DIR[:TAG]
    destination: ImageRef,
    /// Which of several images: OS/ARCH[/VARIANT]; this machine's unless given
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,
    #[command(flatten)]
    registry: RegistryArgs,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) fn run(args: &CopyArgs) -> Result<(), Failure> {
    let what = format!("copy {}", args.source);
    let platform = args.platform.clone().unwrap_or_default();
    let cancelled = cancelled_by_signals()?;
    let access = args.registry.access_between(&args.source, &cancelled);
    let source: Box<dyn ImageSource> = match &args.source {
        ImageRef::RootDir { path } => {
            let dir = ImageDir::open(path).map_err(|e| Failure::new(&what, &e))?;
            Box::new(BuiltSource::new(&dir, &platform).map_err(|e| Failure::new(&what, &e))?)
        }
        source => open_source(source, &access).map_err(|e| Failure::new(&what, &e))?,
    };
    let sink = open_sink(&args.destination, &access).map_err(|e| Failure::new(&what, &e))?;
    let bar = Bar::new(cancelled);
    let result = copy(source, &*sink, &platform, &bar);
    bar.clear();
    let summary = result.map_err(|e| match e {
        CopyError::Cancelled => Failure::new(&what, &e).code(INTERRUPTED),
        _ => Failure::new(&what, &e),
    })?;
    args.output
        .print(&summary, || closing_line(&args.destination.to_string(), &summary))
}

fn closing_line(destination: &str, s: &CopySummary) -> String {
    format!(
        "{destination}: {} blobs, {}; {}; {}",
        s.blobs,
        DecimalBytes(s.bytes),
        transferred(&s.transfer),
        s.digest,
    )
}

/// What it took to have the blobs there.
pub(super) fn transferred(t: &TransferSummary) -> String {
    let mounted = match t.mounted_blobs {
        0 => String::new(),
        count => format!(", {count} taken over within the registry"),
    };
    format!(
        "{} blobs written ({}), {} there already{mounted}",
        t.written_blobs,
        DecimalBytes(t.written_bytes),
        t.present_blobs,
    )
}
