//! The time, so that tests need not wait for it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Tells the time and waits.
pub(super) trait Clock: fmt::Debug + Send + Sync {
    fn now(&self) -> Instant;

    fn wait(&self, time: Duration);

    /// Between 0 and 1, another one for each who asks.
    fn scatter(&self) -> f64;
}

/// Whether the caller wants to wait no longer.
#[derive(Debug, Clone, Default)]
pub(super) struct Stop(Option<Arc<AtomicBool>>);

impl Stop {
    /// How soon after the caller said so a wait ends.
    pub(super) const NOTICED_WITHIN: Duration = Duration::from_millis(50);

    pub(super) fn new(flag: Option<Arc<AtomicBool>>) -> Self {
        Self(flag)
    }

    pub(super) fn is_set(&self) -> bool {
        self.0.as_ref().is_some_and(|flag| flag.load(Ordering::Relaxed))
    }
}

/// The machine's clock.
#[derive(Debug, Default)]
pub(super) struct SystemClock {
    /// Ends waits.
    pub(super) stop: Stop,
}

impl Clock for SystemClock {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn wait(&self, time: Duration) {
        let until = Instant::now() + time;
        while !self.stop.is_set() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            thread::sleep(left.min(Stop::NOTICED_WITHIN));
        }
    }

    fn scatter(&self) -> f64 {
        let nanos = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .subsec_nanos();
        f64::from(nanos % 1_000_000) / 1e6
    }
}
