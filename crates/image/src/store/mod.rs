//! Images that are here: pulled or converted once, and found again by the name they were asked for.
//!
//! ```text
//! STORE/version            "1"
//!       lock               flock: shared by those who add, exclusive by those who remove
//!       refs/<hash>.json   what a reference is for a platform (record.rs); its mtime is when it was last used
//!       blobs/sha256/<hex> manifests, configurations, data, under their digests
//!       bootstraps/<hex>   the bootstrap of the image with this manifest, unpacked; flock, shared by its users
//!       layers/            which blobs were made of which layers by conversions that are not done (kept.rs)
//!       locks/<hex>        flock: one at a time fetches or converts the image with this manifest
//!       work/              what is being made
//! ```
//! A file that has its name is complete: each is written beside its place, synced and renamed, and a record only
//! after everything it names. Who is killed leaves files that nothing names; whoever adds or removes next, alone,
//! removes those that are not complete, and [`Store::gc`] the others. Blobs that were complete, and layers
//! that were converted, are used by the next try; a blob of which a part was there is fetched from its beginning.
//!
//! Order of locks: `lock`, then one of `locks/`, then one of `bootstraps/`.
//!
//! What a reference becomes is in `get.rs`, what goes in `remove.rs`. The blob cache of the daemons is another
//! directory, which `cache.rs` keeps small. Nothing here talks to a daemon.

mod arriving;
mod cache;
mod cache_plan;
mod content;
mod error;
mod get;
mod image;
mod kept;
mod known;
mod leftovers;
mod lock;
mod record;
mod removal_plan;
mod remove;
mod request;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

pub use cache::{BlobCache, CacheGuard, CacheReport};
pub use error::StoreError;
pub use image::{ImageData, StoredImage};
pub use record::{StoredEntry, StoredKind};
pub use remove::{GcConfig, GcReport, ImageUse, InUse};
pub use request::{GetRequest, PullPolicy};

use crate::source::blob_dir::replace;
use content::Content;
use record::Records;

/// The version of the directory's layout, the only one there has been.
const VERSION: &str = "1";

/// The images of one host. Any number of processes may use one directory at once.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    content: Content,
    records: Records,
}

impl Store {
    /// Opens the store in `dir`, which is made if it isn't there.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        let failed = |source| StoreError::io(dir, source);
        fs::create_dir_all(dir).map_err(failed)?;
        // Absolute, because a daemon that is told of a bootstrap may run in another directory.
        let path = dir.canonicalize().map_err(failed)?;
        check_version(&path)?;
        for part in ["refs", "blobs", "bootstraps", "layers", "locks", "work"] {
            fs::create_dir_all(path.join(part)).map_err(failed)?;
        }
        Ok(Self {
            content: Content::new(path.join("blobs")),
            records: Records::new(path.join("refs")),
            path,
        })
    }

    /// The store's directory, absolute.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is here, by reference and platform.
    ///
    /// # Errors
    /// See [`StoreError`]. A record that can't be read is left out, with a warning.
    pub fn list(&self) -> Result<Vec<StoredEntry>, StoreError> {
        let mut entries = Vec::new();
        for (record, last_used) in self.records.all()? {
            let bytes = self.bytes_here(&record);
            entries.push(record.into_entry(bytes, last_used));
        }
        entries.sort_by(|a, b| (&a.reference, &a.platform).cmp(&(&b.reference, &b.platform)));
        Ok(entries)
    }

    fn lock_path(&self) -> PathBuf {
        self.path.join("lock")
    }

    fn work(&self) -> PathBuf {
        self.path.join("work")
    }

    fn layers(&self) -> PathBuf {
        self.path.join("layers")
    }

    fn bootstraps(&self) -> PathBuf {
        self.path.join("bootstraps")
    }
}

/// Reads the version, which is written first of all.
fn check_version(store: &Path) -> Result<(), StoreError> {
    let path = store.join("version");
    match fs::read_to_string(&path) {
        Ok(text) if text.trim_end() == VERSION => Ok(()),
        Ok(text) => Err(StoreError::Version {
            path: store.to_owned(),
            version: text.trim_end().to_owned(),
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            replace(&path, |file| writeln!(file, "{VERSION}")).map_err(|source| StoreError::io(&path, source))
        }
        Err(source) => Err(StoreError::io(&path, source)),
    }
}
