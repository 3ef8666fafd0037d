//! One blob of an image: its cache, and how what is missing gets there.
//!
//! ```text
//! wanted -> claim (once in this process) -> lock the range (once on this host) -> look again
//!        -> one ranged request -> verify -> write -> mark -> unlock -> land (whoever waits goes on)
//! ```
//! A process that is killed at any point leaves at most data that are not marked, and its locks vanish with it.
//! Whoever holds a lock waits for nothing but the backend, so nobody waits in a circle. A process that holds a lock
//! and does not move (stopped, or with a backend that hangs) is waited for a while, then the chunk is fetched twice and
//! kept by neither of the others.
//!
//! Others may believe another image that names the same blob, and go by what they have compared here. So nothing is
//! written where the map says that something is, or without the lock: files with content that is not the image's are
//! left to those who have them open, and others take their names.

use std::collections::HashMap;
use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, Guard};
use nydus_utils::metrics::{BlobcacheMetrics, Metric};

use super::cache_files::WriteError;
use super::chunk::Chunk;
use super::error::FetchError;
use super::events::report;
use super::flight::{Flights, Landing};
use super::gate::Gate;
use super::generation::Generation;
use super::layout_note::LayoutNote;
use super::origin::{Content, Origin};
use super::range_lock::RangeLock;
use super::retry::{Retry, RetryPolicy};
use super::runs::merge;
use super::settling::{self, Unsettled};
use crate::metrics::{FetchCounters, Reason};

/// Who waits for a fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Urgency {
    /// A guest does: it is retried, and another process' fetch of the same is waited for.
    Demand,
    /// One will soon: one attempt, and what another process is at is left to it.
    Ahead,
    /// Perhaps nobody ever will. As `Ahead`, when nobody waits for anything.
    Prefetch,
}

/// Limits of a blob's fetches.
#[derive(Debug, Clone, Copy)]
pub(super) struct FetchPolicy {
    pub(super) retry: RetryPolicy,
    /// How long another process may have a range before it is fetched beside it.
    pub(super) lock_patience: Duration,
    /// The most that one request asks the backend for, in bytes; a single chunk may be more.
    pub(super) request_limit: u64,
}

impl Default for FetchPolicy {
    fn default() -> Self {
        Self {
            retry: RetryPolicy::default(),
            lock_patience: Duration::from_secs(2),
            request_limit: 2 << 20,
        }
    }
}

/// The pause between looks at a range that another process has: short beside any request.
const LOCK_PAUSE: Duration = Duration::from_millis(1);
/// How often a chunk is fetched for one reader when the cache loses it each time.
const ROUNDS: usize = 4;

/// What a blob is made of.
pub(super) struct BlobParts {
    pub(super) id: String,
    /// The cache directory.
    pub(super) dir: PathBuf,
    /// The length of all content, in bytes.
    pub(super) size: u64,
    pub(super) chunks: u32,
    /// Where all of them are in the cache, if that is known before [`Blob::lay_out`].
    pub(super) layout: Option<LayoutNote>,
    pub(super) origin: Box<dyn Origin>,
    /// Whether there is anything to compare chunks with.
    pub(super) compares: bool,
    pub(super) policy: FetchPolicy,
    pub(super) counters: Arc<BlobcacheMetrics>,
    /// Held while somebody waits.
    pub(super) gate: Arc<Gate>,
    pub(super) fetches: Arc<FetchCounters>,
}

/// A chunk's content that is not in the cache, by the chunk's number.
pub(super) type Held = (u32, Arc<Vec<u8>>);

/// What a reader gets.
#[derive(Debug, Default)]
pub(super) struct Supply {
    /// What the cache did not take.
    pub(super) held: Vec<Held>,
    /// How many chunks were fetched for this reader, rather than found or waited for.
    pub(super) fetched: usize,
}

impl Supply {
    /// Those of `wanted` that are neither here nor in the cache.
    fn lacks<'w>(&self, generation: &Generation, wanted: &'w [Chunk]) -> impl Iterator<Item = &'w Chunk> {
        let is_here = |id| generation.has(id) || self.held.iter().any(|(held, _)| *held == id);
        wanted.iter().filter(move |c| !is_here(c.id))
    }
}

/// One blob.
pub(super) struct Blob {
    parts: BlobParts,
    present: ArcSwap<Generation>,
    /// What new files are made with; one makes them at a time.
    replacing: Mutex<Option<LayoutNote>>,
    flights: Flights,
    /// The cache takes nothing, and that has been said.
    refusing: AtomicBool,
}

impl Blob {
    /// Opens the blob's cache.
    ///
    /// # Errors
    /// What the file system said.
    pub(super) fn open(parts: BlobParts) -> io::Result<Self> {
        let present = ArcSwap::from_pointee(Generation::open(&parts, parts.layout)?);
        Ok(Self {
            present,
            replacing: Mutex::new(parts.layout),
            parts,
            flights: Flights::default(),
            refusing: AtomicBool::new(false),
        })
    }

    /// The cache files now.
    pub(super) fn generation(&self) -> Guard<Arc<Generation>> {
        self.present.load()
    }

    /// The length of all content, in bytes.
    pub(super) fn size(&self) -> u64 {
        self.parts.size
    }

    /// How many chunks it has.
    pub(super) fn chunks(&self) -> u32 {
        self.parts.chunks
    }

    /// Where all chunks are has become known. Before, nothing may be fetched.
    pub(super) fn lay_out(&self, layout: impl FnOnce() -> LayoutNote) {
        let mut known = self.replacing();
        if known.is_none() {
            let layout = *known.insert(layout());
            let present = Arc::clone(&self.generation());
            if !present.files.is_laid_out(layout).unwrap_or(false) {
                self.replace_as(&present, &self.failure(WriteError::AnothersLayout), *known);
            }
        }
    }

    fn replacing(&self) -> MutexGuard<'_, Option<LayoutNote>> {
        self.replacing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// nydus' counters of the cache.
    pub(super) fn counters(&self) -> &BlobcacheMetrics {
        &self.parts.counters
    }

    /// Has chunks fetched that are not in the cache, and waits for them. What the cache did not take is returned.
    ///
    /// # Errors
    /// Why one of them is not to be had. Unless a guest waits there is no error: chunks may just be missing.
    pub(super) fn ensure(&self, wanted: &[Chunk], urgency: Urgency) -> Result<Supply, Arc<FetchError>> {
        self.ensure_first(wanted, wanted.len(), urgency)
    }

    /// The same for the first `needed`. The others come along if they can.
    ///
    /// # Errors
    /// Why one of the first is not to be had.
    pub(super) fn ensure_first(
        &self,
        wanted: &[Chunk],
        needed: usize,
        urgency: Urgency,
    ) -> Result<Supply, Arc<FetchError>> {
        let (mut supply, mut wanted, needed) = (Supply::default(), wanted, &wanted[..needed]);
        // A backend that gives nothing is tried for a time once, however much is wanted of it.
        let mut since = Instant::now();
        for _ in 0..ROUNDS {
            let generation = self.generation();
            let missing: Vec<Chunk> = supply.lacks(&generation, wanted).cloned().collect();
            if missing.is_empty() {
                return Ok(supply);
            }
            let mut claim = self.flights.claim(&missing, |id| generation.has(id));
            let mine = claim.mine.clone();
            supply.fetched += mine.len();
            let _pass = (urgency != Urgency::Prefetch).then(|| self.parts.gate.pass());
            let mut landings = Vec::with_capacity(missing.len());
            let is_needed = |id: u32| needed.iter().any(|c| c.id == id);
            for group in merge(&mine, self.parts.policy.request_limit) {
                let results = self.fetch(&mine[group.clone()], &is_needed, urgency, since);
                let mut failure = None;
                for (chunk, landing) in mine[group].iter().zip(results) {
                    claim.land(landing.clone());
                    if let Landing::Failed(error) = &landing {
                        failure = Some(Arc::clone(error));
                    }
                    landings.push((chunk.id, landing));
                }
                if let Some(error) = failure {
                    // Whoever waits for the rest of the claim tries for himself.
                    return Err(error);
                }
                since = Instant::now();
            }
            if urgency != Urgency::Demand {
                return Ok(supply);
            }
            let others = claim.others.iter().filter(|(chunk, _)| is_needed(chunk.id));
            landings.extend(others.map(|(chunk, flight)| (chunk.id, flight.wait())));
            for (id, landing) in landings {
                match landing {
                    Landing::Held(content) => supply.held.push((id, content)),
                    Landing::Failed(error) => return Err(error),
                    Landing::Stored | Landing::Abandoned => {}
                }
            }
            // What came along did so once.
            wanted = needed;
        }
        let lost = supply.lacks(&self.generation(), needed).next().map(|c| c.id);
        match lost {
            None => Ok(supply),
            Some(chunk) => Err(Arc::new(FetchError::Cache {
                blob: self.parts.id.clone(),
                chunk,
            })),
        }
    }

    /// Fetches one group, as often as it takes and is allowed; one landing for each chunk. `since` is when something
    /// was last had, or first wanted. What is not needed is asked for once.
    fn fetch(
        &self,
        group: &[Chunk],
        is_needed: &dyn Fn(u32) -> bool,
        urgency: Urgency,
        since: Instant,
    ) -> Vec<Landing> {
        let mut retry = Retry::begin(self.parts.policy.retry, since);
        let lock_until = Instant::now() + self.parts.policy.lock_patience;
        let mut left = group.to_vec();
        let mut landed = HashMap::new();
        let rest = loop {
            let Err(error) = self.attempt(&left, urgency, lock_until, &mut landed) else {
                break Landing::Abandoned;
            };
            left.retain(|c| is_needed(c.id) && !landed.contains_key(&c.id));
            if urgency != Urgency::Demand || left.is_empty() {
                tracing::debug!(%error, "what was to come along did not");
                break Landing::Abandoned;
            }
            report(&error);
            match retry.after(error.cause(), Instant::now()) {
                // The range is not locked meanwhile: another process may have more luck.
                Some(pause) => sleep(pause),
                None => break Landing::Failed(Arc::new(error)),
            }
        };
        let landing = |chunk: &Chunk| {
            let fails = is_needed(chunk.id) || matches!(rest, Landing::Abandoned);
            let rest = if fails { &rest } else { &Landing::Abandoned };
            landed.remove(&chunk.id).unwrap_or_else(|| rest.clone())
        };
        group.iter().map(landing).collect()
    }

    /// One attempt at a group. Those that are had land; none if another process is at it.
    ///
    /// # Errors
    /// Why one of the others is not had.
    fn attempt(
        &self,
        group: &[Chunk],
        urgency: Urgency,
        lock_until: Instant,
        landed: &mut HashMap<u32, Landing>,
    ) -> Result<(), FetchError> {
        let generation = self.generation();
        let Ok(hold) = lock(&generation, group, urgency, lock_until) else {
            return Ok(());
        };
        let (here, missing): (Vec<&Chunk>, Vec<&Chunk>) = group.iter().partition(|c| generation.look(c.id));
        landed.extend(here.iter().map(|c| (c.id, Landing::Stored)));
        let missing: Vec<Chunk> = missing.into_iter().cloned().collect();
        let mut wrong = None;
        for part in merge(&missing, self.parts.policy.request_limit) {
            let part = &missing[part];
            for (chunk, content) in part.iter().zip(self.request(part, urgency)?) {
                let landing = match (content, &hold) {
                    (Ok(content), Hold::Locked(_) | Hold::Unlockable) => {
                        self.store(&generation, chunk, content)
                    }
                    (Ok(content), Hold::None) => Landing::Held(Arc::new(content)),
                    (Err(error), _) => {
                        wrong.get_or_insert(error);
                        continue;
                    }
                };
                landed.insert(chunk.id, landing);
            }
        }
        wrong.map_or(Ok(()), Err)
    }

    fn request(&self, part: &[Chunk], urgency: Urgency) -> Result<Vec<Content>, FetchError> {
        let reason = match urgency {
            Urgency::Demand => Reason::Demand,
            Urgency::Ahead => Reason::ReadAhead,
            Urgency::Prefetch => Reason::Prefetch,
        };
        let begin = part.first().map_or(0, |first| first.blob_offset);
        let bytes = part
            .last()
            .map_or(0, |last| last.blob_end().saturating_sub(begin));
        let since = Instant::now();
        let result = self.parts.origin.fetch(part);
        let is_failed = result
            .as_ref()
            .map_or(true, |contents| contents.iter().any(Result::is_err));
        self.parts.fetches.note(reason, bytes, since.elapsed(), is_failed);
        result
    }

    /// Puts a chunk in the cache. Where the cache does not take it, whoever waits for it gets it all the same.
    fn store(&self, generation: &Arc<Generation>, chunk: &Chunk, content: Vec<u8>) -> Landing {
        if generation.is_abandoned() {
            // There are no new ones yet.
            self.replace(generation, &self.failure(WriteError::Truncated));
            return Landing::Held(Arc::new(content));
        }
        // A nydusd asks for no lock.
        if generation.files.is_ready(chunk.id).unwrap_or(false) {
            return Landing::Held(Arc::new(content));
        }
        match generation.files.write(&content, chunk.offset) {
            Ok(()) => {
                // Without the mark others, and the next mount, will fetch it again.
                if let Err(error) = generation.files.mark(chunk.id) {
                    self.cache_failed(error);
                }
                generation.note_compared(chunk.id);
                generation.ready.set(chunk.id);
                self.settle_later(generation);
                self.parts.counters.entries_count.inc();
                self.refusing.store(false, Ordering::Relaxed);
                Landing::Stored
            }
            Err(WriteError::Truncated) => {
                self.replace(generation, &self.failure(WriteError::Truncated));
                Landing::Held(Arc::new(content))
            }
            Err(error) => {
                self.refused(error);
                Landing::Held(Arc::new(content))
            }
        }
    }

    fn settle_later(&self, generation: &Generation) {
        if !generation.unsettled.swap(true, Ordering::AcqRel) {
            settling::later(Unsettled {
                dir: self.parts.dir.clone(),
                blob: self.parts.id.clone(),
                size: self.parts.size,
                chunks: self.parts.chunks,
                waits: Arc::clone(&generation.unsettled),
            });
        }
    }

    /// A full disk is full for each chunk; that is said once, until it takes one again.
    fn refused(&self, source: impl Into<WriteError>) {
        if !self.refusing.swap(true, Ordering::Relaxed) {
            self.cache_failed(source);
        }
    }

    fn cache_failed(&self, source: impl Into<WriteError>) {
        report(&self.failure(source));
    }

    fn failure(&self, source: impl Into<WriteError>) -> CacheFailure {
        CacheFailure {
            blob: self.parts.id.clone(),
            source: source.into(),
        }
    }

    /// A chunk was not in the cache as it should have been. Whoever has compared it with another image's, or has it in
    /// another way, keeps the file that it is in.
    pub(super) fn lost(&self, generation: &Arc<Generation>, chunk: u32) {
        if generation.files.is_whole().unwrap_or(false) {
            let blob = self.parts.id.clone();
            self.replace(generation, &FetchError::Cache { blob, chunk });
        } else {
            self.replace(generation, &self.failure(WriteError::Truncated));
        }
    }

    /// Leaves cache files that were damaged for new ones, or for those that another process has made.
    fn replace(&self, damaged: &Arc<Generation>, why: &dyn Error) {
        let layout = self.replacing();
        self.replace_as(damaged, why, *layout);
    }

    /// The same for who makes them now.
    fn replace_as(&self, damaged: &Arc<Generation>, why: &dyn Error, layout: Option<LayoutNote>) {
        if !Arc::ptr_eq(damaged, &self.generation()) {
            return;
        }
        if damaged.abandon() {
            report(why);
        }
        let unnamed = damaged.files.unname(&self.parts.dir, &self.parts.id);
        match unnamed.and_then(|()| Generation::open(&self.parts, layout)) {
            Ok(generation) => {
                self.present.store(Arc::new(generation));
            }
            // Chunks are served without being kept, and the next one tries again.
            Err(error) => self.refused(error),
        }
    }
}

/// A cache that does not do what it should; reads go on without it.
#[derive(Debug, thiserror::Error)]
#[error("cache of blob {blob} fails")]
struct CacheFailure {
    blob: String,
    #[source]
    source: WriteError,
}

/// Another process is at the range.
struct Busy;

/// By what right content is written.
enum Hold<'a> {
    /// No other process writes there.
    Locked(#[expect(dead_code, reason = "unlocks when it is dropped")] RangeLock<'a>),
    /// The file system has no locks: others write the same, unless they believe another image.
    Unlockable,
    /// By none: another process has put everything there meanwhile, or takes too long and may write at any time.
    None,
}

/// Locks the range of a group against other processes.
fn lock<'a>(
    generation: &'a Generation,
    group: &[Chunk],
    urgency: Urgency,
    until: Instant,
) -> Result<Hold<'a>, Busy> {
    let (Some(first), Some(last)) = (group.first(), group.last()) else {
        return Ok(Hold::None);
    };
    loop {
        match RangeLock::try_take(generation.files.data(), first.offset, last.end() - first.offset) {
            Ok(Some(lock)) => return Ok(Hold::Locked(lock)),
            Ok(None) if urgency != Urgency::Demand => return Err(Busy),
            Ok(None) => {}
            Err(_) => return Ok(Hold::Unlockable),
        }
        if group.iter().all(|c| generation.look(c.id))
            || generation.is_overdue(group, Instant::now() >= until)
        {
            return Ok(Hold::None);
        }
        sleep(LOCK_PAUSE);
    }
}

#[cfg(test)]
#[path = "blob_tests.rs"]
mod tests;
