//! Puts what a start-up reads in front: into a blob of its own, in the order in which it is read, so that a daemon
//! that prefetches has it with a few large requests before anybody asks.
//!
//! ```text
//! trace -> plan (which chunks, in which order) -> front (a new blob) -> bootstrap with a prefetch table
//! ```
//! The other blobs stay as they are and where they are; what was moved is in them still, but nobody is sent there for
//! it. Read `optimize/plan.rs`, then `optimize/front.rs`.

mod error;
mod front;
mod plan;

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nydus_utils::compress;
use serde::Serialize;

pub use error::OptimizeError;

use self::front::Front;
use self::plan::{ChunkKey, Plan, key};
use crate::BOOTSTRAP_FILE;
use crate::chunk_reader::{is_possible, is_readable};
use crate::convert::manifest;
use crate::error::BuildError;
use crate::image_dir::{self, ImageDir};
use crate::layers::bootstrap_error;
use crate::merge::{MergeLayer, merge};
use crate::nydus_image::NydusImage;
use crate::progress::{Phase, Progress};
use crate::rafs::blob::DIGESTER;
use crate::rafs::bootstrap::BootstrapPlan;
use crate::rafs::load::Loaded;
use crate::rafs::tail::BlobFormat;
use crate::rafs::{prefetch, with_nydus};
use crate::shown_path;
use crate::source::{BlobContent, Descriptor, ImageSink, ImageSource, MediaType, Platform, SourceImage};
use crate::staging::Staging;
use crate::summary::BuildSummary;
use crate::trace::StartupTrace;
use crate::tree::{Action, Chunk, Content, Entry, Inode, Kind, Layer};

/// How an image in a registry or a layout is optimized. See [`optimize`].
#[derive(Debug, Clone)]
pub struct OptimizeConfig {
    platform: Platform,
    work_dir: Option<PathBuf>,
}

impl OptimizeConfig {
    /// The image for `platform`.
    #[must_use]
    pub fn new(platform: Platform) -> Self {
        Self {
            platform,
            work_dir: None,
        }
    }

    /// Sets where the blob is made before it is written; the system's temporary directory if `None`. Twice the room
    /// that is needed for what the start-up reads is needed there.
    #[must_use]
    pub fn work_dir(mut self, dir: Option<PathBuf>) -> Self {
        self.work_dir = dir;
        self
    }
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct OptimizeSummary {
    /// The new blob's id.
    pub front_blob: String,
    /// What the start-up reads, as it is stored in it, in bytes.
    pub front_bytes: u64,
    /// The same in chunks.
    pub front_chunks: u64,
    /// Files in the prefetch table: those that are in front as a whole.
    pub files: u64,
    /// Files of the trace that the image hasn't, or that have no content.
    #[serde(serialize_with = "shown_path::all")]
    pub missing: Vec<PathBuf>,
    /// Whether the trace is of this image, as far as it says of which it is.
    pub is_same_image: bool,
}

/// Optimizes the image in `source`, and writes the result to `sink`. Blobs that are there already aren't written again.
///
/// # Errors
/// See [`OptimizeError`]. Nothing names what was written.
pub fn optimize(
    source: Box<dyn ImageSource>,
    sink: &dyn ImageSink,
    trace: &StartupTrace,
    config: &OptimizeConfig,
    progress: &dyn Progress,
) -> Result<OptimizeSummary, OptimizeError> {
    optimize_to_end(source, sink, trace, config, progress).map_err(|error| {
        // Whatever the places make of being stopped.
        if progress.is_cancelled() {
            OptimizeError::Cancelled
        } else {
            error
        }
    })
}

fn optimize_to_end(
    source: Box<dyn ImageSource>,
    sink: &dyn ImageSink,
    trace: &StartupTrace,
    config: &OptimizeConfig,
    progress: &dyn Progress,
) -> Result<OptimizeSummary, OptimizeError> {
    let described = source.image(&config.platform)?;
    let image = NydusImage::open_image(source, &described)?;
    let parent = config.work_dir.clone().unwrap_or_else(std::env::temp_dir);
    let work = tempfile::Builder::new()
        .prefix("nydusbox-optimize-")
        .tempdir_in(&parent)
        .map_err(|e| OptimizeError::work(&parent, e))?;
    let made = Made::new(
        &image,
        trace,
        work.path(),
        &work.path().join(BOOTSTRAP_FILE),
        progress,
    )?;
    copy_blobs(&image, &described, sink, progress)?;
    let front = manifest::blob_descriptor(&made.summary.front_blob, made.front_file_bytes)
        .map_err(OptimizeError::Document)?;
    sink.put(&front, &made.front_path)?;
    let (bootstrap, diff_id) =
        manifest::bootstrap_layer(&made.bootstrap, image.loaded.fs_version, work.path())
            .map_err(OptimizeError::Document)?;
    sink.put(&bootstrap.descriptor, &bootstrap.path)?;
    let written = manifest::Written::with_front(&described, &front, &bootstrap.descriptor, &diff_id)
        .map_err(OptimizeError::Document)?;
    sink.put(&written.config, &written.config_bytes)?;
    stop_if_asked(progress)?;
    sink.publish(&written.manifest_bytes, &MediaType::ImageManifest)?;
    Ok(made.summary)
}

/// Optimizes the image directory `image`, and makes another one at `out_dir`; with `replace`, where one is already.
///
/// # Errors
/// See [`OptimizeError`]. Nothing is left at `out_dir`, or what was there.
pub fn optimize_dir(
    image: &ImageDir,
    out_dir: &Path,
    replace: bool,
    trace: &StartupTrace,
    progress: &dyn Progress,
) -> Result<OptimizeSummary, OptimizeError> {
    let opened = NydusImage::open(&image.bootstrap(), &image.blob_dir())?;
    let staging = Staging::create(out_dir, replace)?;
    let made = Made::new(
        &opened,
        trace,
        &staging.work_blobs(),
        &staging.work_bootstrap(),
        progress,
    )?;
    let blobs = staging.work_blobs();
    fs::rename(&made.front_path, blobs.join(&made.summary.front_blob))
        .map_err(|e| BuildError::output(&blobs, e))?;
    for blob in made.blobs.iter().filter(|id| **id != made.summary.front_blob) {
        stop_if_asked(progress)?;
        let to = blobs.join(blob);
        fs::copy(image.blob_dir().join(blob), &to).map_err(|e| BuildError::output(&to, e))?;
    }
    let compressor = image.summary().compressor;
    let summary = BuildSummary::of(out_dir, compressor, &staging)?;
    image_dir::fill(&staging, &summary)?;
    stop_if_asked(progress)?;
    staging.publish()?;
    Ok(made.summary)
}

/// What was made, in files.
struct Made {
    front_path: PathBuf,
    front_file_bytes: u64,
    bootstrap: PathBuf,
    /// Ids of all that the bootstrap names.
    blobs: Vec<String>,
    summary: OptimizeSummary,
}

impl Made {
    fn new(
        image: &NydusImage,
        trace: &StartupTrace,
        work: &Path,
        bootstrap: &Path,
        progress: &dyn Progress,
    ) -> Result<Self, OptimizeError> {
        let loaded = &image.loaded;
        if loaded.blobs.iter().any(|blob| blob.digester != DIGESTER) {
            return Err(OptimizeError::Digester);
        }
        if !is_sound(loaded) {
            return Err(OptimizeError::Bootstrap);
        }
        let movable = |chunk: &Chunk| is_readable(&loaded.blobs[chunk.blob as usize], chunk);
        let plan = Plan::new(loaded, trace, movable);
        if plan.chunks.is_empty() {
            return Err(OptimizeError::Nothing);
        }
        let format = format_of(loaded);
        let number = u32::try_from(loaded.blobs.len()).unwrap_or(u32::MAX);
        let front_path = work.join("front");
        let front = Front::write(image, &plan, format, number, &front_path, progress)?;
        progress.begin(Phase::Finish, None);
        let summary = OptimizeSummary {
            front_blob: front.blob.id.clone(),
            front_bytes: front.data_bytes,
            front_chunks: plan.chunks.len() as u64,
            files: plan.files.len() as u64,
            missing: plan.missing,
            is_same_image: trace
                .image
                .as_ref()
                .is_none_or(|of| *of == image.bootstrap_digest),
        };
        let front_file_bytes = front.blob.compressed_bytes;
        let layer = with_front(loaded, front);
        let merged = merge(&[layer]).map_err(|e| OptimizeError::layer(bootstrap, e.into()))?;
        let boot = BootstrapPlan::of_image(&merged, format);
        with_nydus(|| {
            boot.write(bootstrap)?;
            prefetch::add_table(bootstrap, &plan.files)
        })
        .map_err(|e| OptimizeError::layer(bootstrap, bootstrap_error(e)))?;
        Ok(Self {
            front_path,
            front_file_bytes,
            bootstrap: bootstrap.to_owned(),
            blobs: merged.blobs.into_iter().map(|blob| blob.id).collect(),
            summary,
        })
    }
}

/// Whether every chunk is of a blob that there is, and of a size that there can be.
fn is_sound(image: &Loaded) -> bool {
    image.entries.iter().all(|entry| match &entry.action {
        Action::Put(inode) => match &inode.kind {
            Kind::File(content) => content
                .chunks
                .iter()
                .all(|chunk| is_possible(chunk) && (chunk.blob as usize) < image.blobs.len()),
            _ => true,
        },
        Action::Link(_) | Action::Whiteout | Action::Opaque => true,
    })
}

/// The new blob's; its chunks are mostly compressed as those of the first blob are.
fn format_of(image: &Loaded) -> BlobFormat {
    let made = image.blobs.iter().find(|blob| !blob.is_original());
    BlobFormat {
        fs_version: image.fs_version,
        compressor: made.map_or(compress::Algorithm::Zstd, |blob| blob.compressor),
        chunk_size: image.chunk_size,
    }
}

/// The image's files, with the chunks that are in front now.
fn with_front(image: &Loaded, front: Front) -> MergeLayer {
    let entries = image.entries.iter().map(|entry| Entry {
        path: entry.path.clone(),
        action: match &entry.action {
            Action::Put(inode) => Action::Put(moved(inode, &front.chunks)),
            other => other.clone(),
        },
    });
    let layer = Layer {
        entries: entries.collect(),
    };
    let mut blobs = image.blobs.clone();
    for blob in &mut blobs {
        // Of an earlier start-up.
        blob.prefetch_bytes = 0;
    }
    blobs.push(front.blob);
    MergeLayer { layer, blobs }
}

fn moved(inode: &Arc<Inode>, to: &HashMap<ChunkKey, Chunk>) -> Arc<Inode> {
    let Kind::File(content) = &inode.kind else {
        return Arc::clone(inode);
    };
    let chunks = content
        .chunks
        .iter()
        .map(|chunk| to.get(&key(chunk)).unwrap_or(chunk).clone());
    Arc::new(Inode {
        kind: Kind::File(Content {
            size: content.size,
            chunks: chunks.collect(),
        }),
        ..(**inode).clone()
    })
}

/// Sees to it that the image's blobs, and the original layers it refers to, are where it goes.
fn copy_blobs(
    image: &NydusImage,
    described: &SourceImage,
    sink: &dyn ImageSink,
    progress: &dyn Progress,
) -> Result<(), OptimizeError> {
    let layers = described.layers();
    let originals = image.originals().map_err(OptimizeError::place)?;
    for layer in layers[..layers.len().saturating_sub(1)].iter().chain(&originals) {
        stop_if_asked(progress)?;
        sink.put(layer, &LayerOf { image, layer })?;
    }
    Ok(())
}

struct LayerOf<'a> {
    image: &'a NydusImage,
    layer: &'a Descriptor,
}

impl BlobContent for LayerOf<'_> {
    fn open(&self) -> io::Result<Box<dyn Read + Send + '_>> {
        self.image.layer(self.layer)
    }
}

fn stop_if_asked(progress: &dyn Progress) -> Result<(), OptimizeError> {
    if progress.is_cancelled() {
        return Err(OptimizeError::Cancelled);
    }
    Ok(())
}
