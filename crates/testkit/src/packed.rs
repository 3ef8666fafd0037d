//! Images whose chunks cannot be taken out of their blobs one by one.
//!
//! nydus-image 2.2.0 does not make batches; nydus-builder, which reads the same format, does.

use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use nydus_api::ConfigV2;
use nydus_builder::attributes::Attributes;
use nydus_builder::{
    ArtifactStorage, BlobManager, BootstrapManager, BuildContext, Builder, ConversionType, DirectoryBuilder,
    Features, Prefetch, PrefetchPolicy, WhiteoutSpec,
};
use nydus_rafs::metadata::RafsVersion;
use nydus_storage::device::BlobFeatures;
use nydus_storage::meta::BatchContextGenerator;
use nydus_utils::{compress, digest};
use sha2::{Digest, Sha256};

use crate::image::{Image, run};

/// How chunks are packed. All are RAFS v6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// Chunks of small files are compressed together.
    Batch,
    /// The blob is a gzipped tar archive with an index.
    Zran,
}

/// A batch, in bytes of content.
const BATCH: u32 = 256 << 10;
const CHUNK: u32 = 1 << 20;

/// Builds an image of `source` in `out` (which is created).
///
/// # Errors
/// [`io::ErrorKind::Other`] with what the builder said if it failed.
pub fn build(nydus_image: &Path, source: &Path, out: &Path, packing: Packing) -> io::Result<Image> {
    let image = Image {
        bootstrap: out.join("bootstrap"),
        blobs: out.join("blobs"),
    };
    fs::create_dir_all(&image.blobs)?;
    match packing {
        Packing::Batch => batch(source, &image),
        Packing::Zran => zran(nydus_image, source, out, &image),
    }?;
    Ok(image)
}

fn batch(source: &Path, image: &Image) -> io::Result<()> {
    let prefetch = Prefetch::new(PrefetchPolicy::None).map_err(io::Error::other)?;
    let mut context = BuildContext::new(
        String::new(),
        true,
        0,
        compress::Algorithm::Zstd,
        digest::Algorithm::Blake3,
        true,
        WhiteoutSpec::None,
        ConversionType::DirectoryToRafs,
        source.to_owned(),
        prefetch,
        Some(ArtifactStorage::FileDir((image.blobs.clone(), String::new()))),
        None,
        false,
        Features::new(),
        false,
        Attributes::default(),
    );
    context.set_fs_version(RafsVersion::V6);
    context.set_chunk_size(CHUNK);
    context.set_batch_size(BATCH);
    let generator = BatchContextGenerator::new(BATCH)?;
    context.blob_batch_generator = Some(Mutex::new(generator));
    context.blob_features |= BlobFeatures::BATCH | BlobFeatures::CHUNK_INFO_V2;
    let config = ConfigV2::default();
    config.internal.set_blob_accessible(true);
    context.set_configuration(Arc::new(config));
    let bootstrap = ArtifactStorage::SingleFile(image.bootstrap.clone());
    let mut bootstraps = BootstrapManager::new(Some(bootstrap), None);
    let mut blobs = BlobManager::new(digest::Algorithm::Blake3, false);
    DirectoryBuilder::new()
        .build(&mut context, &mut bootstraps, &mut blobs)
        .map_err(io::Error::other)?;
    Ok(())
}

fn zran(nydus_image: &Path, source: &Path, out: &Path, image: &Image) -> io::Result<()> {
    let archive = out.join("layer.tar.gz");
    run(Command::new("tar")
        .args(["--sort=name", "-czf"])
        .arg(&archive)
        .arg("-C")
        .arg(source)
        .arg("."))?;
    run(Command::new(nydus_image)
        .args([
            "create",
            "--log-level",
            "warn",
            "--type",
            "targz-ref",
            "--bootstrap",
        ])
        .arg(&image.bootstrap)
        .arg("--blob-dir")
        .arg(&image.blobs)
        .arg(&archive)
        .current_dir(out))?;
    // The archive itself is the blob; the builder has written its index only.
    let name = format!("{:x}", Sha256::digest(fs::read(&archive)?));
    fs::rename(&archive, image.blobs.join(name))
}
