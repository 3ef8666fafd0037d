//! How reading the blobs of images goes, from what a daemon counts.
//!
//! Ours counts by mount point, as newer versions of nydusd do. Older ones (2.2.0) count by the blob a backend was
//! opened for first, and tell nobody which that is. Asked without an id they answer while they have one backend; else
//! an image's cache, which goes by the id in the image's configuration, names its blobs. Where neither leads to
//! counters, the daemon's list of failed reads is all there is, and it does not say of which image. Judged in
//! [`super::judge`].

use std::collections::BTreeMap;

use nydusbox_protocol::{Endpoint, MountPoint};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::judge::Reads;
use crate::client::{ApiClient, CallError, FailedReads};

/// What newer versions add to a blob's id where they name the files of a cache.
const DATA_FILE: &str = ".blob.data";
/// How many blobs of an image are tried: a backend is opened for one of the first.
const TRIED: usize = 8;

/// What is known of the reads of blobs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Blobs {
    /// Each image with its reads; `None` where they cannot be had.
    pub(super) reads: BTreeMap<MountPoint, Option<Reads>>,
    /// Asked for where an image's reads cannot be had.
    pub(super) failed: Option<FailedReads>,
}

/// Where the counters of an image are.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    MountPoint,
    /// There are no others.
    Only,
    Blob(String),
}

/// Remembers where counters were found.
#[derive(Debug, Clone, Default)]
pub(super) struct Finder(BTreeMap<MountPoint, Place>);

impl Finder {
    /// Asks about all images. An answer that does not come ends it; what is known by then is in `blobs`.
    pub(super) async fn look(
        &mut self,
        client: &mut ApiClient,
        images: Vec<MountPoint>,
        blobs: &mut Blobs,
    ) -> Result<(), CallError> {
        self.0
            .retain(|at, place| images.contains(at) && (*place != Place::Only || images.len() == 1));
        blobs.reads = images.into_iter().map(|at| (at, None)).collect();
        for (at, reads) in &mut blobs.reads {
            *reads = match self.0.get(at) {
                Some(place) => counted(client, at, place).await?,
                None => None,
            };
            if reads.is_none() {
                self.0.remove(at);
                *reads = self.found(client, at, Place::MountPoint).await?;
            }
        }
        let uncounted = blobs.reads.values().any(Option::is_none);
        if uncounted && blobs.reads.len() == 1 {
            for (at, reads) in &mut blobs.reads {
                *reads = self.found(client, at, Place::Only).await?;
            }
        }
        if blobs.reads.values().any(Option::is_none) {
            self.find_by_cache(client, &mut blobs.reads).await?;
        }
        if blobs.reads.values().any(Option::is_none) {
            blobs.failed = Some(client.failed_reads().await?);
        }
        Ok(())
    }

    async fn found(
        &mut self,
        client: &mut ApiClient,
        at: &MountPoint,
        place: Place,
    ) -> Result<Option<Reads>, CallError> {
        let reads = counted(client, at, &place).await?;
        if reads.is_some() {
            self.0.insert(at.clone(), place);
        }
        Ok(reads)
    }

    /// Looks among the blobs in an image's cache. Of images whose configurations have the same id, the daemon names
    /// one's.
    async fn find_by_cache(
        &mut self,
        client: &mut ApiClient,
        reads: &mut BTreeMap<MountPoint, Option<Reads>>,
    ) -> Result<(), CallError> {
        let info = client.daemon_info_with_mounts().await?;
        let mounts = info.backend_collection.unwrap_or_default();
        let id_at = |at: &str| mounts.get(at)?.config.as_ref()?.get("id")?.as_str();
        for (at, reads) in reads.iter_mut().filter(|(_, reads)| reads.is_none()) {
            let Some(id) = id_at(at.as_str()) else { continue };
            if mounts.keys().filter(|other| id_at(other) == Some(id)).count() > 1 {
                continue;
            }
            let Some(cache) = ask::<CacheCounters>(client, Endpoint::MetricsBlobcache, Some(id)).await?
            else {
                continue;
            };
            let files = cache.underlying_files.iter();
            let blobs = files.map(|file| file.strip_suffix(DATA_FILE).unwrap_or(file));
            for blob in blobs.take(TRIED) {
                *reads = self.found(client, at, Place::Blob(blob.to_owned())).await?;
                if reads.is_some() {
                    break;
                }
            }
        }
        Ok(())
    }
}

#[derive(Debug, Deserialize)]
struct CacheCounters {
    underlying_files: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct BackendCounters {
    read_count: u64,
    read_errors: u64,
}

async fn counted(client: &mut ApiClient, at: &MountPoint, place: &Place) -> Result<Option<Reads>, CallError> {
    let id = match place {
        Place::MountPoint => Some(at.as_str()),
        Place::Only => None,
        Place::Blob(blob) => Some(blob.as_str()),
    };
    let counters = ask(client, Endpoint::MetricsBackend, id).await?;
    Ok(counters.map(|counters: BackendCounters| Reads {
        all: counters.read_count,
        failed: counters.read_errors,
    }))
}

/// The counters; `None` if the daemon has none there.
async fn ask<T: DeserializeOwned>(
    client: &mut ApiClient,
    endpoint: Endpoint,
    id: Option<&str>,
) -> Result<Option<T>, CallError> {
    match client.counters(endpoint, id).await {
        Ok(counters) => Ok(Some(counters)),
        Err(error @ (CallError::Unreachable { .. } | CallError::TimedOut { .. })) => Err(error),
        Err(_) => Ok(None),
    }
}
