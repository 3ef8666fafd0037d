//! The image that a command runs or mounts: had from the store, and described to the daemon that serves it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{Args, ValueEnum};
use nydusbox_image::source::{AccessOptions, BlobProxy, ImageRef, Platform, rafs_backend, registry_ca_files};
use nydusbox_image::{
    BlobCache, BlobsAt, ConvertConfig, GetRequest, ImageData, ImageDir, Mode, PullPolicy, RafsConfig,
    StartupTrace, StoreError, StoredImage,
};
use nydusbox_protocol::FilePart;

use super::blob_proxy::BlobProxyArgs;
use super::image::bar::Bar;
use super::image::store;
use super::registry::RegistryArgs;
use super::size::CacheQuota;
use crate::data_dir::DataDir;
use crate::error::{Failure, say};

/// Parts of a trace that are fetched ahead: the first ones, which a start-up waits for.
const MOST_PARTS: usize = 4096;

/// How an image is had and served.
#[derive(Debug, Args)]
pub(super) struct StoredArgs {
    /// When the place of an image that is here is asked for another one. One on this machine is each time, but with `never`
    #[arg(long, value_enum, value_name = "WHEN", default_value_t = Pull::Missing)]
    pull: Pull,
    /// Which of several images: OS/ARCH[/VARIANT]; this machine's unless given
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,
    /// Fetch nothing before it is read: neither the files that the image itself names for that, nor what `nydusbox run`
    /// knows the command to need
    #[arg(long)]
    no_prefetch: bool,
    /// Fetch what a start-up read before it is read, instead of what the image names for that: a file that
    /// `nydusbox run --record-trace` wrote
    #[arg(long, value_name = "FILE", requires = "image", conflicts_with = "no_prefetch")]
    prefetch_trace: Option<PathBuf>,
    /// Have the blob cache take no more than this from now on: blobs that nobody uses go, those first that were not
    /// used for the longest time; `none` for as much as there is
    #[arg(long, value_name = "SIZE|none", requires = "image")]
    cache_quota: Option<CacheQuota>,
    #[command(flatten)]
    first_use: FirstUseArgs,
    #[command(flatten)]
    registry: RegistryArgs,
    #[command(flatten)]
    proxy: BlobProxyArgs,
}

/// What becomes of an image that is not in nydus' form.
#[derive(Debug, Args)]
pub(super) struct FirstUseArgs {
    /// How an image that is not in nydus' form is converted when it comes here. By reference (`ref`), its layers stay
    /// as they are and get an index each; `native` compresses them anew, which takes longer, and what is not in the
    /// blob cache is then read faster. One that is here stays as it is
    #[arg(long, value_name = "ref|native", default_value = "ref")]
    convert: Mode,
}

impl FirstUseArgs {
    /// The image for `platform`, this machine's if there is none.
    pub(super) fn request(&self, platform: Option<&Platform>) -> GetRequest {
        let platform = platform.cloned().unwrap_or_default();
        GetRequest::converted_by(ConvertConfig::new(platform).mode(self.convert))
    }
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
    /// What of the image is fetched ahead.
    pub(super) prefetch: Vec<FilePart>,
    /// Whether anything may be.
    pub(super) prefetches: bool,
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
        let trace = self.prefetch_trace.as_deref().map(StartupTrace::read);
        let trace = trace
            .transpose()
            .map_err(|e| Failure::new("prefetch by a trace", &e))?;
        let what = format!("get the image {reference}");
        let access = self.registry.access_until(cancelled);
        let request = self
            .first_use
            .request(self.platform.as_ref())
            .access(access.clone())
            .policy(self.pull.into());
        let store = store::open(data_dir)?;
        let cache = data_dir.cache();
        let bar = Bar::new(Arc::clone(cancelled));
        let result = store.get(reference, &request, &bar);
        let image = result.map_err(|e| {
            bar.clear();
            store::failure(&what, &e)
        })?;
        let blobs = BlobCache::new(&cache);
        let set = self
            .cache_quota
            .map_or(Ok(()), |quota| blobs.set_quota(quota.bytes()));
        let kept = set.and_then(|()| blobs.keep_quota(&bar));
        bar.clear();
        kept.map_err(|e| store::failure("keep the blob cache within its quota", &e))?;
        if cancelled.load(Ordering::Relaxed) {
            return Err(store::failure(&what, &StoreError::Cancelled));
        }
        self.compare_platform(&image);
        let proxy = self.proxy.proxy();
        if proxy.is_some() && matches!(image.data, ImageData::Local { .. }) {
            say(format_args!(
                "note: nothing is fetched of {reference}, neither through the proxy: its blobs are here"
            ));
        }
        let config = rafs_config(&image, &cache, &access, proxy, !self.no_prefetch)?;
        let prefetch = trace.map_or_else(|| Ok(Vec::new()), |trace| self.parts(&trace, &image))?;
        Ok(Served {
            image,
            config,
            prefetch,
            prefetches: !self.no_prefetch,
        })
    }

    /// The option given, if there is one, that means nothing without a reference. The command line's parser lets them
    /// pass beside other ways to name an image.
    pub(super) fn option_for_references(&self) -> Option<&'static str> {
        let given = [
            (self.prefetch_trace.is_some(), "--prefetch-trace"),
            (self.cache_quota.is_some(), "--cache-quota"),
            (self.proxy.proxy().is_some(), "--blob-proxy"),
        ];
        given
            .iter()
            .find(|(is_given, _)| *is_given)
            .map(|(_, name)| *name)
    }

    /// A place with one image only gives that, whichever was asked for.
    fn compare_platform(&self, image: &StoredImage) {
        let wanted = self.platform.clone().unwrap_or_default();
        let (os, arch) = (image.config.os(), image.config.architecture());
        let is_other = os.to_string() != wanted.os || arch.to_string() != wanted.architecture;
        // What `image build` made says nothing of that.
        if image.digest.is_some() && is_other {
            say(format_args!(
                "note: {} is for {os}/{arch}, not for {wanted}",
                image.reference
            ));
        }
    }

    /// The parts of a trace, as a mount has them. Those that follow each other are one.
    fn parts(&self, trace: &StartupTrace, image: &StoredImage) -> Result<Vec<FilePart>, Failure> {
        let is_same = trace.is_of_image(&image.bootstrap);
        if !is_same.map_err(|e| Failure::new("prefetch by a trace", &e))? {
            let file = self.prefetch_trace.as_deref().unwrap_or(Path::new(""));
            say(format_args!(
                "note: {} was recorded of another image",
                file.display()
            ));
        }
        let mut parts: Vec<FilePart> = Vec::new();
        for read in &trace.reads {
            let path = read.encoded_path();
            if let (Some(last), Some(length)) = (parts.last_mut(), read.length)
                && last.path == path
                && last.length.and_then(|l| last.offset.checked_add(l)) == Some(read.offset)
            {
                last.length = last.length.map(|l| l.saturating_add(length));
            } else if parts.len() == MOST_PARTS {
                break;
            } else {
                parts.push(FilePart {
                    path,
                    offset: read.offset,
                    length: read.length,
                });
            }
        }
        Ok(parts)
    }

    /// Certificates (PEM) that a daemon needs to have trusted, beside the system's, to serve `reference`.
    pub(super) fn ca_files(&self, reference: &ImageRef) -> Result<Vec<PathBuf>, Failure> {
        ca_files(reference, &self.registry.access())
    }
}

/// Certificates (PEM) that who serves `reference` has to trust, beside the system's.
pub(super) fn ca_files(reference: &ImageRef, access: &AccessOptions) -> Result<Vec<PathBuf>, Failure> {
    match reference {
        ImageRef::Docker { name } => registry_ca_files(name, access)
            .map_err(|e| Failure::new(&format!("reach the registry of {reference}"), &e)),
        _ => Ok(Vec::new()),
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
    proxy: Option<BlobProxy>,
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
            // A mirror has to have this very image.
            let mut exactly = name.clone();
            exactly.digest.clone_from(&image.digest);
            let backend = rafs_backend(&exactly, access)
                .map_err(|e| Failure::new(&format!("fetch from {name} as it is read"), &e))?
                .with_proxy(proxy);
            config(BlobsAt::Registry(&backend))
        }
        other => Err(Failure::plain(format!(
            "the data of {} cannot be fetched from where it is: {other:?}",
            image.reference
        ))),
    }
}
