//! When content of a cache is written to the disk: a while after it came, by a thread of its own that nobody waits for.
//!
//! By name: nothing of a cache is kept open for it, so that it neither outlives its mount nor stays when it is removed.
//! What it is for is in `settled.rs`.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::cache_files::CacheFiles;

/// How long content waits: what is fetched at the start of a program comes together, and goes to the disk at once. What
/// came later than that before the machine's end is fetched again.
const WAIT: Duration = Duration::from_secs(10);

/// A blob's cache that has content which may not be on the disk.
#[derive(Debug)]
pub(super) struct Unsettled {
    pub(super) dir: PathBuf,
    pub(super) blob: String,
    pub(super) size: u64,
    pub(super) chunks: u32,
    /// It waits. Whoever adds content after this is false again says so again.
    pub(super) waits: Arc<AtomicBool>,
}

impl Unsettled {
    fn settle(&self) {
        self.waits.store(false, Ordering::Release);
        let settled = CacheFiles::find(&self.dir, &self.blob, self.size, self.chunks)
            .and_then(|found| found.map_or(Ok(()), |files| files.settle()));
        if let Err(error) = settled {
            // It is fetched again after the machine's next start.
            tracing::debug!(blob = self.blob, %error, "a cache is not known to be on the disk");
        }
    }
}

struct State {
    /// In the order in which they are due.
    waiting: VecDeque<(Instant, Unsettled)>,
    runs: bool,
}

static STATE: Mutex<State> = Mutex::new(State {
    waiting: VecDeque::new(),
    runs: false,
});

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Has a cache written to the disk later.
pub(super) fn later(cache: Unsettled) {
    let mut state = state();
    state.waiting.push_back((Instant::now() + WAIT, cache));
    if !state.runs {
        let thread = thread::Builder::new().name("image-settler".to_owned());
        // Without threads nothing is known to be on the disk.
        state.runs = thread.spawn(run).is_ok();
    }
}

fn run() {
    loop {
        let mut state = state();
        let Some((due, cache)) = state.waiting.pop_front() else {
            state.runs = false;
            return;
        };
        drop(state);
        thread::sleep(due.saturating_duration_since(Instant::now()));
        cache.settle();
    }
}
