//! `nydusbox image inspect`, `check` and `diff`: looking at images in nydus' form, whoever made them.

use std::path::{Path, PathBuf};

use clap::Args;
use indicatif::{DecimalBytes, HumanCount};
use nydusbox_image::source::{ImageRef, Platform, open_source};
use nydusbox_image::{
    Aspect, BLOB_DIR, BOOTSTRAP_FILE, Change, CheckReport, Difference, ImageReport, NydusImage,
};

use super::bar::{Bar, cancelled_by_signals};
use crate::commands::output::{self, OutputArgs};
use crate::commands::registry::RegistryArgs;
use crate::error::{Failure, INTERRUPTED, NO_COMPARISON};

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    #[command(flatten)]
    image: ImageArg,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    image: ImageArg,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
pub(crate) struct DiffArgs {
    /// First image, as `image inspect` takes it
    left: ImageRef,
    /// Second image
    right: ImageRef,
    /// Which of several images, of both: OS/ARCH[/VARIANT]; this machine's unless given
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,
    #[command(flatten)]
    registry: RegistryArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
struct ImageArg {
    /// Image in nydus' form: docker://HOST/REPOSITORY[:TAG], oci:DIR[:TAG] and the like, the directory `image build` made, or a bootstrap
    image: ImageRef,
    /// Directory with the blobs, where that isn't beside the bootstrap
    #[arg(long, value_name = "DIR")]
    blob_dir: Option<PathBuf>,
    /// Which of several images: OS/ARCH[/VARIANT]; this machine's unless given
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,
    #[command(flatten)]
    registry: RegistryArgs,
}

impl ImageArg {
    fn open(&self) -> Result<NydusImage, Failure> {
        let platform = self.platform.as_ref();
        open(&self.image, self.blob_dir.as_deref(), platform, &self.registry)
    }
}

fn open(
    image: &ImageRef,
    blob_dir: Option<&Path>,
    platform: Option<&Platform>,
    registry: &RegistryArgs,
) -> Result<NydusImage, Failure> {
    let what = format!("read the image {image}");
    let opened = match image {
        ImageRef::RootDir { path } => {
            let (bootstrap, beside) = if path.is_dir() {
                (path.join(BOOTSTRAP_FILE), path.join(BLOB_DIR))
            } else {
                (path.clone(), path.parent().unwrap_or(Path::new("")).to_owned())
            };
            NydusImage::open(&bootstrap, blob_dir.unwrap_or(&beside))
        }
        _ => {
            let source = open_source(image, &registry.access()).map_err(|e| Failure::new(&what, &e))?;
            NydusImage::open_source(source, &platform.cloned().unwrap_or_default())
        }
    };
    opened.map_err(|e| Failure::new(&what, &e))
}

pub(super) fn inspect(args: &InspectArgs) -> Result<(), Failure> {
    let report = args.image.open()?.inspect();
    args.output.print(&report, || inspection(&report))
}

fn inspection(r: &ImageReport) -> String {
    let mut text = format!(
        "RAFS v{}, chunks of {}, bootstrap of {}\n{} files, {} directories, {} symlinks, {} others, {} hard links; \
         {} of data in {} chunks",
        r.fs_version,
        DecimalBytes(r.chunk_bytes),
        DecimalBytes(r.bootstrap_bytes),
        HumanCount(r.regular_files),
        HumanCount(r.directories),
        HumanCount(r.symlinks),
        HumanCount(r.others),
        HumanCount(r.hard_links),
        DecimalBytes(r.data_bytes),
        HumanCount(r.chunks),
    );
    for blob in &r.blobs {
        text.push_str(&format!(
            "\nblob {}: {}, {}; {} chunks, {} of them used",
            blob.id,
            DecimalBytes(blob.compressed_bytes),
            blob.compressor,
            HumanCount(blob.chunks),
            HumanCount(blob.used_chunks),
        ));
        if let Some(index) = &blob.index {
            text.push_str(&format!("; the original layer, with the index {index}"));
        }
    }
    text
}

pub(super) fn check(args: &CheckArgs) -> Result<(), Failure> {
    let image = args.image.open()?;
    let bar = Bar::new(cancelled_by_signals()?);
    let report = image.check(&bar);
    bar.clear();
    if !report.is_complete {
        return Err(Failure::plain("interrupted before everything was checked").code(INTERRUPTED));
    }
    args.output.print(&report, || findings(&report))?;
    if report.problems.is_empty() {
        Ok(())
    } else {
        Err(Failure::plain(format!(
            "{} is damaged: {} problems",
            args.image.image,
            report.problems.len()
        )))
    }
}

fn findings(r: &CheckReport) -> String {
    let problems = r.problems.iter().map(|problem| format!("{problem}\n"));
    let mut text: String = problems.collect();
    text.push_str(&format!("{} chunks are right", HumanCount(r.good_chunks)));
    if r.unchecked_chunks > 0 {
        text.push_str(&format!(
            "; {} are of a form that is not looked into",
            HumanCount(r.unchecked_chunks)
        ));
    }
    text
}

/// As with diff(1), 1 is for images that differ, so that something else is for trouble.
pub(super) fn diff(args: &DiffArgs) -> Result<(), Failure> {
    let image = |image| {
        let opened = open(image, None, args.platform.as_ref(), &args.registry);
        opened.map_err(|failure| failure.code(NO_COMPARISON))
    };
    let differences = image(&args.left)?.diff(&image(&args.right)?);
    if args.output.json {
        args.output.print(&differences, String::new)?;
    } else {
        for difference in &differences {
            output::line(&difference_line(difference))?;
        }
    }
    match differences.len() {
        0 => Ok(()),
        count => Err(Failure::plain(format!("the images differ in {count} paths"))),
    }
}

fn difference_line(difference: &Difference) -> String {
    let path = difference.path.display();
    match difference.change {
        Change::Added => format!("+ {path}"),
        Change::Removed => format!("- {path}"),
        Change::Changed => {
            let aspects: Vec<_> = difference.aspects.iter().map(aspect).collect();
            format!("~ {path}: {}", aspects.join(", "))
        }
    }
}

fn aspect(aspect: &Aspect) -> &'static str {
    match aspect {
        Aspect::Type => "type",
        Aspect::Mode => "mode",
        Aspect::Owner => "owner",
        Aspect::Time => "time",
        Aspect::Xattrs => "xattrs",
        Aspect::Content => "content",
        _ => "other",
    }
}
