//! Builds an image: scan, build in a staging directory, read back, put in place.
//!
//! ```text
//! BuildConfig -> scan -> Totals -> build/run.rs | build/layers.rs -> work/{image.boot,blobs}
//!             -> summary.rs reads it back -> staging.rs makes it OUT_DIR in one rename
//! ```
//!
//! Never leaves anything at the output directory but a complete image. Directories are nydus-builder's, which
//! `build/run.rs` watches and `build/rafs.rs` calls; archives are ours, in `build/layers.rs`.

mod layers;
mod rafs;
mod run;

use std::path::Path;

use crate::config::{BuildConfig, Source};
use crate::error::BuildError;
use crate::image_dir;
use crate::progress::{Phase, Progress};
use crate::scan;
use crate::staging::Staging;
use crate::summary::BuildSummary;

/// Builds an image as `config` says, and tells `progress` about it.
///
/// The output directory appears at the very end, complete and synced to disk; its parent must exist. Until
/// then everything is in a hidden directory beside it, which goes when the build fails or is cancelled, and
/// which the next build to the same place clears away should this process be killed.
///
/// File owners, modes, modification times, extended attributes, hard links and devices are kept. The root's own
/// modification time is not kept from a directory, so that building twice gives the same image. Names that begin
/// with `.wh.` are ordinary names, except in layers.
///
/// # Errors
/// See [`BuildError`].
pub fn build(config: &BuildConfig, progress: &dyn Progress) -> Result<BuildSummary, BuildError> {
    let source_path = config.source.path();
    let staging = Staging::create(&config.out_dir, config.replace)?;
    if let Source::Directory(dir) = &config.source {
        refuse_output_inside(dir, &config.out_dir, &staging)?;
    }

    progress.begin(Phase::Scan, None);
    let totals = scan::scan(config, progress)?;
    tracing::debug!(source = %source_path.display(), totals.entries, totals.bytes, "scanned");

    progress.begin(Phase::Data, Some(totals.bytes));
    run::run(config, &staging, totals, progress)?;

    progress.begin(Phase::Finish, None);
    let summary = BuildSummary::of(source_path, config.format.compressor, &staging)?;
    image_dir::fill(&staging, &summary)?;
    if progress.is_cancelled() {
        return Err(BuildError::Cancelled);
    }
    staging.publish()?;
    tracing::debug!(image = %config.out_dir.display(), summary.chunks, summary.compressed_bytes, "built");
    Ok(summary)
}

/// The image, and before it the staging directory, would end up in itself.
fn refuse_output_inside(dir: &Path, out_dir: &Path, staging: &Staging) -> Result<(), BuildError> {
    let source_dir = dir.canonicalize().map_err(|source| BuildError::Unreadable {
        path: dir.to_owned(),
        source,
    })?;
    if staging.path().starts_with(&source_dir) {
        return Err(BuildError::OutputInsideSource {
            path: out_dir.to_owned(),
            source_dir,
        });
    }
    Ok(())
}
