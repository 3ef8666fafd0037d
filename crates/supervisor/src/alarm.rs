//! A time that is waited for by what is polled anew again and again.
//!
//! A timer made for each wait is entered into the runtime's books with the first poll, and taken out when the wait is
//! dropped. This one stays there until it rings or is set to another time.

use std::pin::Pin;

use tokio::time::{Instant, Sleep, sleep_until};

/// A timer. Must be made within a runtime.
#[derive(Debug)]
pub(crate) struct Alarm(Pin<Box<Sleep>>);

impl Alarm {
    pub(crate) fn at(due: Instant) -> Self {
        Self(Box::pin(sleep_until(due)))
    }

    /// When it rings, or has rung.
    pub(crate) fn due(&self) -> Instant {
        self.0.deadline()
    }

    pub(crate) fn set(&mut self, due: Instant) {
        if due != self.due() {
            self.0.as_mut().reset(due);
        }
    }

    /// Waits until it rings; at once if it has. Cancel safe.
    pub(crate) async fn rung(&mut self) {
        self.0.as_mut().await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_rings_when_it_was_set_to_however_often_it_is_asked() {
        let begun = Instant::now();
        let after = |seconds| begun + Duration::from_secs(seconds);
        let mut alarm = Alarm::at(after(10));
        for _ in 0..3 {
            let waited = timeout(Duration::from_secs(2), alarm.rung()).await;
            assert!(waited.is_err());
        }
        alarm.set(after(20));
        alarm.rung().await;
        assert_eq!(begun.elapsed(), Duration::from_secs(20));
        alarm.rung().await;
        assert_eq!(begun.elapsed(), Duration::from_secs(20), "it has rung");
        alarm.set(after(30));
        alarm.set(after(25));
        alarm.rung().await;
        assert_eq!(begun.elapsed(), Duration::from_secs(25));
    }
}
