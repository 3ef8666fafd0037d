//! The thread that sees to it that no request waits behind another one's backend.
//!
//! A worker that serves a ring has told the guest not to kick. If its request blocks, nobody looks at the ring: the
//! monitor notices within a tick and has a colleague look, who is woken or, if all are blocked, added. When requests
//! go on blocking, workers are told to have a colleague watch before each. It sees to it that no more of
//! files is mapped than is worth its page tables and, when nobody works, that the process takes little memory; then it
//! sleeps without a timer.

use std::sync::Weak;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use super::headcount::Count;
use super::pool::{Shared, spawn_worker};
use super::ring::Ring;
use crate::sys::footprint;

/// How often it looks. Long against a warm request (tens of µs), short against what a guest feels.
const TICK: Duration = Duration::from_millis(1);
/// A request that takes so long waits for something slow; the kernel preempts a thread for less.
const SLOW: Duration = Duration::from_millis(8);
/// Ticks without a slow request after which workers are no longer wary.
const CALM: u32 = 100;
/// Ticks without anybody working after which it sleeps.
const QUIET: u32 = 50;
/// Ticks between looks at how much of files is mapped.
const LOOK: u32 = 1000;
/// How long nobody has to have worked until what it takes to work is given back: as long as surplus workers stay.
const LONG: Duration = Duration::from_secs(10);

/// What a tick has to do something about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    count: Count,
    /// Workers in the same request for a tick.
    stuck: usize,
    /// Whether a guest was told not to kick.
    quiet: bool,
    /// Whether nobody is awake where one was.
    left: bool,
}

/// What is done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Relief {
    None,
    Wake,
    Add,
}

fn relief(seen: Seen) -> Relief {
    let awake = usize::try_from(seen.count.awake()).unwrap_or(usize::MAX);
    if seen.left {
        // The last one asks for kicks before it sleeps, as it may be about to. Had one not, its guest would wait for ever.
        Relief::Wake
    } else if seen.stuck == 0 || awake > seen.stuck {
        // Whoever is awake and not stuck serves all rings before it sleeps.
        Relief::None
    } else if seen.count.idle == 0 {
        Relief::Add
    } else if seen.quiet {
        Relief::Wake
    } else {
        // The next kick wakes one of those who sleep.
        Relief::None
    }
}

/// Runs until the pool ends. Holds it weakly: it ends with it.
pub(super) fn run(pool: &Weak<Shared>) {
    let (mut quiet_ticks, mut calm_ticks, mut ticks) = (0, 0, 0_u32);
    let mut memory = Memory::Untidy;
    loop {
        let pause = {
            let Some(shared) = pool.upgrade() else { return };
            if shared.stopped.load(Ordering::SeqCst) {
                return;
            }
            tick(&shared, &mut calm_ticks);
            ticks = ticks.wrapping_add(1);
            if ticks.is_multiple_of(LOOK) {
                footprint::bound();
            }
            let awake = |shared: &Shared| shared.headcount.now().awake() > 0;
            quiet_ticks = if awake(&shared) { 0 } else { quiet_ticks + 1 };
            // First the flag, then the look; a worker that wakes does it the other way round.
            let sleep = quiet_ticks > QUIET && {
                shared.monitor_asleep.store(true, Ordering::SeqCst);
                !awake(&shared)
            };
            if sleep {
                if shared.untidy.swap(false, Ordering::SeqCst) {
                    memory = Memory::Untidy;
                }
                memory.rest()
            } else {
                Some(TICK)
            }
        };
        let Some(pause) = pause else {
            thread::park();
            (quiet_ticks, memory) = (0, memory.after_work());
            continue;
        };
        let began = Instant::now();
        thread::park_timeout(pause);
        if pause == LONG {
            (quiet_ticks, memory) = if began.elapsed() < LONG {
                (0, memory.after_work())
            } else {
                (quiet_ticks, Memory::Untidy)
            };
        }
    }
}

/// What there is to give back of what work has left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Memory {
    /// Nothing.
    Tidy,
    /// Something, which the next request would want again.
    InUse,
    /// Something that nobody needs soon.
    Untidy,
}

impl Memory {
    /// Nobody works: gives back what is not needed, and says how long to sleep, if not until there is work.
    fn rest(&mut self) -> Option<Duration> {
        match self {
            Self::Tidy => return None,
            Self::InUse => return Some(LONG),
            Self::Untidy => footprint::give_back(),
        }
        *self = Self::Tidy;
        None
    }

    fn after_work(self) -> Self {
        if self == Self::Untidy { self } else { Self::InUse }
    }
}

fn tick(shared: &std::sync::Arc<Shared>, calm_ticks: &mut u32) {
    shared.monitor_asleep.store(false, Ordering::SeqCst);
    let stuck = shared.inflight.busy_for(TICK);
    if stuck > 0 {
        // What was done before the request that blocks must not wait for it.
        shared.rings.iter().for_each(Ring::show);
    }
    if stuck > 0 && shared.inflight.busy_for(SLOW) > 0 {
        *calm_ticks = 0;
        shared.wary.store(true, Ordering::Relaxed);
    } else if *calm_ticks < CALM {
        *calm_ticks += 1;
    } else {
        shared.wary.store(false, Ordering::Relaxed);
    }
    let count = shared.headcount.now();
    match relief(Seen {
        count,
        stuck,
        quiet: shared.rings.iter().any(Ring::is_quiet),
        left: count.awake() == 0 && shared.rings.iter().any(Ring::is_left_quiet),
    }) {
        Relief::None => {}
        Relief::Wake => shared.wake_one(),
        Relief::Add => {
            if let Err(e) = spawn_worker(shared) {
                tracing::warn!(error = %e, "no worker could be added although all are blocked");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_colleague_is_added_only_when_all_are_stuck_and_woken_only_when_no_kick_would() {
        let seen = |threads, idle, stuck, quiet| Seen {
            count: Count { threads, idle },
            stuck,
            quiet,
            left: false,
        };
        assert_eq!(relief(seen(2, 0, 2, true)), Relief::Add);
        assert_eq!(relief(seen(2, 0, 2, false)), Relief::Add);
        assert_eq!(relief(seen(2, 1, 1, true)), Relief::Wake);
        assert_eq!(relief(seen(2, 1, 1, false)), Relief::None);
        assert_eq!(
            relief(seen(3, 1, 1, true)),
            Relief::None,
            "one is awake and moves on"
        );
        assert_eq!(relief(seen(2, 2, 0, true)), Relief::None);
        let left = Seen {
            left: true,
            ..seen(2, 2, 0, true)
        };
        assert_eq!(relief(left), Relief::Wake, "nobody would look");
    }
}
