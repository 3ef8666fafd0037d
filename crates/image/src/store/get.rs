//! From a reference to an image that is ready to be served.
//!
//! ```text
//! record that fits -> ready
//! source -> nydus' form?   yes: manifest, configuration, bootstrap; the data stays or is copied
//!                          no:  converted into the store
//!        -> record, last -> ready
//! ```

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FlockOperation, flock};

use super::arriving::{Arriving, keep_for_next_try};
use super::kept::KeptLayers;
use super::known::KnownLayers;
use super::record::{DataRecord, OriginalLayer, Record};
use super::{GetRequest, ImageData, PullPolicy, Store, StoreError, StoredImage, lock};
use crate::bootstrap_layer::{bootstrap_layer, unpack_bootstrap_to};
use crate::config::FsVersion;
use crate::convert::{Mode, convert};
use crate::image_dir::ImageDir;
use crate::nydus_image::{originals_of, refers};
use crate::progress::{Phase, Progress};
use crate::source::{
    Descriptor, Digest, ImageConfiguration, ImageRef, ImageSink, ImageSource, MediaType, SourceError,
    SourceImage, open_source,
};

impl Store {
    /// What `reference` names, ready to be served: its manifest, configuration and bootstrap are here. So is its data,
    /// if it had to be converted or copied; else that stays where it is.
    ///
    /// Who asks for an image that another process is about to fetch or convert waits for it (`progress` is told
    /// [`Phase::Wait`]).
    ///
    /// # Errors
    /// See [`StoreError`]. What was complete by then is used by the next try.
    pub fn get(
        &self,
        reference: &ImageRef,
        request: &GetRequest,
        progress: &dyn Progress,
    ) -> Result<StoredImage, StoreError> {
        self.get_to_end(reference, request, progress).map_err(|error| {
            // Whatever the places make of being stopped.
            if progress.is_cancelled() {
                StoreError::Cancelled
            } else {
                error
            }
        })
    }

    fn get_to_end(
        &self,
        reference: &ImageRef,
        request: &GetRequest,
        progress: &dyn Progress,
    ) -> Result<StoredImage, StoreError> {
        if let ImageRef::RootDir { path } = reference
            && let Some(image) = built_image(reference, path, request)?
        {
            return Ok(image);
        }
        let reference = absolute(reference)?;
        // Until the image is held, so that nobody removes what is about to be used.
        let _adding = self.adding(progress)?;
        let platform = request.platform().to_string();
        let record = self.records.read(&reference.to_string(), &platform)?;
        let known = record.filter(|record| fits(record, request));
        if request.policy == PullPolicy::Never {
            let ready = known.and_then(|record| self.ready(&reference, request, &record));
            return ready.ok_or_else(|| StoreError::NotHere {
                reference: reference.to_string(),
                platform,
            });
        }
        // A place on this disk is asked each time: it costs nothing, and what it has changes under its name.
        if request.policy == PullPolicy::Missing
            && matches!(reference, ImageRef::Docker { .. })
            && let Some(record) = &known
            && let Some(ready) = self.ready(&reference, request, record)
        {
            return Ok(ready);
        }
        let source = open_source(&reference, &request.access)?;
        let image = source.image(request.platform())?;
        if let Some(record) = known.filter(|record| record.source_digest == image.digest)
            && let Some(ready) = self.ready(&reference, request, &record)
        {
            return Ok(ready);
        }
        let turn = self.path.join("locks").join(image.digest.digest());
        let _turn = lock::exclusive(&turn, progress)?;
        let record = match self.made_before(&reference, request, &image)? {
            Some(record) => record,
            None => self.make(&reference, request, &*source, &image, progress)?,
        };
        self.records.write(&record)?;
        self.ready(&reference, request, &record)
            .ok_or_else(|| self.what_is_missing(&reference, &record, platform))
    }

    /// Why an image that was just made is not ready.
    fn what_is_missing(&self, reference: &ImageRef, record: &Record, platform: String) -> StoreError {
        let reference = reference.to_string();
        let image = self.content.image(&record.digest, &record.media_type);
        let (Some(dir), Ok(image)) = (self.blob_dir(record), image) else {
            return StoreError::NotHere { reference, platform };
        };
        let lacks = |digest: &Digest, bytes| !is_in(&dir, digest, bytes);
        let mut blobs = data_layers(&image).into_iter();
        if let Some(blob) = blobs.find(|blob| lacks(blob.digest(), blob.size())) {
            return StoreError::MissingData {
                reference,
                blob: blob.digest().clone(),
                dir,
            };
        }
        let mut originals = record.originals().iter();
        match originals.find(|layer| lacks(&layer.digest, layer.bytes)) {
            Some(layer) => StoreError::MissingOriginal {
                reference,
                layer: layer.digest.clone(),
                place: dir,
            },
            None => StoreError::NotHere { reference, platform },
        }
    }

    /// Where an image's data is, if that is on this host.
    fn blob_dir(&self, record: &Record) -> Option<PathBuf> {
        match &record.data {
            DataRecord::Converted { .. } | DataRecord::Copied { .. } => Some(self.content.data_dir()),
            DataRecord::InPlace { blob_dir, .. } => Some(blob_dir.clone()),
            DataRecord::Remote => None,
        }
    }

    /// The lock for adding. Whoever is alone removes what others have left half-made.
    fn adding(&self, progress: &dyn Progress) -> Result<File, StoreError> {
        let path = self.lock_path();
        if let Some(_alone) = lock::try_exclusive(&path)? {
            self.remove_leftovers()?;
        }
        lock::shared(&path, progress)
    }

    /// The same image that was fetched or converted alike for another name, or by another process meanwhile.
    fn made_before(
        &self,
        reference: &ImageRef,
        request: &GetRequest,
        image: &SourceImage,
    ) -> Result<Option<Record>, StoreError> {
        let is_nydus = bootstrap_layer(image.layers()).is_some();
        for (record, _) in self.records.all()? {
            let same = record.source_digest == image.digest && fits(&record, request);
            // Where the data of an image in nydus' form is, depends on its name.
            let named_alike = record.reference == reference.to_string();
            if same && (!is_nydus || named_alike) {
                let record = record.renamed(reference, request.platform());
                if self.ready(reference, request, &record).is_some() {
                    return Ok(Some(record));
                }
            }
        }
        Ok(None)
    }

    fn make(
        &self,
        reference: &ImageRef,
        request: &GetRequest,
        source: &dyn ImageSource,
        image: &SourceImage,
        progress: &dyn Progress,
    ) -> Result<Record, StoreError> {
        let (made, converted) = match bootstrap_layer(image.layers()) {
            Some(_) => (image.clone(), None),
            None => {
                let (made, data) = self.converted(request, source, image, progress)?;
                (made, Some(data))
            }
        };
        let bootstrap = self.bootstrap_of(&made);
        let layer = bootstrap_layer(made.layers()).cloned();
        let failed = |source| bootstrap_error(&self.path, reference, source);
        let layer = layer.ok_or_else(|| failed(io::Error::other("the image has none")))?;
        let content = match self.content.has(&layer) {
            Ok(true) => self.content.blob(&layer)?,
            _ => source.blob(&layer)?,
        };
        let (version, bytes) = unpack_bootstrap_to(content, &bootstrap).map_err(failed)?;
        let data = match converted {
            Some(data) => data,
            None => {
                let mut originals = match refers(image) {
                    true => originals_of(&bootstrap).map_err(failed)?,
                    false => Vec::new(),
                };
                originals.retain(|layer| !is_one_of(image.layers(), layer.digest()));
                self.keep(reference, (source, image), &originals, progress)?
            }
        };
        Ok(Record::new(
            reference,
            request.platform(),
            image.digest.clone(),
            (made.digest, made.media_type),
            (version, bytes),
            data,
        ))
    }

    /// Converts an image into the store.
    fn converted(
        &self,
        request: &GetRequest,
        source: &dyn ImageSource,
        image: &SourceImage,
        progress: &dyn Progress,
    ) -> Result<(SourceImage, DataRecord), StoreError> {
        let mut config = request.convert.clone();
        if config.format.fs_version != FsVersion::V6 {
            config.mode = Mode::Native;
        }
        config.work_dir.get_or_insert_with(|| self.work());
        let arrived = Arc::default();
        let kept = KeptLayers::new(&self.content, &arrived, &self.layers(), config.format);
        let mut layers = kept.layers()?;
        for (record, _) in self.records.all()? {
            if is_converted(&record, request)
                && let Ok(other) = self.content.image(&record.digest, &record.media_type)
            {
                layers.extend_from_slice(other.layers());
            }
        }
        let known = KnownLayers::new(&self.content, image.clone(), layers);
        let arriving = Arriving::new(source, &self.content, &arrived);
        let source = match config.mode {
            Mode::Native => source,
            Mode::Reference => &arriving,
        };
        let summary = convert(source, &kept, Some(&known), &config, progress).map_err(|error| {
            keep_for_next_try(&arrived, &self.content, StoreError::convert(&self.path, error))
        })?;
        let digest = |text: &str| text.parse().expect("a digest reads as it is written");
        let made = self
            .content
            .image(&digest(&summary.digest), &MediaType::ImageManifest)?;
        kept.forget(made.layers())?;
        let originals = summary.layers.iter().filter(|layer| layer.is_index);
        let originals = originals.map(|layer| OriginalLayer {
            digest: digest(&layer.source_digest),
            bytes: layer.source_bytes,
        });
        // One whose files are all replaced by others need not be here.
        let dir = self.content.data_dir();
        let data = DataRecord::Converted {
            compressor: config.format.compressor,
            chunk_size: config.format.chunk_size,
            originals: originals
                .filter(|layer| is_in(&dir, &layer.digest, layer.bytes))
                .collect(),
        };
        Ok((made, data))
    }

    /// Keeps an image that is in nydus' form: its documents, and its data if that can't be served where it is.
    fn keep(
        &self,
        reference: &ImageRef,
        (source, image): (&dyn ImageSource, &SourceImage),
        originals: &[Descriptor],
        progress: &dyn Progress,
    ) -> Result<DataRecord, StoreError> {
        let failed = |error| StoreError::sink(&self.path, error);
        let layers = || originals.iter().map(OriginalLayer::from).collect();
        let data = match reference {
            ImageRef::Oci { path, .. } => DataRecord::InPlace {
                blob_dir: path.join("blobs/sha256"),
                originals: layers(),
            },
            ImageRef::Dir { path } => DataRecord::InPlace {
                blob_dir: path.clone(),
                originals: layers(),
            },
            // Fetched as it is read.
            ImageRef::Docker { .. } => DataRecord::Remote,
            ImageRef::OciArchive { path, .. }
            | ImageRef::DockerArchive { path, .. }
            | ImageRef::RootDir { path } => {
                let mut blobs = data_layers(image);
                blobs.extend(originals);
                let missing = |error| match error {
                    SourceError::MissingBlob { digest } if is_one_of(originals, &digest) => {
                        StoreError::MissingOriginal {
                            reference: reference.to_string(),
                            layer: digest,
                            place: path.clone(),
                        }
                    }
                    error => error.into(),
                };
                progress.begin(Phase::Data, Some(blobs.iter().map(|blob| blob.size()).sum()));
                let mut done = 0;
                for blob in blobs {
                    if !self.content.has(blob).map_err(failed)? {
                        let mut content = Watched {
                            content: source.blob(blob).map_err(missing)?,
                            progress,
                            position: done,
                        };
                        self.content.take(blob, &mut content).map_err(|error| {
                            if progress.is_cancelled() {
                                StoreError::Cancelled
                            } else {
                                failed(error)
                            }
                        })?;
                    }
                    done += blob.size();
                    progress.position(done);
                }
                DataRecord::Copied { originals: layers() }
            }
        };
        let config = image.manifest.config();
        self.content.put(config, &image.config_bytes).map_err(failed)?;
        self.content
            .put_manifest(&image.manifest_bytes, &image.media_type)
            .map_err(failed)?;
        Ok(data)
    }

    /// The image of a record, held, if all of it is there.
    fn ready(&self, reference: &ImageRef, request: &GetRequest, record: &Record) -> Option<StoredImage> {
        let image = self.content.image(&record.digest, &record.media_type).ok()?;
        let bootstrap = self.bootstrap_of(&image);
        let guard = File::open(&bootstrap).ok()?;
        // Nobody has it alone: who removes has the store's lock for that, and we have it to add.
        flock(&guard, FlockOperation::NonBlockingLockShared).ok()?;
        if guard.metadata().ok()?.len() != record.bootstrap_bytes {
            return None;
        }
        let (blobs, originals) = (data_layers(&image), record.originals());
        let data_bytes = blobs.iter().map(|blob| blob.size()).sum::<u64>()
            + originals.iter().map(|layer| layer.bytes).sum::<u64>();
        let data = match self.blob_dir(record) {
            Some(blob_dir)
                if blobs
                    .iter()
                    .all(|blob| is_in(&blob_dir, blob.digest(), blob.size()))
                    && originals
                        .iter()
                        .all(|layer| is_in(&blob_dir, &layer.digest, layer.bytes)) =>
            {
                ImageData::Local { blob_dir }
            }
            Some(_) => return None,
            None => ImageData::Remote {
                reference: reference.clone(),
            },
        };
        self.records.touch(record);
        Some(StoredImage {
            reference: reference.clone(),
            digest: Some(image.digest.clone()),
            platform: request.platform().clone(),
            id: image.digest.digest().to_owned(),
            config: image.config,
            bootstrap,
            fs_version: record.fs_version,
            data,
            data_bytes,
            _guard: Some(guard),
        })
    }

    fn bootstrap_of(&self, image: &SourceImage) -> PathBuf {
        self.bootstraps().join(image.digest.digest())
    }

    /// Whether an image's data is in the store.
    pub(super) fn has_data(&self, record: &Record) -> bool {
        self.blob_dir(record)
            .is_some_and(|dir| dir == self.content.data_dir())
    }

    /// What a record's image takes here, in bytes, as far as it is there.
    pub(super) fn bytes_here(&self, record: &Record) -> u64 {
        let size = |path: &Path| fs::metadata(path).map_or(0, |meta| meta.len());
        let mut bytes = record.bootstrap_bytes + size(&self.content.path_of(&record.digest));
        if let Ok(image) = self.content.image(&record.digest, &record.media_type) {
            let (layers, originals) = match self.has_data(record) {
                true => (image.layers(), record.originals()),
                false => Default::default(),
            };
            let named = layers
                .iter()
                .chain([image.manifest.config()])
                .map(Descriptor::digest);
            let all = named.chain(originals.iter().map(|layer| &layer.digest));
            bytes += all.map(|digest| size(&self.content.path_of(digest))).sum::<u64>();
        }
        bytes
    }
}

/// Whether what a record has is what is asked for. Where the data is, is only asked for when it has to be converted.
fn fits(record: &Record, request: &GetRequest) -> bool {
    match &record.data {
        DataRecord::Converted { .. } => is_converted(record, request),
        DataRecord::Copied { .. } | DataRecord::InPlace { .. } | DataRecord::Remote => true,
    }
}

/// Whether it was converted to the format that is asked for.
fn is_converted(record: &Record, request: &GetRequest) -> bool {
    let asked = request.convert.format;
    match &record.data {
        DataRecord::Converted {
            compressor,
            chunk_size,
            originals: _,
        } => {
            (*compressor, *chunk_size, record.fs_version)
                == (asked.compressor, asked.chunk_size, asked.fs_version)
        }
        DataRecord::Copied { .. } | DataRecord::InPlace { .. } | DataRecord::Remote => false,
    }
}

/// All layers but the bootstrap's.
fn data_layers(image: &SourceImage) -> Vec<&Descriptor> {
    let bootstrap = bootstrap_layer(image.layers()).map(Descriptor::digest);
    image
        .layers()
        .iter()
        .filter(|layer| Some(layer.digest()) != bootstrap)
        .collect()
}

fn is_one_of(layers: &[Descriptor], digest: &Digest) -> bool {
    layers.iter().any(|layer| layer.digest() == digest)
}

fn is_in(dir: &Path, blob: &Digest, bytes: u64) -> bool {
    let meta = fs::metadata(dir.join(blob.digest()));
    meta.is_ok_and(|meta| meta.is_file() && meta.len() == bytes)
}

/// What `image build` made, served where it is; none if there is a root file system.
fn built_image(
    reference: &ImageRef,
    path: &Path,
    request: &GetRequest,
) -> Result<Option<StoredImage>, StoreError> {
    if !path.join(crate::SUMMARY_FILE).exists() {
        return Ok(None);
    }
    let image = ImageDir::open(path)?;
    let blobs = &image.summary().blobs;
    Ok(Some(StoredImage {
        reference: absolute(reference)?,
        digest: None,
        platform: request.platform().clone(),
        config: ImageConfiguration::default(),
        bootstrap: image.bootstrap(),
        fs_version: image.fs_version(),
        data: ImageData::Local {
            blob_dir: image.blob_dir(),
        },
        data_bytes: blobs.iter().map(|blob| blob.compressed_bytes).sum(),
        id: blobs
            .first()
            .map_or_else(|| "empty".to_owned(), |blob| blob.id.clone()),
        _guard: None,
    }))
}

/// The same place by a name that does not depend on the working directory.
pub(super) fn absolute(reference: &ImageRef) -> Result<ImageRef, StoreError> {
    let mut reference = reference.clone();
    if let Some(path) = reference.path_mut() {
        *path = std::path::absolute(&*path).map_err(|source| StoreError::io(path, source))?;
    }
    Ok(reference)
}

fn bootstrap_error(store: &Path, reference: &ImageRef, source: io::Error) -> StoreError {
    match StoreError::io(store, source) {
        StoreError::Io { source, .. } => StoreError::Bootstrap {
            reference: reference.to_string(),
            source,
        },
        error => error,
    }
}

/// Content on its way, told to a [`Progress`], which may end it.
struct Watched<'a, R> {
    content: R,
    progress: &'a dyn Progress,
    position: u64,
}

impl<R: Read> Read for Watched<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.progress.is_cancelled() {
            return Err(io::Error::other("cancelled"));
        }
        let got = self.content.read(buf)?;
        self.position += got as u64;
        self.progress.position(self.position);
        Ok(got)
    }
}
