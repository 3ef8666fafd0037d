//! What a reference is for a platform, as it is remembered: one small file each.
//!
//! A record is written after everything that it names, and replaced as a whole. Its file's mtime is when the image
//! was last used, so that using one needs no rewriting.

use std::fs::{self, File, FileTimes};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::StoreError;
use crate::config::{ChunkSize, Compressor, FsVersion};
use crate::source::blob_dir::replace;
use crate::source::{Descriptor, Digest, ImageRef, MediaType, Platform, sha256_of};

/// The version that is written.
const VERSION: u32 = 1;

/// One reference for one platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    version: u32,
    pub(super) reference: String,
    pub(super) platform: String,
    /// Of the manifest the reference led to.
    pub(super) source_digest: Digest,
    /// Of the manifest in nydus' form; the same if it was in that form.
    pub(super) digest: Digest,
    pub(super) media_type: MediaType,
    pub(super) fs_version: FsVersion,
    /// The bootstrap as a file.
    pub(super) bootstrap_bytes: u64,
    pub(super) data: DataRecord,
}

/// Where the data is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(super) enum DataRecord {
    /// In the store, converted like this.
    Converted {
        compressor: Compressor,
        chunk_size: ChunkSize,
        /// The layers that have it as they were, and only an index beside.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        originals: Vec<OriginalLayer>,
    },
    /// In the store, as it was.
    Copied {
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        originals: Vec<OriginalLayer>,
    },
    /// In a directory that is not the store's.
    InPlace {
        blob_dir: PathBuf,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        originals: Vec<OriginalLayer>,
    },
    /// In the registry that the reference names.
    Remote,
}

/// A layer that stays as it was, and has data of the image; its manifest doesn't name it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct OriginalLayer {
    pub(super) digest: Digest,
    pub(super) bytes: u64,
}

impl From<&Descriptor> for OriginalLayer {
    fn from(layer: &Descriptor) -> Self {
        Self {
            digest: layer.digest().clone(),
            bytes: layer.size(),
        }
    }
}

/// An image of the store as it is listed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoredEntry {
    /// What it was asked for by.
    pub reference: String,
    /// The platform it is for.
    pub platform: String,
    /// Of its manifest in nydus' form.
    pub digest: Digest,
    /// Of the manifest that the reference led to.
    pub source_digest: Digest,
    /// What the store has of it.
    pub kind: StoredKind,
    /// What it takes in the store, in bytes; what images share is counted with each.
    pub here_bytes: u64,
    /// When it was last had from the store.
    pub last_used: SystemTime,
}

/// What the store has of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum StoredKind {
    /// Everything, converted here.
    Converted,
    /// Everything, in the form it had.
    Copied,
    /// Its bootstrap; the data is in a directory elsewhere.
    InPlace,
    /// Its bootstrap; the data is in a registry.
    Remote,
}

impl Record {
    pub(super) fn new(
        reference: &ImageRef,
        platform: &Platform,
        source_digest: Digest,
        (digest, media_type): (Digest, MediaType),
        (fs_version, bootstrap_bytes): (FsVersion, u64),
        data: DataRecord,
    ) -> Self {
        Self {
            version: VERSION,
            reference: reference.to_string(),
            platform: platform.to_string(),
            source_digest,
            digest,
            media_type,
            fs_version,
            bootstrap_bytes,
            data,
        }
    }

    /// The layers that have the data as they were.
    pub(super) fn originals(&self) -> &[OriginalLayer] {
        match &self.data {
            DataRecord::Converted { originals, .. }
            | DataRecord::Copied { originals }
            | DataRecord::InPlace { originals, .. } => originals,
            DataRecord::Remote => &[],
        }
    }

    /// The same image by another name.
    pub(super) fn renamed(mut self, reference: &ImageRef, platform: &Platform) -> Self {
        self.reference = reference.to_string();
        self.platform = platform.to_string();
        self
    }

    pub(super) fn into_entry(self, here_bytes: u64, last_used: SystemTime) -> StoredEntry {
        let kind = match self.data {
            DataRecord::Converted { .. } => StoredKind::Converted,
            DataRecord::Copied { .. } => StoredKind::Copied,
            DataRecord::InPlace { .. } => StoredKind::InPlace,
            DataRecord::Remote => StoredKind::Remote,
        };
        StoredEntry {
            reference: self.reference,
            platform: self.platform,
            digest: self.digest,
            source_digest: self.source_digest,
            kind,
            here_bytes,
            last_used,
        }
    }
}

/// The directory of records.
#[derive(Debug)]
pub(super) struct Records {
    path: PathBuf,
}

impl Records {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// What is known of a reference. A record that can't be understood is as good as none: it is made again.
    pub(super) fn read(&self, reference: &str, platform: &str) -> Result<Option<Record>, StoreError> {
        Ok(read(&self.path_of(reference, platform))?.known())
    }

    /// Writes what is known of a reference, in the place of what was.
    pub(super) fn write(&self, record: &Record) -> Result<(), StoreError> {
        let path = self.path_of(&record.reference, &record.platform);
        let text = serde_json::to_vec_pretty(record).map_err(|error| StoreError::io(&path, error.into()))?;
        replace(&path, |file| file.write_all(&text)).map_err(|source| StoreError::io(&path, source))
    }

    /// Says that the image is used now. Only its place in an order depends on it, so it may fail.
    pub(super) fn touch(&self, record: &Record) {
        let path = self.path_of(&record.reference, &record.platform);
        let now = FileTimes::new().set_modified(SystemTime::now());
        if let Err(error) = File::open(&path).and_then(|file| file.set_times(now)) {
            tracing::debug!(path = %path.display(), %error, "cannot say that the image is used");
        }
    }

    /// All records, with when they were last used. Those that can't be understood are left out.
    pub(super) fn all(&self) -> Result<Vec<(Record, SystemTime)>, StoreError> {
        self.all_of(|found, _| Ok(found.known()))
    }

    /// The same for who removes what no record needs.
    ///
    /// # Errors
    /// One for a record of another version besides: nobody here can tell what that needs.
    pub(super) fn all_there_are(&self) -> Result<Vec<(Record, SystemTime)>, StoreError> {
        self.all_of(|found, path| match found {
            Found::OtherVersion(version) => Err(StoreError::RecordVersion {
                path: path.to_owned(),
                version,
            }),
            found => Ok(found.known()),
        })
    }

    fn all_of(
        &self,
        take: impl Fn(Found, &Path) -> Result<Option<Record>, StoreError>,
    ) -> Result<Vec<(Record, SystemTime)>, StoreError> {
        let failed = |source| StoreError::io(&self.path, source);
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            if let Some(record) = take(read(&path)?, &path)? {
                let modified = fs::metadata(&path).and_then(|meta| meta.modified());
                all.push((record, modified.unwrap_or(SystemTime::UNIX_EPOCH)));
            }
        }
        Ok(all)
    }

    /// Forgets a reference.
    pub(super) fn remove(&self, record: &Record) -> Result<(), StoreError> {
        let path = self.path_of(&record.reference, &record.platform);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StoreError::io(&path, error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn path_of(&self, reference: &str, platform: &str) -> PathBuf {
        let name = sha256_of(format!("{reference}\n{platform}").as_bytes());
        self.path.join(format!("{}.json", name.digest()))
    }
}

/// What a record's file has.
enum Found {
    Record(Box<Record>),
    /// One of a version of this program that doesn't exist yet.
    OtherVersion(u32),
    /// It is not there, or damaged.
    Nothing,
}

impl Found {
    fn known(self) -> Option<Record> {
        match self {
            Self::Record(record) => Some(*record),
            Self::OtherVersion(_) | Self::Nothing => None,
        }
    }
}

/// Read before anything else, so that another version is not taken for a damaged file.
#[derive(Deserialize)]
struct RecordVersion {
    version: u32,
}

fn read(path: &Path) -> Result<Found, StoreError> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(source) => return Err(StoreError::io(path, source)),
    };
    let damaged = |error: serde_json::Error| {
        tracing::warn!(path = %path.display(), %error, "record of an image is damaged");
        Ok(Found::Nothing)
    };
    match serde_json::from_slice(&text) {
        Ok(RecordVersion { version: VERSION }) => {
            serde_json::from_slice(&text).map_or_else(damaged, |record| Ok(Found::Record(record)))
        }
        Ok(RecordVersion { version }) => {
            tracing::warn!(path = %path.display(), version, "record of an image is not known here");
            Ok(Found::OtherVersion(version))
        }
        Err(error) => damaged(error),
    }
}
