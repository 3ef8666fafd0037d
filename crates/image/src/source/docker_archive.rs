//! What `docker save` and `skopeo copy … docker-archive:` write: `manifest.json` with a configuration and
//! the layers' tar archives.
//!
//! Such an archive has no manifest of the registry's kind; one is made here, of what there is: the layers as
//! they lie there, which is how the image is found again by digest.

use std::collections::HashMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use oci_spec::image::{
    Descriptor, Digest, ImageConfiguration, ImageManifestBuilder, MediaType, SCHEMA_VERSION,
};
use serde::Deserialize;

use super::digest::Hasher;
use super::document::{self, Document, verified};
use super::error::DocumentName;
use super::files::Files;
use super::tar_index::TarIndex;
use super::{ImageSource, Platform, SourceError, SourceImage, sha256_of};
use crate::layers::{BLOCK_BYTES, Compression, is_first_block, sniff};

const MANIFEST_FILE: &str = "manifest.json";

/// One image of `manifest.json`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Item {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

#[derive(Debug)]
pub(super) struct DockerArchive {
    place: PathBuf,
    files: TarIndex,
    manifest: Vec<u8>,
    /// Which file each blob of the manifest is.
    names: HashMap<Digest, String>,
}

impl DockerArchive {
    pub(super) fn open(place: &Path, files: TarIndex, name: Option<&str>) -> Result<Self, SourceError> {
        let items = files.document(place, MANIFEST_FILE)?;
        let items = items.ok_or_else(|| SourceError::NotAnImage {
            path: place.to_owned(),
            expected: "an archive of `docker save`",
            missing: MANIFEST_FILE,
        })?;
        let items: Vec<Item> = document::parse(&items, &DocumentName::File(place.join(MANIFEST_FILE)))?;
        let item = choose(place, items, name)?;
        let config = files.document(place, &item.config)?;
        let config = config.ok_or_else(|| missing(place, &item.config))?;
        let config_digest = sha256_of(&config);
        let parsed: ImageConfiguration =
            document::parse(&config, &DocumentName::Config(config_digest.clone()))?;
        let diff_ids = parsed.rootfs().diff_ids();
        if diff_ids.len() != item.layers.len() {
            return Err(SourceError::LayerCount {
                layers: item.layers.len(),
                diff_ids: diff_ids.len(),
            });
        }

        let mut names = HashMap::from([(config_digest.clone(), item.config.clone())]);
        let mut layers = Vec::new();
        for (file, diff_id) in item.layers.iter().zip(diff_ids) {
            let layer = layer(place, &files, file, diff_id)?;
            names.insert(layer.digest().clone(), file.clone());
            layers.push(layer);
        }
        let config = Descriptor::new(MediaType::ImageConfig, config.len() as u64, config_digest);
        let manifest = ImageManifestBuilder::default()
            .schema_version(SCHEMA_VERSION)
            .media_type(MediaType::ImageManifest)
            .config(config)
            .layers(layers)
            .build()
            .expect("every field that a manifest has to have was given");
        let manifest = serde_json::to_vec(&manifest).expect("a manifest has nothing that JSON does not");
        Ok(Self {
            place: place.to_owned(),
            files,
            manifest,
            names,
        })
    }
}

fn choose(place: &Path, items: Vec<Item>, name: Option<&str>) -> Result<Item, SourceError> {
    let tags = |item: &Item| item.repo_tags.clone().unwrap_or_default();
    let all: Vec<_> = items.iter().flat_map(tags).collect();
    let Some(name) = name else {
        return match <[Item; 1]>::try_from(items) {
            Ok([only]) => Ok(only),
            Err(_) => Err(SourceError::Ambiguous {
                path: place.to_owned(),
                found: all,
            }),
        };
    };
    // As docker means it: `debian` is `debian:latest`, and where it would be pulled from doesn't matter.
    let tagged = if name.rsplit('/').next().is_some_and(|last| last.contains(':')) {
        name.to_owned()
    } else {
        format!("{name}:latest")
    };
    let bare = |tag: &str| {
        let tag = tag.strip_prefix("docker.io/").unwrap_or(tag);
        tag.strip_prefix("library/").unwrap_or(tag).to_owned()
    };
    let named = |item: &Item| tags(item).iter().any(|tag| bare(tag) == bare(&tagged));
    items
        .into_iter()
        .find(named)
        .ok_or_else(|| SourceError::NoSuchName {
            path: place.to_owned(),
            name: name.to_owned(),
            found: all,
        })
}

fn missing(place: &Path, name: &str) -> SourceError {
    SourceError::MissingFile {
        path: place.to_owned(),
        name: name.to_owned(),
    }
}

/// A layer's descriptor. A plain archive is known by its `diff_id`, anything else has to be read for it.
fn layer(place: &Path, files: &TarIndex, name: &str, diff_id: &str) -> Result<Descriptor, SourceError> {
    let unreadable = |source: io::Error| SourceError::Unreadable {
        path: place.join(name),
        source,
    };
    let (content, bytes) = files
        .open(name)
        .map_err(unreadable)?
        .ok_or_else(|| missing(place, name))?;
    let (compression, mut content) = sniff(content).map_err(unreadable)?;
    let mut first = Vec::new();
    (&mut content)
        .take(BLOCK_BYTES as u64)
        .read_to_end(&mut first)
        .map_err(unreadable)?;
    let media_type = match compression {
        Compression::None => MediaType::ImageLayer,
        Compression::Gzip => MediaType::ImageLayerGzip,
        Compression::Zstd => MediaType::ImageLayerZstd,
    };
    let block = <&[u8; BLOCK_BYTES]>::try_from(first.as_slice());
    if compression == Compression::None && block.is_ok_and(is_first_block) {
        let digest: Digest = diff_id.parse().map_err(|_| SourceError::Malformed {
            what: DocumentName::File(place.join(name)),
            source: serde::de::Error::custom("its diff_id is not a digest"),
        })?;
        return Ok(Descriptor::new(media_type, bytes, digest));
    }
    let mut hasher = Hasher::sha256();
    hasher.update(&first);
    let mut buf = vec![0; 64 << 10];
    loop {
        let got = content.read(&mut buf).map_err(unreadable)?;
        if got == 0 {
            return Ok(Descriptor::new(media_type, bytes, hasher.finish()));
        }
        hasher.update(&buf[..got]);
    }
}

impl ImageSource for DockerArchive {
    fn image(&self, platform: &Platform) -> Result<SourceImage, SourceError> {
        let root = Document::named(self.manifest.clone(), Some(MediaType::ImageManifest));
        document::resolve(root, platform, &|descriptor| self.blob(descriptor))
    }

    fn blob(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send>, SourceError> {
        let digest = descriptor.digest();
        let missing_blob = || SourceError::MissingBlob {
            digest: digest.clone(),
        };
        let name = self.names.get(digest).ok_or_else(missing_blob)?;
        let opened = self.files.open(name).map_err(|source| SourceError::Unreadable {
            path: self.place.join(name),
            source,
        })?;
        let (content, _) = opened.ok_or_else(missing_blob)?;
        verified(content, descriptor)
    }
}
