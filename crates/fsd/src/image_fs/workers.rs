//! The threads that fetch ahead: few, started when there is something to do, gone when there is not.
//!
//! They are not waited for at the end. What they do is never more than a request to a backend, and a backend may
//! take its time to answer one.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// Requests ahead that are under way at once, over all images.
const THREADS: usize = 8;
/// Work that waits; what comes on top is dropped, and fetched when it is asked for.
const QUEUE: usize = 64;
/// How long a thread without work stays.
const LINGER: Duration = Duration::from_secs(2);

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
    stopping: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    wake: Condvar,
}

/// The threads; the end of this value is the end of them.
#[derive(Default)]
pub(crate) struct Workers {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Workers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Workers").finish_non_exhaustive()
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut state = self.state();
        while !state.stopping {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                // What a job is about guards itself; the thread has others to do.
                if catch_unwind(AssertUnwindSafe(job)).is_err() {
                    tracing::error!("a fetch ahead failed unexpectedly");
                }
                state = self.state();
                continue;
            }
            state.idle += 1;
            let (next, waited) = self
                .wake
                .wait_timeout(state, LINGER)
                .unwrap_or_else(PoisonError::into_inner);
            state = next;
            state.idle -= 1;
            if waited.timed_out() && state.jobs.is_empty() {
                break;
            }
        }
        // Under the lock that a new job is submitted under: it finds this thread here, or gone.
        state.threads -= 1;
    }
}

impl Workers {
    /// Has a job done by one of the threads, or drops it if there are too many.
    pub(super) fn submit(&self, job: impl FnOnce() + Send + 'static) {
        let mut state = self.shared.state();
        if state.jobs.len() >= QUEUE {
            return;
        }
        state.jobs.push_back(Box::new(job));
        if state.jobs.len() > state.idle && state.threads < THREADS {
            let shared = Arc::clone(&self.shared);
            let spawned = thread::Builder::new()
                .name("read-ahead".into())
                .spawn(move || shared.run());
            // Without threads nothing is fetched ahead.
            state.threads += usize::from(spawned.is_ok());
        } else {
            self.shared.wake.notify_one();
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.stopping = true;
        state.jobs.clear();
        drop(state);
        self.shared.wake.notify_all();
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn jobs_run_beside_each_other_and_the_rest_is_dropped_at_the_end() {
        let workers = Workers::default();
        let (tell, told) = mpsc::channel();
        let meet = Arc::new(std::sync::Barrier::new(THREADS));
        for n in 0..THREADS {
            let (tell, meet) = (tell.clone(), Arc::clone(&meet));
            workers.submit(move || {
                meet.wait();
                tell.send(n).unwrap();
            });
        }
        drop(tell);
        let mut done: Vec<usize> = told.iter().collect();
        done.sort_unstable();
        assert_eq!(done, (0..THREADS).collect::<Vec<_>>());
        let shared = Arc::downgrade(&workers.shared);
        drop(workers);
        assert!(shared.upgrade().is_none_or(|s| s.state().stopping));
    }

    #[test]
    fn a_job_that_panics_takes_no_thread_with_it() {
        let workers = Workers::default();
        for _ in 0..THREADS {
            workers.submit(|| panic!("a job's own fault"));
        }
        let (tell, told) = mpsc::channel();
        workers.submit(move || tell.send(()).unwrap());
        assert!(told.recv().is_ok());
    }
}
