//! The image that a command runs or mounts: had from the store, and described to the daemon that serves it.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{Args, ValueEnum};
use nydusbox_image::source::{AccessOptions, ImageRef, Platform, rafs_backend};
use nydusbox_image::{
    BlobCache, BlobsAt, GetRequest, ImageData, ImageDir, PullPolicy, RafsConfig, StoreError, StoredImage,
};

use super::image::bar::Bar;
use super::image::store;
use super::registry::RegistryArgs;
use super::size::Size;
use crate::data_dir::DataDir;
use crate::error::Failure;

/// How an image is had and served.
#[derive(Debug, Args)]
pub(super) struct StoredArgs {
    /// When the place of an image that is here is asked for another one; one on this machine always is
    #[arg(long, value_enum, value_name = "WHEN", default_value_t = Pull::Missing)]
    pull: Pull,
    /// Which of several images: OS/ARCH[/VARIANT]; this machine's unless given
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,
    /// Don't fetch the files that the image itself names for it before they are read
    #[arg(long)]
    no_prefetch: bool,
    /// Have the blob cache take no more than this before the image is mounted: blobs that nobody uses go, those first
    /// that were not used for the longest time
    #[arg(long, value_name = "SIZE")]
    cache_quota: Option<Size>,
    #[command(flatten)]
    registry: RegistryArgs,
}

/// `--pull`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Pull {
    /// If the image is not here
    Missing,
    /// Each time
    Always,
    /// Never: the image has to be here
    Never,
}

impl From<Pull> for PullPolicy {
    fn from(pull: Pull) -> Self {
        match pull {
            Pull::Missing => Self::Missing,
            Pull::Always => Self::Always,
            Pull::Never => Self::Never,
        }
    }
}

/// An image that is here, and how a daemon serves it.
pub(super) struct Served {
    /// While it lives, nobody removes the image.
    pub(super) image: StoredImage,
    /// For the daemon only: it may have credentials in it.
    pub(super) config: String,
}

impl fmt::Debug for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Served")
            .field("image", &self.image)
            .finish_non_exhaustive()
    }
}

impl StoredArgs {
    /// Has the image `reference`, which takes as long as its bootstrap needs to come, or its conversion.
    /// `cancelled` ends it.
    pub(super) fn obtain(
        &self,
        reference: &ImageRef,
        data_dir: &DataDir,
        cancelled: &Arc<AtomicBool>,
    ) -> Result<Served, Failure> {
        if let ImageRef::RootDir { path } = reference {
            check_built(path)?;
        }
        let what = format!("get the image {reference}");
        let access = self.registry.access();
        let request = GetRequest::new(self.platform.clone().unwrap_or_default())
            .access(access.clone())
            .policy(self.pull.into());
        let store = store::open(data_dir)?;
        let cache = data_dir.cache();
        let bar = Bar::new(Arc::clone(cancelled));
        let result = store.get(reference, &request, &bar);
        let shrunk = self
            .cache_quota
            .map(|quota| BlobCache::new(&cache).shrink(quota.bytes(), false, &bar));
        bar.clear();
        let image = result.map_err(|e| store::failure(&what, &e))?;
        shrunk
            .transpose()
            .map_err(|e| store::failure("keep the blob cache within its quota", &e))?;
        if cancelled.load(Ordering::Relaxed) {
            return Err(store::failure(&what, &StoreError::Cancelled));
        }
        let config = rafs_config(&image, &cache, &access, !self.no_prefetch)?;
        Ok(Served { image, config })
    }
}

/// A path has to be of an image that was built; a root file system is none yet.
fn check_built(path: &Path) -> Result<(), Failure> {
    ImageDir::open(path).map(drop).map_err(|e| {
        Failure::new(&format!("open the image {}", path.display()), &e).hint(
            "make one with: nydusbox image build ROOTFS_DIR IMAGE_DIR; or name one: docker://…, oci:DIR:TAG, …",
        )
    })
}

/// How a daemon serves an image: with what it fetches of it in `cache`, and how it reaches a registry as `access`
/// says. The text has the registry's credentials in it.
pub(super) fn rafs_config(
    image: &StoredImage,
    cache: &Path,
    access: &AccessOptions,
    prefetch: bool,
) -> Result<String, Failure> {
    let config = |blobs| {
        let config = RafsConfig {
            id: image.id(),
            blobs,
            cache_dir: cache,
            prefetch,
        };
        config
            .to_json()
            .map_err(|e| Failure::new("configure the image's mount", &e))
    };
    match &image.data {
        ImageData::Local { blob_dir } => config(BlobsAt::Directory(blob_dir)),
        ImageData::Remote {
            reference: ImageRef::Docker { name },
        } => {
            let backend = rafs_backend(name, access)
                .map_err(|e| Failure::new(&format!("fetch from {name} as it is read"), &e))?;
            config(BlobsAt::Registry(&backend))
        }
        other => Err(Failure::plain(format!(
            "the data of {} cannot be fetched from where it is: {other:?}",
            image.reference
        ))),
    }
}
