//! The time, so that tests need not wait for it.

use std::fmt;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Tells the time and waits.
pub(super) trait Clock: fmt::Debug + Send + Sync {
    fn now(&self) -> Instant;

    fn wait(&self, time: Duration);

    /// Between 0 and 1, another one for each who asks.
    fn scatter(&self) -> f64;
}

/// The machine's clock.
#[derive(Debug)]
pub(super) struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn wait(&self, time: Duration) {
        thread::sleep(time);
    }

    fn scatter(&self) -> f64 {
        let nanos = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .subsec_nanos();
        f64::from(nanos % 1_000_000) / 1e6
    }
}
