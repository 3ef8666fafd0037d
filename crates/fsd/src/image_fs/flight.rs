//! Which chunks are being fetched by this process, and who waits for them.
//!
//! Who claims a chunk fetches it; whoever needs it meanwhile waits for the same result. Every claim lands: also
//! when its owner panics.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::chunk::Chunk;
use super::error::FetchError;

/// How a fetch ended.
#[derive(Debug, Clone)]
pub(super) enum Landing {
    /// The chunk is in the cache.
    Stored,
    /// The chunk was fetched but the cache did not take it.
    Held(Arc<Vec<u8>>),
    /// The backend did not give it, in the time a guest is kept waiting.
    Failed(Arc<FetchError>),
    /// Whoever fetched it gave up early; who needs it tries for itself.
    Abandoned,
}

/// One chunk being fetched.
#[derive(Debug, Default)]
pub(super) struct Flight {
    landing: Mutex<Option<Landing>>,
    landed: Condvar,
}

impl Flight {
    /// Waits for the result.
    pub(super) fn wait(&self) -> Landing {
        let mut landing = lock(&self.landing);
        loop {
            match &*landing {
                Some(landing) => return landing.clone(),
                None => landing = self.landed.wait(landing).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

/// All chunks of a blob that are being fetched.
#[derive(Debug, Default)]
pub(super) struct Flights {
    table: Mutex<HashMap<u32, Arc<Flight>>>,
}

/// What of a request is ours to fetch, and what others are at.
#[derive(Debug)]
pub(super) struct Claim<'a> {
    flights: &'a Flights,
    /// To be fetched by the owner of the claim; each must land.
    pub(super) mine: Vec<Chunk>,
    /// Being fetched by others.
    pub(super) others: Vec<(Chunk, Arc<Flight>)>,
    landed: usize,
}

impl Flights {
    /// Claims those of `wanted` that are neither ready nor being fetched.
    pub(super) fn claim(&self, wanted: &[Chunk], is_ready: impl Fn(u32) -> bool) -> Claim<'_> {
        let mut claim = Claim {
            flights: self,
            mine: Vec::new(),
            others: Vec::new(),
            landed: 0,
        };
        let mut table = lock(&self.table);
        for chunk in wanted {
            if let Some(flight) = table.get(&chunk.id) {
                claim.others.push((chunk.clone(), Arc::clone(flight)));
            } else if !is_ready(chunk.id) {
                // Asked under the lock: what has landed is marked ready before it leaves the table.
                table.insert(chunk.id, Arc::default());
                claim.mine.push(chunk.clone());
            }
        }
        claim
    }

    fn land(&self, id: u32, landing: Landing) {
        let flight = lock(&self.table).remove(&id);
        if let Some(flight) = flight {
            *lock(&flight.landing) = Some(landing);
            flight.landed.notify_all();
        }
    }
}

impl Claim<'_> {
    /// Gives the result of the next of `mine`, in order.
    pub(super) fn land(&mut self, landing: Landing) {
        if let Some(chunk) = self.mine.get(self.landed) {
            self.flights.land(chunk.id, landing);
            self.landed += 1;
        }
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        for chunk in &self.mine[self.landed..] {
            self.flights.land(chunk.id, Landing::Abandoned);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::super::runs::tests::chunk;
    use super::*;

    #[test]
    fn a_chunk_is_claimed_once_and_its_landing_is_everybodys() {
        let flights = Flights::default();
        let (a, b) = (chunk(1, 0, 1, 0, 1), chunk(2, 1, 1, 1, 1));
        let mut first = flights.claim(&[a.clone(), b.clone()], |_| false);
        assert_eq!(first.mine.len(), 2);
        let second = flights.claim(&[a.clone(), b.clone()], |_| false);
        assert_eq!((second.mine.len(), second.others.len()), (0, 2));
        first.land(Landing::Stored);
        drop(first);
        assert!(matches!(second.others[0].1.wait(), Landing::Stored));
        assert!(
            matches!(second.others[1].1.wait(), Landing::Abandoned),
            "a dropped claim lands"
        );
        let third = flights.claim(&[a, b], |id| id == 1);
        assert_eq!(
            third.mine.iter().map(|c| c.id).collect::<Vec<_>>(),
            [2],
            "1 is ready"
        );
    }
}
