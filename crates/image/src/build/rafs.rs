//! The call into nydus-builder: our configuration in its terms.
//!
//! Owns nothing and watches nothing; runs on the thread `build/run.rs` gives it, until it is done.

use std::error::Error as StdError;
use std::path::PathBuf;
use std::sync::Arc;

use nydus_api::ConfigV2;
use nydus_builder::attributes::Attributes;
use nydus_builder::{
    ArtifactStorage, BlobManager, BootstrapManager, BuildContext, Builder, ConversionType, DirectoryBuilder,
    Features, Prefetch, PrefetchPolicy, WhiteoutSpec,
};
use nydus_rafs::metadata::RafsVersion;
use nydus_utils::digest;

use crate::config::FsVersion;
use crate::rafs::tail::BlobFormat;

/// One call's arguments.
#[derive(Debug)]
pub(super) struct Job {
    /// The directory.
    pub(super) path: PathBuf,
    pub(super) bootstrap: PathBuf,
    pub(super) blob_dir: PathBuf,
    pub(super) format: BlobFormat,
}

/// Only v5 makes use of it in metadata, and both in naming chunks; it is the fastest of the two there are.
const DIGESTER: digest::Algorithm = digest::Algorithm::Blake3;

impl Job {
    pub(super) fn run(self) -> Result<(), Box<dyn StdError + Send + Sync>> {
        let version = match self.format.fs_version {
            FsVersion::V5 => RafsVersion::V5,
            FsVersion::V6 => RafsVersion::V6,
        };
        // Any other policy reads a list of files from our standard input.
        let prefetch = Prefetch::new(PrefetchPolicy::None)?;
        let mut context = BuildContext::new(
            String::new(),   // blob id: the blob's SHA-256
            version.is_v6(), // chunks aligned to 4 KiB, as EROFS addresses them
            0,
            self.format.compressor,
            DIGESTER,
            true, // owners are kept
            // One layer is all there is to this image: a name like `.wh.x` hides nothing and is kept.
            WhiteoutSpec::None,
            ConversionType::DirectoryToRafs,
            self.path,
            prefetch,
            Some(ArtifactStorage::FileDir((self.blob_dir, String::new()))),
            None,
            false, // the bootstrap is a file of its own
            Features::new(),
            false,
            Attributes::default(),
        );
        context.set_fs_version(version);
        context.set_chunk_size(self.format.chunk_size.bytes());
        let config = ConfigV2::default();
        config.internal.set_blob_accessible(true);
        context.set_configuration(Arc::new(config));

        let mut bootstraps = BootstrapManager::new(Some(ArtifactStorage::SingleFile(self.bootstrap)), None);
        let mut blobs = BlobManager::new(DIGESTER, false);
        DirectoryBuilder::new().build(&mut context, &mut bootstraps, &mut blobs)?;
        Ok(())
    }
}
