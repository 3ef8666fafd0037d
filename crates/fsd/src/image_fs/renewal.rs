//! Opens an image's storage once more when nydus has given up a blob's table of chunks.
//!
//! nydus asks for a table when the image is mounted, five times within 13 s, and never again; without it no chunk of
//! the blob can be found. The read that finds it missing, and each one after it, asks whether the backend answers
//! again, as long as a fetch of content would, and then has nydus begin anew. Reads of other blobs go on meanwhile.
//!
//! A table may also be another image's: blobs go by names that an image chooses, and who was there first has left it
//! in the cache. A read that fails because of it has it fetched anew, once.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use arc_swap::Guard;
use nydus_storage::device::BlobInfo;
use rustix::io::Errno;

use super::error::FetchError;
use super::events::report;
use super::factory;
use super::layout::Found;
use super::retry::{Retry, RetryPolicy};
use super::storage::{ImageBlob, Storage};
use super::{Image, Served};

/// Renewals of an image's storage, one at a time.
#[derive(Debug, Default)]
pub(super) struct Renewals {
    /// When the last one failed.
    failed: Mutex<Option<Instant>>,
}

/// A table that nydus did not get although its backend answers.
#[derive(Debug, thiserror::Error)]
#[error("table of chunks of blob {blob} is not to be had, or is not the image's")]
struct NoTable {
    blob: String,
}

/// A table in the cache that other images with a blob of that name may have, but not this one.
#[derive(Debug, thiserror::Error)]
#[error("table of chunks of blob {blob} in the cache is not the image's; it is removed and fetched anew")]
struct AnothersTable {
    blob: String,
}

impl Image {
    /// After a read that failed: another storage, if that is what it takes; false if it is not.
    pub(super) fn is_renewed(&self, served: &mut Guard<Arc<Served>>) -> bool {
        let is_renewed = served.storage.is_misled() && self.renew(served).is_ok();
        if is_renewed {
            *served = self.served();
        }
        is_renewed
    }

    /// The segment of a file that has `offset`; the storage is renewed if that is what it takes.
    ///
    /// # Errors
    /// As [`Layouts::segment`](super::layout::Layouts::segment); why a table is missing is among the events.
    pub(super) fn segment(
        &self,
        served: &mut Guard<Arc<Served>>,
        ino: u64,
        offset: u64,
    ) -> io::Result<Found> {
        match self.layouts.segment(served, ino, offset) {
            Err(_) if served.storage.needs_tables() => {
                self.renew(served)?;
                *served = self.served();
                self.layouts.segment(served, ino, offset)
            }
            found => found,
        }
    }

    fn renew(&self, lame: &Arc<Served>) -> io::Result<()> {
        let asked = Instant::now();
        let mut failed = self
            .renewals
            .failed
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(&self.served(), lame) {
            return Ok(());
        }
        // Whoever waited meanwhile has waited long enough.
        if failed.is_some_and(|at| at >= asked) {
            return Err(Errno::IO.into());
        }
        // nydus has just tried for 13 s, when it is the first time.
        let policy = RetryPolicy {
            deadline: failed.map_or(Duration::ZERO, |_| RetryPolicy::default().deadline),
            ..RetryPolicy::default()
        };
        let renewed = self.begin_anew(lame, policy);
        *failed = renewed.is_err().then(Instant::now);
        renewed
    }

    fn begin_anew(&self, lame: &Arc<Served>, policy: RetryPolicy) -> io::Result<()> {
        let infos = lame.sb.superblock.get_blob_infos();
        let is_misled = lame.storage.is_misled();
        let is_lame = |blob: &ImageBlob| (is_misled && blob.is_misled()) || blob.lacks_table();
        for (blob, info) in lame.storage.blobs.iter().zip(&infos).filter(|(b, _)| is_lame(b)) {
            await_backend(blob, info, policy).map_err(|error| {
                report(&error);
                io::Error::from(Errno::IO)
            })?;
            if is_misled && blob.is_misled() {
                report(&AnothersTable { blob: info.blob_id() });
                blob.unshare_table()?;
            }
        }
        // What earlier ones have left.
        factory::drop_unused();
        let mut storage = Storage::open_apart(
            &lame.storage.config,
            &infos,
            lame.storage.digests.clone(),
            &self.gate,
            &self.fetches,
        )?;
        storage.has_own_tables = is_misled || lame.storage.has_own_tables;
        let lacking = storage.blobs.iter().zip(&infos).find(|(b, _)| b.lacks_table());
        let lacking = lacking.map(|(_, info)| info.blob_id());
        self.renew_storage(lame, storage);
        match lacking {
            None => Ok(()),
            Some(blob) => {
                report(&NoTable { blob });
                Err(Errno::IO.into())
            }
        }
    }
}

/// Asks for a byte of a blob's table until it comes, or for as long as a read may wait.
fn await_backend(blob: &ImageBlob, info: &BlobInfo, policy: RetryPolicy) -> Result<(), FetchError> {
    let mut retry = Retry::begin(policy, Instant::now());
    loop {
        let Err(error) = blob.ask_for_table(info) else {
            return Ok(());
        };
        match retry.after(error.cause(), Instant::now()) {
            Some(pause) => sleep(pause),
            None => return Err(error),
        }
    }
}
