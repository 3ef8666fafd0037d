//! Builds an image directory from archives: the layers of an image, or one that has a root file system.
//!
//! The blobs are those `image convert` makes, each with its layer's own bootstrap in it. Read `layer_pool.rs` for
//! how they are made and `merge.rs` for what becomes of them.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::PathBuf;

use crate::config::{BuildConfig, Source};
use crate::error::{BuildError, is_out_of_space, out_of_space_below};
use crate::layer_pool::{FailedLayer, LayerSource, blob_path, convert_layers};
use crate::layers::{LayerError, Names, bootstrap_error};
use crate::merge::{MergeError, MergeLayer, merge};
use crate::progress::Progress;
use crate::rafs::bootstrap::BootstrapPlan;
use crate::rafs::chunks::Dictionary;
use crate::rafs::tail::BlobFormat;
use crate::rafs::with_nydus;
use crate::staging::Staging;

/// Builds into the staging directory's working directory.
pub(super) fn run(
    config: &BuildConfig,
    archives: &[PathBuf],
    staging: &Staging,
    progress: &dyn Progress,
) -> Result<(), BuildError> {
    let format = BlobFormat::from(config.format);
    let sources: Vec<_> = archives
        .iter()
        .enumerate()
        .map(|(number, path)| LayerSource {
            number,
            open: Box::new(move || File::open(path).map(|file| Box::new(file) as Box<dyn Read + Send>)),
            names: match config.source {
                Source::Tar(_) => Names::Plain,
                Source::Directory(_) | Source::Layers(_) => Names::OfLayer,
            },
            keep: None,
        })
        .collect();
    let failed = |failed: FailedLayer| layer_error(config, archives, failed);
    let work = staging.path().join("work");
    let dictionary = Dictionary::default();
    let converted =
        convert_layers(&sources, format, &dictionary, &work, &|_, _| true, progress).map_err(failed)?;
    let layers: Vec<_> = converted.into_iter().map(MergeLayer::from).collect();
    let merged = merge(&layers).map_err(|error| {
        let layer = match &error {
            MergeError::Entry { layer, .. } => *layer,
            MergeError::TooManyBlobs => 0,
        };
        failed(FailedLayer {
            layer,
            error: error.into(),
        })
    })?;
    if progress.is_cancelled() {
        return Err(BuildError::Cancelled);
    }
    let plan = BootstrapPlan::of_image(&merged, format);
    with_nydus(|| plan.write(&staging.work_bootstrap())).map_err(|error| {
        failed(FailedLayer {
            layer: 0,
            error: bootstrap_error(error),
        })
    })?;
    // A layer whose files are all hidden, or that has none, adds no blob to the image.
    let used: BTreeSet<_> = merged.blobs.iter().map(|blob| &blob.id).collect();
    for (number, layer) in layers.iter().enumerate() {
        let id = &layer.blobs[0].id;
        if used.contains(id) {
            let to = staging.work_blobs().join(id);
            fs::rename(blob_path(&work, number), &to).map_err(|source| BuildError::output(&to, source))?;
        }
    }
    Ok(())
}

fn layer_error(config: &BuildConfig, archives: &[PathBuf], failed: FailedLayer) -> BuildError {
    match failed.error {
        LayerError::Cancelled => BuildError::Cancelled,
        LayerError::Output { source, .. } if is_out_of_space(&source) => BuildError::OutOfSpace {
            path: config.out_dir.clone(),
        },
        LayerError::Bootstrap { source } if out_of_space_below(&*source) => BuildError::OutOfSpace {
            path: config.out_dir.clone(),
        },
        error => {
            let path = archives.get(failed.layer).cloned().unwrap_or_default();
            match (&config.source, error) {
                (Source::Tar(_), error) => tar_error(path, error),
                (_, source) => BuildError::Layer { path, source },
            }
        }
    }
}

/// The same of an archive that is no layer.
fn tar_error(path: PathBuf, error: LayerError) -> BuildError {
    match error {
        LayerError::Damaged { source } => BuildError::DamagedTar {
            path,
            source: io::Error::new(io::ErrorKind::InvalidData, source),
        },
        LayerError::Unreadable { source } => BuildError::DamagedTar { path, source },
        LayerError::Entry { entry, problem } => BuildError::TarEntry { path, entry, problem },
        source => BuildError::Builder {
            path,
            source: Box::new(source),
        },
    }
}
