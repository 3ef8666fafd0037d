//! How many workers there are, and how many of them sleep: one value that changes in one step.
//!
//! A guest that was told not to kick relies on somebody being awake, and a worker that goes back to sleep without
//! asking for a kick relies on another one. Were the two numbers changed one after the other, a worker that leaves for
//! good would count as awake for a moment: the other would rely on one who looks at no ring any more, and the guest
//! would wait for ever. `worker.rs` says when which step is taken.

use std::sync::atomic::{AtomicU64, Ordering};

/// The two numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) struct Count {
    /// Workers that there are.
    pub(super) threads: u32,
    /// Those that sleep, or are about to and will look once more.
    pub(super) idle: u32,
}

impl Count {
    /// Workers that look at all rings before they sleep.
    pub(super) fn awake(self) -> u32 {
        self.threads.saturating_sub(self.idle)
    }

    /// There is one more, who is awake.
    fn with_another(self) -> Self {
        Self {
            threads: self.threads.saturating_add(1),
            ..self
        }
    }

    /// One who was awake is gone.
    fn without_one(self) -> Self {
        Self {
            threads: self.threads.saturating_sub(1),
            ..self
        }
    }

    /// One sleeps.
    fn with_one_idle(self) -> Self {
        Self {
            idle: self.idle.saturating_add(1),
            ..self
        }
    }

    /// One who slept is awake.
    fn with_one_woken(self) -> Self {
        Self {
            idle: self.idle.saturating_sub(1),
            ..self
        }
    }

    /// One who was awake sleeps, and leaves the rings to another who is awake, if there is one.
    fn with_one_excused(self) -> Option<Self> {
        (self.awake() > 1).then(|| self.with_one_idle())
    }

    /// One who slept is gone, if there are more than the base number. Nobody has relied on him.
    fn with_one_retired(self, base: u32) -> Option<Self> {
        (self.threads > base).then(|| self.with_one_woken().without_one())
    }

    fn pack(self) -> u64 {
        u64::from(self.threads) << 32 | u64::from(self.idle)
    }

    fn unpack(packed: u64) -> Self {
        let half = |half: u64| u32::try_from(half & u64::from(u32::MAX)).unwrap_or(u32::MAX);
        Self {
            threads: half(packed >> 32),
            idle: half(packed),
        }
    }
}

/// The present [`Count`].
#[derive(Debug, Default)]
pub(super) struct Headcount(AtomicU64);

impl Headcount {
    /// The numbers now.
    pub(super) fn now(&self) -> Count {
        Count::unpack(self.0.load(Ordering::SeqCst))
    }

    /// A worker is about to begin.
    pub(super) fn join(&self) {
        self.change(Count::with_another);
    }

    /// A worker that is awake ends, or never began. Others may have relied on it: have one look.
    pub(super) fn leave(&self) {
        self.change(Count::without_one);
    }

    /// This worker sleeps once it has asked for kicks and looked once more.
    pub(super) fn sleep(&self) {
        self.change(Count::with_one_idle);
    }

    /// This worker will look at all rings.
    pub(super) fn wake(&self) {
        self.change(Count::with_one_woken);
    }

    /// This worker sleeps from now on, if another one is awake; true if so.
    pub(super) fn excuse(&self) -> bool {
        self.try_change(Count::with_one_excused)
    }

    /// This worker, which sleeps, is gone if there are more than `base`; true if so.
    pub(super) fn retire(&self, base: u32) -> bool {
        self.try_change(|count| count.with_one_retired(base))
    }

    fn change(&self, step: impl Fn(Count) -> Count) {
        self.try_change(|count| Some(step(count)));
    }

    fn try_change(&self, step: impl Fn(Count) -> Option<Count>) -> bool {
        let step = |packed| step(Count::unpack(packed)).map(Count::pack);
        self.0
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, step)
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// What a worker is at, between two steps that others can see (`worker.rs`).
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    enum At {
        Serving,
        /// Counted as idle; asks for kicks next.
        Arming,
        /// Has asked for kicks and seen that there is something.
        Rousing,
        Asleep,
        /// Ends by a failure; has somebody look next.
        Failing,
        Gone,
    }

    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    struct World {
        count: Count,
        workers: [At; WORKERS],
        /// The guest was told not to kick.
        quiet: bool,
        /// One who sleeps was called, and none has come yet.
        called: bool,
    }

    const BASE: u32 = 2;
    const WORKERS: usize = 4;

    /// All that can happen next.
    fn steps(world: World) -> Vec<World> {
        let mut next = Vec::new();
        for worker in 0..WORKERS {
            let mut to = |at, count, quiet, called| {
                let mut workers = world.workers;
                workers[worker] = at;
                next.push(World {
                    count,
                    workers,
                    quiet,
                    called,
                });
            };
            let World {
                count, quiet, called, ..
            } = world;
            match world.workers[worker] {
                At::Serving => {
                    // A request is taken.
                    to(At::Serving, count, true, called);
                    to(At::Arming, count.with_one_idle(), quiet, called);
                    if let Some(count) = count.with_one_excused() {
                        to(At::Asleep, count, quiet, called);
                    }
                    to(At::Failing, count.without_one(), quiet, called);
                }
                At::Arming => {
                    to(At::Asleep, count, false, called);
                    to(At::Rousing, count, false, called);
                }
                At::Rousing => to(At::Serving, count.with_one_woken(), quiet, called),
                At::Asleep => {
                    // By the guest, or by a colleague.
                    if !quiet || called {
                        to(At::Serving, count.with_one_woken(), quiet, false);
                    }
                    // Its time is over.
                    match count.with_one_retired(BASE) {
                        Some(count) => to(At::Gone, count, quiet, called),
                        None => to(At::Serving, count.with_one_woken(), quiet, called),
                    }
                }
                At::Failing => to(At::Gone, count, quiet, true),
                // Another is begun in its place.
                At::Gone => to(At::Serving, count.with_another(), quiet, called),
            }
        }
        next
    }

    #[test]
    fn somebody_looks_at_a_ring_whose_guest_does_not_kick_whoever_leaves_meanwhile() {
        let begin = World {
            count: Count::default().with_another(),
            workers: [At::Serving, At::Gone, At::Gone, At::Gone],
            quiet: false,
            called: false,
        };
        let mut seen = HashSet::from([begin]);
        let mut new = vec![begin];
        while let Some(world) = new.pop() {
            let at = |wanted: &[At]| world.workers.iter().filter(|at| wanted.contains(at)).count();
            assert_eq!(
                (world.count.threads as usize, world.count.idle as usize),
                (
                    WORKERS - at(&[At::Gone, At::Failing]),
                    at(&[At::Arming, At::Rousing, At::Asleep])
                ),
                "{world:?}"
            );
            let looks = at(&[At::Serving, At::Arming, At::Failing]) > 0 || world.called;
            assert!(looks || !world.quiet, "{world:?}");
            new.extend(steps(world).into_iter().filter(|world| seen.insert(*world)));
        }
        assert!(seen.len() > 1000, "{}", seen.len());
    }

    #[test]
    fn steps_are_taken_as_they_are_decided() {
        let headcount = Headcount::default();
        for _ in 0..3 {
            headcount.join();
        }
        headcount.sleep();
        assert!(headcount.excuse() && !headcount.excuse(), "one stays awake");
        assert!(headcount.retire(2) && !headcount.retire(2));
        assert_eq!(headcount.now(), Count { threads: 2, idle: 1 });
        headcount.wake();
        headcount.leave();
        assert_eq!(headcount.now(), Count { threads: 1, idle: 0 });
    }
}
