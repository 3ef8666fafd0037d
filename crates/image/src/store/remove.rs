//! What goes from the store: references that somebody names or nobody used, and everything that no reference needs.
//!
//! Removing is done by one process at a time, while nobody adds. What goes is decided in `removal_plan.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::Serialize;

use super::get::absolute;
use super::leftovers::{entries, is_partial, remove};
use super::record::Record;
use super::removal_plan::{Inventory, plan};
use super::{Store, StoreError, lock};
use crate::convert::REFERENCE;
use crate::progress::Progress;
use crate::source::{Digest, ImageRef, MediaType};

/// An image that somebody uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageUse {
    /// The bootstrap that is mounted, or about to be.
    pub bootstrap: PathBuf,
    /// Who uses it, as it is to be named: `sandbox s1`.
    pub by: String,
}

/// Finds out what is in use beyond what is held as a [`StoredImage`](super::StoredImage). Asked once nobody can begin
/// to use more.
pub type InUse<'a> = dyn Fn() -> io::Result<Vec<ImageUse>> + 'a;

/// What [`Store::gc`] removes besides what no reference needs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GcConfig {
    /// References that were not used for longer, and are not in use.
    pub unused_for: Option<Duration>,
    /// Nothing at all: it is only said what would go.
    pub dry_run: bool,
}

/// What was removed, or would be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct GcReport {
    /// Whether nothing was changed.
    pub dry_run: bool,
    /// References that were forgotten.
    pub references: Vec<String>,
    /// Blobs, bootstraps, and what processes left that were killed.
    pub files: u64,
    /// What they took, in bytes.
    pub bytes: u64,
}

/// Everything that is in the store now.
struct Found {
    records: Vec<(Record, SystemTime)>,
    /// Size in bytes by `<algorithm>/<digest>`.
    blobs: BTreeMap<String, u64>,
    /// Size in bytes by image, which is the hexadecimal part of its manifest's digest.
    bootstraps: BTreeMap<String, u64>,
    /// Who uses which image.
    users: BTreeMap<String, String>,
}

impl Store {
    /// Forgets images, for all platforms, and removes what no other needs. Either all of them go or none.
    ///
    /// Waits for processes that add to the store.
    ///
    /// # Errors
    /// See [`StoreError`]: [`StoreError::NoSuchImage`], and [`StoreError::InUse`] for one that is in use and has no
    /// other name.
    pub fn remove(
        &self,
        references: &[ImageRef],
        in_use: &InUse<'_>,
        progress: &dyn Progress,
    ) -> Result<GcReport, StoreError> {
        let _alone = lock::exclusive(&self.lock_path(), progress)?;
        let found = self.look(in_use)?;
        let mut going: Vec<Record> = Vec::new();
        for reference in references {
            let name = absolute(reference)?.to_string();
            let named = found.records.iter().map(|(record, _)| record);
            let named: Vec<_> = named.filter(|record| record.reference == name).collect();
            if named.is_empty() {
                return Err(StoreError::NoSuchImage { reference: name });
            }
            going.extend(named.into_iter().cloned());
        }
        for record in &going {
            let mut others = found.records.iter().map(|(other, _)| other);
            let has_another_name =
                others.any(|other| other.digest == record.digest && !going.contains(other));
            if let Some(by) = found.users.get(record.digest.digest())
                && !has_another_name
            {
                return Err(StoreError::InUse {
                    reference: record.reference.clone(),
                    by: by.clone(),
                });
            }
        }
        self.clear(&found, &going, false)
    }

    /// Removes what no reference needs and nobody uses: blobs and bootstraps of images that newer ones have replaced,
    /// and what processes left that were killed.
    ///
    /// Waits for processes that add to the store.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn gc(
        &self,
        config: GcConfig,
        in_use: &InUse<'_>,
        progress: &dyn Progress,
    ) -> Result<GcReport, StoreError> {
        let _alone = lock::exclusive(&self.lock_path(), progress)?;
        let found = self.look(in_use)?;
        let now = SystemTime::now();
        let old = |(record, last_used): &&(Record, SystemTime)| {
            let unused = now.duration_since(*last_used).unwrap_or_default();
            config.unused_for.is_some_and(|limit| unused > limit)
                && !found.users.contains_key(record.digest.digest())
        };
        let going = found.records.iter().filter(old);
        let going: Vec<_> = going.map(|(record, _)| record.clone()).collect();
        self.clear(&found, &going, config.dry_run)
    }

    /// What there is, and who uses it.
    fn look(&self, in_use: &InUse<'_>) -> Result<Found, StoreError> {
        let mut blobs = BTreeMap::new();
        for algorithm in entries(&self.path.join("blobs"))? {
            for blob in entries(&algorithm.path())? {
                if !is_partial(&blob.file_name()) {
                    let name = Path::new(&algorithm.file_name()).join(blob.file_name());
                    blobs.insert(name.to_string_lossy().into_owned(), size(&blob.path()));
                }
            }
        }
        let mut bootstraps = BTreeMap::new();
        for bootstrap in entries(&self.bootstraps())? {
            if !is_partial(&bootstrap.file_name()) {
                let name = bootstrap.file_name().to_string_lossy().into_owned();
                bootstraps.insert(name, size(&bootstrap.path()));
            }
        }
        let mut users = BTreeMap::new();
        for image_use in in_use().map_err(|source| StoreError::UseUnknown { source })? {
            if let Some(image) = self.image_of(&image_use.bootstrap) {
                users.entry(image).or_insert(image_use.by);
            }
        }
        for image in bootstraps.keys() {
            if !users.contains_key(image) && self.is_held(image)? {
                users.insert(image.clone(), "another process".to_owned());
            }
        }
        Ok(Found {
            records: self.records.all_there_are()?,
            blobs,
            bootstraps,
            users,
        })
    }

    /// Which image a bootstrap is of, if it is one of the store's.
    fn image_of(&self, bootstrap: &Path) -> Option<String> {
        let path = fs::canonicalize(bootstrap).unwrap_or_else(|_| bootstrap.to_owned());
        let name = path.strip_prefix(self.bootstraps()).ok()?.to_str()?;
        Some(name.to_owned())
    }

    /// Whether somebody has the image as a [`StoredImage`](super::StoredImage). Nobody can begin to, as long as the
    /// store's lock is ours alone.
    fn is_held(&self, image: &str) -> Result<bool, StoreError> {
        let path = self.bootstraps().join(image);
        let failed = |source| StoreError::io(&path, source);
        let file = File::open(&path).map_err(failed)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(false),
            Err(Errno::WOULDBLOCK) => Ok(true),
            Err(errno) => Err(failed(errno.into())),
        }
    }

    /// Removes these records, and everything that then nothing needs.
    fn clear(&self, found: &Found, going: &[Record], dry_run: bool) -> Result<GcReport, StoreError> {
        let removal = plan(&self.inventory(found, going));
        let leftovers = self.leftovers()?;
        let blobs = removal
            .blobs
            .iter()
            .map(|blob| self.path.join("blobs").join(blob));
        let bootstraps = removal.bootstraps.iter().map(|name| self.bootstraps().join(name));
        let paths: Vec<_> = leftovers.iter().cloned().chain(blobs).chain(bootstraps).collect();
        let size_in = |sizes: &BTreeMap<String, u64>, names: &[String]| -> u64 {
            names.iter().filter_map(|name| sizes.get(name)).sum()
        };
        let report = GcReport {
            dry_run,
            references: going.iter().map(|record| record.reference.clone()).collect(),
            files: paths.len() as u64,
            bytes: leftovers.iter().map(|path| size(path)).sum::<u64>()
                + size_in(&found.blobs, &removal.blobs)
                + size_in(&found.bootstraps, &removal.bootstraps),
        };
        if dry_run {
            return Ok(report);
        }
        // Records first: what is there without one is nobody's; what is named and gone would be a damage.
        for record in going {
            self.records.remove(record)?;
        }
        for path in &paths {
            remove(path)?;
        }
        // Nobody waits for one of the locks: who does has the store's. The layers' blobs are gone.
        for dir in [self.path.join("locks"), self.layers()] {
            for entry in entries(&dir)? {
                remove(&entry.path())?;
            }
        }
        Ok(report)
    }

    fn inventory(&self, found: &Found, going: &[Record]) -> Inventory {
        let mut needed: BTreeMap<String, Option<BTreeSet<String>>> = BTreeMap::new();
        // One image may have its data here under one name, and in a registry under another.
        let mut need = |image: &str, needs: Option<BTreeSet<String>>| {
            let known = needed.remove(image).unwrap_or_else(|| Some(BTreeSet::new()));
            let both = known.zip(needs).map(|(known, needs)| &known | &needs);
            needed.insert(image.to_owned(), both);
        };
        for (record, _) in &found.records {
            if !going.contains(record) {
                let needs = self.needs(&record.digest, &record.media_type, self.has_data(record));
                need(record.digest.digest(), needs);
            }
        }
        for image in found.users.keys() {
            // Nothing says by which name it is used, nor which of the types its manifest has; what matters is written
            // alike in all.
            let digest = format!("sha256:{image}").parse().ok();
            let needs = digest.and_then(|digest| self.needs(&digest, &MediaType::ImageManifest, true));
            need(image, needs);
        }
        Inventory {
            blobs: found.blobs.keys().cloned().collect(),
            bootstraps: found.bootstraps.keys().cloned().collect(),
            needed,
        }
    }

    /// The names of an image's documents, and of its layers if they are here; none if its manifest can't be read.
    fn needs(&self, digest: &Digest, media_type: &MediaType, layers: bool) -> Option<BTreeSet<String>> {
        let image = self.content.image(digest, media_type).ok()?;
        let layers = if layers { image.layers() } else { &[] };
        let blobs = layers.iter().chain([image.manifest.config()]);
        let name = |digest: &Digest| format!("{}/{}", digest.algorithm(), digest.digest());
        let mut names: BTreeSet<_> = blobs
            .map(|blob| name(blob.digest()))
            .chain([name(digest)])
            .collect();
        for layer in layers {
            // Of one that is an index, the data is in the layer that it was made of.
            let annotations = layer.annotations().as_ref();
            let original = annotations.and_then(|all| all.get(REFERENCE)?.parse().ok());
            names.extend(original.map(|original| name(&original)));
        }
        Some(names)
    }
}

/// The size of a file, or of what is in a directory, in bytes; 0 for what is gone.
fn size(path: &Path) -> u64 {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => {
            let entries = fs::read_dir(path).into_iter().flatten().flatten();
            entries.map(|entry| size(&entry.path())).sum()
        }
        Ok(meta) => meta.len(),
        Err(_) => 0,
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::progress::Quiet;

    #[test]
    fn beside_a_record_of_a_version_to_come_nothing_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let blobs = store.content.data_dir();
        fs::create_dir_all(&blobs).unwrap();
        fs::write(blobs.join("data"), "of the image of that record").unwrap();
        let record = dir.path().join("refs/image.json");
        // A damaged one is as good as none, and costs others nothing.
        fs::write(dir.path().join("refs/damaged.json"), "{").unwrap();
        fs::write(&record, r#"{"version": 2, "names": ["image"]}"#).unwrap();
        let gc = || store.gc(GcConfig::default(), &|| Ok(Vec::new()), &Quiet);
        let refused = gc().unwrap_err();
        assert!(
            matches!(&refused, StoreError::RecordVersion { path, version: 2 } if path.ends_with("image.json")),
            "{refused}"
        );
        let image = "oci:/image".parse().unwrap();
        let refused = store.remove(&[image], &|| Ok(Vec::new()), &Quiet);
        assert!(
            matches!(refused, Err(StoreError::RecordVersion { .. })),
            "{refused:?}"
        );
        assert!(blobs.join("data").exists());
        assert!(store.list().unwrap().is_empty());
        fs::remove_file(&record).unwrap();
        assert_eq!(gc().unwrap().files, 1);
    }
}
