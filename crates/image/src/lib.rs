//! RAFS images: made from a directory or a tar archive, opened again, and described to a daemon.
//!
//! An *image directory* holds `image.boot` (the bootstrap: all metadata), `blobs/<sha256>` (the data, in
//! chunks) and `image.json` (what is in it). [`build`] makes one, [`ImageDir`] opens one, and
//! [`RafsConfig`] is the configuration with which a daemon serves it.
//!
//! A [`Store`] keeps images that were pulled or converted, and finds them by the reference they were asked for.
//!
//! Images of others, in layouts and archives, are read and written through [`source`].
//!
//! This crate never talks to a daemon, never mounts anything, and draws no progress bar: it reports to a
//! [`Progress`] that the caller brings. Read `build.rs` next.
//!
//! ```no_run
//! use nydusbox_image::{BlobsAt, BuildConfig, ImageDir, Quiet, RafsConfig, Source, build};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let config = BuildConfig::new(Source::detect("rootfs.tar".as_ref())?, "image");
//! let summary = build(&config, &Quiet)?;
//! println!("{} files, {} bytes", summary.regular_files, summary.uncompressed_bytes);
//!
//! let image = ImageDir::open("image".as_ref())?;
//! let config = RafsConfig {
//!     id: "my-image",
//!     blobs: BlobsAt::Directory(&image.blob_dir()),
//!     cache_dir: "cache".as_ref(),
//!     prefetch: true,
//! };
//! let json = config.to_json()?;
//! # Ok(())
//! # }
//! ```

#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod bootstrap_layer;
mod build;
mod built_source;
mod check;
mod chunk_reader;
mod config;
mod convert;
mod copy;
mod diff;
mod error;
#[doc(hidden)]
pub mod fuzzing;
mod image_dir;
mod inspect;
mod layer_pool;
mod layers;
mod merge;
mod nydus_image;
mod optimize;
mod progress;
mod rafs;
mod rafs_config;
mod registry_error;
mod scan;
mod shown_path;
pub mod source;
mod staging;
mod store;
mod summary;
mod trace;
mod transfer;
mod tree;

pub use build::build;
pub use built_source::BuiltSource;
pub use check::{CheckProblem, CheckReport};
pub use config::{
    BuildConfig, ChunkSize, ChunkSizeError, Compressor, FsVersion, RafsFormat, Source, UnknownName,
};
pub use convert::{ConvertConfig, ConvertError, ConvertSummary, ConvertedLayerSummary, Mode, convert};
pub use copy::{CopyError, CopySummary, copy};
pub use diff::{Aspect, Change, Difference};
pub use error::BuildError;
pub use image_dir::{ImageDir, OpenError};
pub use inspect::{BlobReport, ImageReport};
pub use layers::{EntryProblem, LayerError, TarProblem};
pub use nydus_image::{NydusImage, NydusImageError};
pub use optimize::{OptimizeConfig, OptimizeError, OptimizeSummary, optimize, optimize_dir};
pub use progress::{Note, Phase, Progress, Quiet};
pub use rafs::NYDUS_THREAD;
pub use rafs::reference::Unindexed;
pub use rafs_config::{BlobsAt, RafsConfig, RafsConfigError};
pub use registry_error::registry_error;
pub use store::{
    BlobCache, CacheGuard, CacheReport, GcConfig, GcReport, GetRequest, ImageData, ImageUse, InUse,
    PullPolicy, Store, StoreError, StoredEntry, StoredImage, StoredKind,
};
pub use summary::{BlobSummary, BuildSummary};
pub use trace::{StartupTrace, TraceError, TraceRead};
pub use transfer::TransferSummary;

/// The bootstrap's name inside an image directory.
pub const BOOTSTRAP_FILE: &str = "image.boot";
/// The directory of blobs inside an image directory; each blob's name is the SHA-256 of its content.
pub const BLOB_DIR: &str = "blobs";
/// The summary's name inside an image directory.
pub const SUMMARY_FILE: &str = "image.json";
