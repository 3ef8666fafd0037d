//! An OCI image becomes one that nydus-snapshotter takes: each layer a blob of RAFS, and a bootstrap of all.
//!
//! ```text
//! ImageSource -> layers made before (convert/reuse.rs) | layer_pool -> merge -> bootstrap
//!             -> ImageSink, beside that (transfer.rs): blobs, original layers that are kept, bootstrap layer,
//!                config (convert/manifest.rs); the manifest last
//! ```
//! What is under way is in a temporary directory that goes with the call. Blobs that reached the sink stay there
//! when it fails, for the next try; nothing names them until the manifest does. Read `convert/manifest.rs` next.

mod config;
mod error;
pub(crate) mod manifest;
mod reuse;

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use serde::Serialize;
use tempfile::TempDir;

pub use config::{ConvertConfig, Mode};
pub use error::ConvertError;
pub(crate) use manifest::{BOOTSTRAP, REFERENCE, SOURCE_DIGEST};
pub(crate) use reuse::is_gzip;

use crate::config::FsVersion;
use crate::layer_pool::{LayerSource, blob_path, convert_layers};
use crate::layers::{ConvertedLayer, Names, bootstrap_error};
use crate::merge::{MergeError, MergeLayer, Merged, merge};
use crate::progress::{Phase, Progress};
use crate::rafs::bootstrap::BootstrapPlan;
use crate::rafs::chunks::Dictionary;
use crate::rafs::load::load;
use crate::rafs::reference::{Original, Unindexed};
use crate::rafs::tail::BlobFormat;
use crate::rafs::with_nydus;
use crate::source::{Descriptor, ImageSink, ImageSource, MediaType, SourceImage};
use crate::transfer::{Job, TransferSummary, Transfers};
use error::{layer_error, merge_error};
use manifest::BlobLayer;

/// What a conversion made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ConvertSummary {
    /// Digest of the manifest that was written.
    pub digest: String,
    /// Version of the RAFS format.
    pub fs_version: FsVersion,
    /// The layers, the lowest first.
    pub layers: Vec<ConvertedLayerSummary>,
    /// The bootstrap as a file, in bytes.
    pub bootstrap_bytes: u64,
    /// What it took to have all blobs there: those of the layers, the bootstrap's and the configuration.
    pub transfer: TransferSummary,
}

/// What became of a layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ConvertedLayerSummary {
    /// Digest of the layer that was converted.
    pub source_digest: String,
    /// It as it is stored, in bytes.
    pub source_bytes: u64,
    /// Digest of the blob.
    pub blob_digest: String,
    /// The blob as a file, in bytes.
    pub blob_bytes: u64,
    /// Whether the blob is an index only: the data is in the layer that was converted, which the place has too.
    pub is_index: bool,
    /// Why it is none although it was to be.
    pub unindexed: Option<Unindexed>,
    /// Whether the blob was there from an earlier conversion.
    pub reused: bool,
}

/// Converts the image in `source` and writes the result to `sink`. `previous` is what the sink's place had before,
/// if anything: layers that were converted alike for it are neither converted nor written again.
///
/// # Errors
/// See [`ConvertError`].
pub fn convert(
    source: &dyn ImageSource,
    sink: &dyn ImageSink,
    previous: Option<&dyn ImageSource>,
    config: &ConvertConfig,
    progress: &dyn Progress,
) -> Result<ConvertSummary, ConvertError> {
    convert_to_end(source, sink, previous, config, progress).map_err(|error| {
        // Whatever the places make of being stopped.
        if progress.is_cancelled() {
            ConvertError::Cancelled
        } else {
            error
        }
    })
}

fn convert_to_end(
    source: &dyn ImageSource,
    sink: &dyn ImageSink,
    previous: Option<&dyn ImageSource>,
    config: &ConvertConfig,
    progress: &dyn Progress,
) -> Result<ConvertSummary, ConvertError> {
    if config.mode == Mode::Reference && config.format.fs_version != FsVersion::V6 {
        return Err(ConvertError::ReferenceVersion);
    }
    let image = source.image(&config.platform)?;
    manifest::refuse_unconvertible(&image)?;
    let work = config.make_work_dir()?;
    let format = BlobFormat::from(config.format);
    let known = previous.and_then(|place| reuse::Previous::open(place, config));
    let dictionary = dictionary(config, format)?;
    let mut layers = Layers::new(&image, work.path(), config.mode);
    if let Some(known) = &known {
        layers.reuse(known, format);
    }
    let transfers = Transfers::new(sink);
    let (made, transfer) = transfers.beside(progress, || {
        let merged = loop {
            layers.convert(source, &transfers, format, &dictionary, progress)?;
            progress.begin(Phase::Finish, None);
            if let Some(merged) = layers.merge()? {
                break merged;
            }
        };
        let blobs = layers.finish();
        stop_if_asked(progress)?;
        let bootstrap = work.path().join(crate::BOOTSTRAP_FILE);
        write_bootstrap(&merged, format, &bootstrap)?;
        stop_if_asked(progress)?;
        let extra = dictionary_layers(&merged, &blobs, sink)?;
        if let Some(previous) = previous {
            for blob in blobs.iter().filter(|blob| blob.reused) {
                transfers.add(Job::of(previous, &blob.descriptor));
            }
        }
        for original in originals(&merged, &blobs) {
            transfers.add(Job::of(source, original));
        }
        let (bootstrap_layer, diff_id) =
            manifest::bootstrap_layer(&bootstrap, format.fs_version, work.path())?;
        let bytes = fs::metadata(&bootstrap).map_err(|source| ConvertError::work(&bootstrap, source))?;
        let written = manifest::Written::new(&image, &blobs, &extra, &bootstrap_layer.descriptor, &diff_id)?;
        transfers.add(Job::new(bootstrap_layer.descriptor, bootstrap_layer.path));
        transfers.add(Job::new(written.config, written.config_bytes));
        stop_if_asked(progress)?;
        Ok::<_, ConvertError>((written.manifest_bytes, blobs, bytes.len()))
    })?;
    let (manifest_bytes, blobs, bootstrap_bytes) = made;
    stop_if_asked(progress)?;
    let digest = sink.publish(&manifest_bytes, &MediaType::ImageManifest)?;
    Ok(ConvertSummary {
        digest: digest.to_string(),
        fs_version: format.fs_version,
        layers: blobs.iter().map(BlobLayer::summary).collect(),
        bootstrap_bytes,
        transfer,
    })
}

/// The layers which the image's data stays in: they have to be where the indices are.
fn originals<'b>(merged: &'b Merged, blobs: &'b [BlobLayer]) -> impl Iterator<Item = &'b Descriptor> {
    let used = move |layer: &&BlobLayer| {
        layer.is_index && merged.blobs.iter().any(|blob| blob.id == layer.data_id())
    };
    blobs.iter().filter(used).map(|layer| &layer.source)
}

fn stop_if_asked(progress: &dyn Progress) -> Result<(), ConvertError> {
    if progress.is_cancelled() {
        return Err(ConvertError::Cancelled);
    }
    Ok(())
}

fn write_bootstrap(merged: &Merged, format: BlobFormat, path: &Path) -> Result<(), ConvertError> {
    let plan = BootstrapPlan::of_image(merged, format);
    with_nydus(|| plan.write(path)).map_err(|source| ConvertError::bootstrap(path, bootstrap_error(source)))
}

/// The chunks of the image that is to be deduplicated against.
fn dictionary(config: &ConvertConfig, format: BlobFormat) -> Result<Dictionary, ConvertError> {
    let Some(path) = &config.chunk_dict else {
        return Ok(Dictionary::default());
    };
    let loaded = with_nydus(|| load(path)).map_err(|source| ConvertError::Dictionary {
        path: path.clone(),
        source,
    })?;
    if !loaded.is_of(format) {
        return Err(ConvertError::DictionaryFormat { path: path.clone() });
    }
    Ok(Dictionary::of(loaded))
}

/// Blobs of the dictionary that the image needs, as layers; they have to be where the image goes.
fn dictionary_layers(
    merged: &Merged,
    blobs: &[BlobLayer],
    sink: &dyn ImageSink,
) -> Result<Vec<Descriptor>, ConvertError> {
    let mut extra = Vec::new();
    for blob in &merged.blobs {
        if blobs.iter().any(|layer| layer.data_id() == blob.id) {
            continue;
        }
        let descriptor = manifest::blob_descriptor(&blob.id, blob.compressed_bytes)?;
        if !sink.has(&descriptor)? {
            return Err(ConvertError::DictionaryBlob { id: blob.id.clone() });
        }
        extra.push(descriptor);
    }
    Ok(extra)
}

/// The layers on their way.
struct Layers<'a> {
    image: &'a SourceImage,
    work: &'a Path,
    mode: Mode,
    done: Vec<Option<(MergeLayer, BlobLayer)>>,
}

impl<'a> Layers<'a> {
    fn new(image: &'a SourceImage, work: &'a Path, mode: Mode) -> Self {
        Self {
            image,
            work,
            mode,
            done: image.layers().iter().map(|_| None).collect(),
        }
    }

    /// Takes those that were converted before. One that can't be had is converted again.
    fn reuse(&mut self, known: &reuse::Previous<'_>, format: BlobFormat) {
        for (number, layer) in self.image.layers().iter().enumerate() {
            let path = blob_path(self.work, number);
            match known.layer(layer, format, &path) {
                Ok(found) => self.done[number] = found,
                Err(error) => tracing::debug!(layer = %layer.digest(), %error, "cannot be used again"),
            }
        }
    }

    /// Converts the others, and has each blob written as soon as it is there: what is complete when a later layer fails,
    /// or the process dies, need not be made again.
    fn convert(
        &mut self,
        source: &dyn ImageSource,
        transfers: &Transfers<'_>,
        format: BlobFormat,
        dictionary: &Dictionary,
        progress: &dyn Progress,
    ) -> Result<(), ConvertError> {
        let missing: Vec<_> = (0..self.done.len())
            .filter(|at| self.done[*at].is_none())
            .collect();
        let all = self.image.layers();
        let bytes = missing.iter().map(|at| all[*at].size()).sum();
        progress.begin(Phase::Data, Some(bytes));
        if missing.is_empty() {
            return Ok(());
        }
        let sources: Vec<_> = missing
            .iter()
            .map(|at| LayerSource {
                number: *at,
                open: Box::new(|| source.blob(&all[*at]).map_err(io::Error::other)),
                names: Names::OfLayer,
                keep: self.original(&all[*at]).and_then(Result::ok),
            })
            .collect();
        let take = |number: usize, converted: &ConvertedLayer| {
            let path = blob_path(self.work, number);
            match self.blob_layer(number, converted) {
                Ok(blob) => transfers.add(Job::new(blob.descriptor, path.clone()).removing(path)),
                // Told when all are done.
                Err(_) => true,
            }
        };
        let converted = convert_layers(&sources, format, dictionary, self.work, &take, progress)
            .map_err(|failed| layer_error(failed, self.image, self.work))?;
        for (at, converted) in missing.iter().copied().zip(converted) {
            let layer = self.blob_layer(at, &converted)?;
            self.done[at] = Some((converted.into(), layer));
        }
        Ok(())
    }

    /// What becomes of the layer of this number in the image.
    fn blob_layer(&self, number: usize, converted: &ConvertedLayer) -> Result<BlobLayer, ConvertError> {
        let layer = &self.image.layers()[number];
        let (id, bytes) = converted.blob.made();
        let precluded = self.original(layer).and_then(Result::err);
        Ok(BlobLayer {
            unindexed: converted.unindexed.or(precluded),
            ..BlobLayer::new(layer, &id, bytes, converted.blob.is_original())?
        })
    }

    /// A layer that is to be kept, or why it can't be; none if none is.
    fn original(&self, layer: &Descriptor) -> Option<Result<Original, Unindexed>> {
        (self.mode == Mode::Reference)
            .then(|| Original::new(layer.digest(), layer.size()).ok_or(Unindexed::Digest))
    }

    /// The image. None if layers that were used again have to be converted after all: those that lower layers' links lead
    /// elsewhere, whose order is not known any more.
    fn merge(&mut self) -> Result<Option<Merged>, ConvertError> {
        let layers: Vec<_> = self.done.iter().flatten().map(|(layer, _)| layer).collect();
        let merged = merge(&layers);
        let is_reused = |at: &usize| matches!(self.done.get(*at), Some(Some((_, blob))) if blob.reused);
        let unclear: Vec<_> = match &merged {
            Ok(merged) => merged.through_links.iter().copied().filter(is_reused).collect(),
            Err(MergeError::Entry { layer, .. }) => Some(*layer).into_iter().filter(is_reused).collect(),
            Err(MergeError::TooManyBlobs) => Vec::new(),
        };
        if unclear.is_empty() {
            return merged.map(Some).map_err(|error| merge_error(error, self.image));
        }
        for at in unclear {
            self.done[at] = None;
        }
        Ok(None)
    }

    fn finish(self) -> Vec<BlobLayer> {
        self.done.into_iter().flatten().map(|(_, layer)| layer).collect()
    }
}

/// Copies `content` to `path`.
fn copy_to(content: &mut dyn Read, path: &Path) -> io::Result<()> {
    io::copy(content, &mut File::create(path)?).map(drop)
}

impl ConvertConfig {
    fn make_work_dir(&self) -> Result<TempDir, ConvertError> {
        let parent = self.work_dir.clone().unwrap_or_else(std::env::temp_dir);
        tempfile::Builder::new()
            .prefix("nydusbox-convert-")
            .tempdir_in(&parent)
            .map_err(|source| ConvertError::work(&parent, source))
    }
}
