//! The documents of a converted image, as nydus-snapshotter's `pkg/converter` writes and reads them.
//!
//! Pure but for the bootstrap layer, which is a file. Fields of the original that nobody here knows are kept.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{ConvertError, ConvertedLayerSummary};
use crate::config::FsVersion;
use crate::rafs::reference::Unindexed;
use crate::source::{Descriptor, Digest, MediaType, Platform, SourceImage, sha256_of};

/// Media type of a blob of RAFS.
pub(crate) const BLOB_TYPE: &str = "application/vnd.oci.image.layer.nydus.blob.v1";
pub(crate) const BLOB: &str = "containerd.io/snapshot/nydus-blob";
pub(crate) const BOOTSTRAP: &str = "containerd.io/snapshot/nydus-bootstrap";
const FS_VERSION: &str = "containerd.io/snapshot/nydus-fs-version";
/// The layer a blob was made of.
pub(crate) const SOURCE_DIGEST: &str = "containerd.io/snapshot/nydus-source-digest";
/// The original layer that an index is of; the registry has to have it too.
pub(crate) const REFERENCE: &str = "containerd.io/snapshot/nydus-ref";
/// Where in its layer the bootstrap is.
const BOOTSTRAP_NAME: &str = "image/image.boot";

/// A layer of the converted image that is a blob.
#[derive(Debug)]
pub(super) struct BlobLayer {
    pub(super) descriptor: Descriptor,
    pub(super) source: Descriptor,
    /// Whether it is an index only, and the source has the data.
    pub(super) is_index: bool,
    pub(super) unindexed: Option<Unindexed>,
    pub(super) reused: bool,
}

impl BlobLayer {
    /// What was made of `source`: a blob, or an index.
    pub(super) fn new(
        source: &Descriptor,
        id: &str,
        bytes: u64,
        is_index: bool,
    ) -> Result<Self, ConvertError> {
        let mut descriptor = blob_descriptor(id, bytes)?;
        let mut annotations = descriptor.annotations().clone().unwrap_or_default();
        annotations.insert(SOURCE_DIGEST.to_owned(), source.digest().to_string());
        if is_index {
            annotations.insert(REFERENCE.to_owned(), source.digest().to_string());
        }
        descriptor.set_annotations(Some(annotations));
        Ok(Self {
            descriptor,
            source: source.clone(),
            is_index,
            unindexed: None,
            reused: false,
        })
    }

    /// What the bootstrap calls the data.
    pub(super) fn data_id(&self) -> &str {
        let data = if self.is_index {
            &self.source
        } else {
            &self.descriptor
        };
        data.digest().digest()
    }

    pub(super) fn summary(&self) -> ConvertedLayerSummary {
        ConvertedLayerSummary {
            source_digest: self.source.digest().to_string(),
            source_bytes: self.source.size(),
            blob_digest: self.descriptor.digest().to_string(),
            blob_bytes: self.descriptor.size(),
            is_index: self.is_index,
            unindexed: self.unindexed,
            reused: self.reused,
        }
    }
}

/// A blob as a layer.
pub(crate) fn blob_descriptor(id: &str, bytes: u64) -> Result<Descriptor, ConvertError> {
    let digest = Digest::from_str(&format!("sha256:{id}")).map_err(ConvertError::document)?;
    let mut descriptor = Descriptor::new(MediaType::Other(BLOB_TYPE.to_owned()), bytes, digest);
    descriptor.set_annotations(Some(HashMap::from([(BLOB.to_owned(), "true".to_owned())])));
    Ok(descriptor)
}

/// Looks for what can't become a blob.
pub(super) fn refuse_unconvertible(image: &SourceImage) -> Result<(), ConvertError> {
    for layer in image.layers() {
        let annotated = |name: &str| {
            layer
                .annotations()
                .as_ref()
                .is_some_and(|all| all.contains_key(name))
        };
        let media_type = layer.media_type().to_string();
        if annotated(BLOB) || annotated(BOOTSTRAP) || media_type == BLOB_TYPE {
            return Err(ConvertError::AlreadyNydus);
        }
        // OCI's and Docker's, those that may not be distributed among them; compressed or not is seen later.
        let is_archive = media_type.starts_with("application/vnd.oci.image.layer.")
            || media_type.starts_with("application/vnd.docker.image.rootfs.");
        if !is_archive || media_type.ends_with("+encrypted") {
            return Err(ConvertError::LayerType {
                digest: layer.digest().to_string(),
                media_type: layer.media_type().clone(),
            });
        }
    }
    Ok(())
}

/// The bootstrap's layer.
#[derive(Debug)]
pub(crate) struct BootstrapLayer {
    pub(crate) path: PathBuf,
    pub(crate) descriptor: Descriptor,
}

/// Packs `bootstrap` into a layer in `work`; the layer and its diff id. The same bootstrap gives the same layer.
pub(crate) fn bootstrap_layer(
    bootstrap: &Path,
    version: FsVersion,
    work: &Path,
) -> Result<(BootstrapLayer, String), ConvertError> {
    let path = work.join("bootstrap.tar.gz");
    let failed = |source| ConvertError::work(&path, source);
    let file = File::create(&path).map_err(failed)?;
    let gzip = GzEncoder::new(Hashing::new(file), Compression::default());
    let mut tar = tar::Builder::new(Hashing::new(gzip));
    let pack = |tar: &mut tar::Builder<_>| -> io::Result<()> {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(0o755);
        header.set_size(0);
        tar.append_data(&mut header, "image/", io::empty())?;
        let mut file = File::open(bootstrap)?;
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o444);
        header.set_size(file.metadata()?.len());
        tar.append_data(&mut header, BOOTSTRAP_NAME, &mut file)
    };
    pack(&mut tar).map_err(failed)?;
    let (gzip, diff_id) = tar.into_inner().map_err(failed)?.finish();
    let (_, digest) = gzip.finish().map_err(failed)?.finish();
    let bytes = std::fs::metadata(&path).map_err(failed)?.len();
    let digest = Digest::from_str(&digest).map_err(ConvertError::document)?;
    let mut descriptor = Descriptor::new(MediaType::ImageLayerGzip, bytes, digest);
    descriptor.set_annotations(Some(HashMap::from([
        (BOOTSTRAP.to_owned(), "true".to_owned()),
        (FS_VERSION.to_owned(), version.to_string()),
    ])));
    Ok((BootstrapLayer { path, descriptor }, diff_id))
}

/// The documents.
#[derive(Debug)]
pub(crate) struct Written {
    pub(crate) config: Descriptor,
    pub(crate) config_bytes: Vec<u8>,
    pub(crate) manifest_bytes: Vec<u8>,
}

impl Written {
    /// `extra` are blobs of a dictionary, `diff_id` is the bootstrap layer's.
    pub(super) fn new(
        image: &SourceImage,
        blobs: &[BlobLayer],
        extra: &[Descriptor],
        bootstrap: &Descriptor,
        diff_id: &str,
    ) -> Result<Self, ConvertError> {
        let layers: Vec<_> = blobs.iter().map(|blob| &blob.descriptor).chain(extra).collect();
        // A blob is what it is, compressed in itself: its diff id is its digest.
        let diff_ids = layers.iter().map(|layer| layer.digest().to_string());
        let diff_ids: Vec<_> = diff_ids.chain([diff_id.to_owned()]).collect();

        let mut config: Value =
            serde_json::from_slice(&image.config_bytes).map_err(ConvertError::document)?;
        config["rootfs"] = json!({"type": "layers", "diff_ids": diff_ids});
        let added = json!({"created_by": "nydusbox image convert", "comment": "Nydus Bootstrap Layer"});
        let mut history = config["history"].as_array().cloned().unwrap_or_default();
        // One record for each layer, where there are any: readers count them.
        if !history.is_empty() {
            let more =
                json!({"created_by": "nydusbox image convert", "comment": "blob of a chunk dictionary"});
            history.extend(extra.iter().map(|_| more.clone()));
        }
        history.push(added);
        config["history"] = Value::Array(history);
        let layers: Vec<_> = layers.into_iter().chain([bootstrap]).collect();
        Self::of(image, &config, &layers)
    }

    /// The documents of an image in nydus' form that got a blob before its last layer, and another bootstrap as that.
    pub(crate) fn with_front(
        image: &SourceImage,
        front: &Descriptor,
        bootstrap: &Descriptor,
        diff_id: &str,
    ) -> Result<Self, ConvertError> {
        let blobs = &image.layers()[..image.layers().len().saturating_sub(1)];
        let layers: Vec<_> = blobs.iter().chain([front, bootstrap]).collect();
        let mut config: Value =
            serde_json::from_slice(&image.config_bytes).map_err(ConvertError::document)?;
        let kept = image.config.rootfs().diff_ids().iter().take(blobs.len());
        let diff_ids = kept
            .cloned()
            .chain([front.digest().to_string(), diff_id.to_owned()]);
        config["rootfs"] = json!({"type": "layers", "diff_ids": diff_ids.collect::<Vec<_>>()});
        if let Some(history) = config["history"].as_array_mut() {
            let last = history.len().saturating_sub(1);
            let added = json!({"created_by": "nydusbox image optimize", "comment": "what a start-up reads"});
            history.insert(last, added);
        }
        Self::of(image, &config, &layers)
    }

    /// The documents of an image that was built in nydus' form: there is no original to take anything from.
    pub(crate) fn of_built(
        platform: &Platform,
        blobs: &[Descriptor],
        bootstrap: &Descriptor,
        diff_id: &str,
    ) -> Result<Self, ConvertError> {
        let diff_ids = blobs.iter().map(|blob| blob.digest().to_string());
        let diff_ids: Vec<_> = diff_ids.chain([diff_id.to_owned()]).collect();
        let mut config = json!({
            "os": platform.os, "architecture": platform.architecture, "config": {},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        if let Some(variant) = &platform.variant {
            config["variant"] = json!(variant);
        }
        let layers: Vec<_> = blobs.iter().chain([bootstrap]).collect();
        Self::with(None, &config, &layers)
    }

    fn of(image: &SourceImage, config: &Value, layers: &[&Descriptor]) -> Result<Self, ConvertError> {
        Self::with(image.manifest.annotations().as_ref(), config, layers)
    }

    fn with(
        annotations: Option<&HashMap<String, String>>,
        config: &Value,
        layers: &[&Descriptor],
    ) -> Result<Self, ConvertError> {
        let config_bytes = serde_json::to_vec(config).map_err(ConvertError::document)?;
        let config = Descriptor::new(
            MediaType::ImageConfig,
            config_bytes.len() as u64,
            sha256_of(&config_bytes),
        );
        let mut manifest = json!({
            "schemaVersion": 2,
            "mediaType": MediaType::ImageManifest.to_string(),
            "config": &config,
            "layers": layers,
        });
        if let Some(annotations) = annotations {
            manifest["annotations"] = json!(annotations);
        }
        let manifest_bytes = serde_json::to_vec(&manifest).map_err(ConvertError::document)?;
        Ok(Self {
            config,
            config_bytes,
            manifest_bytes,
        })
    }
}

/// Hashes what passes.
struct Hashing<W> {
    inner: W,
    hash: Sha256,
}

impl<W: Write> Hashing<W> {
    fn new(inner: W) -> Self {
        Self {
            inner,
            hash: Sha256::new(),
        }
    }

    fn finish(self) -> (W, String) {
        (self.inner, format!("sha256:{:x}", self.hash.finalize()))
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(buf)?;
        self.hash.update(&buf[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
