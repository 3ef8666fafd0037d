//! A time that is waited for by what is polled anew again and again.
//!
//! A timer made for each wait is entered into the runtime's books with the first poll, and taken out when the wait is
//! dropped. This one stays there until it rings or is waited for at another time: to set it costs nothing.

use std::pin::Pin;

use tokio::time::{Instant, Sleep, sleep_until};

/// A timer. Must be made within a runtime.
#[derive(Debug)]
pub(crate) struct Alarm {
    sleep: Pin<Box<Sleep>>,
    due: Instant,
}

impl Alarm {
    pub(crate) fn at(due: Instant) -> Self {
        Self {
            sleep: Box::pin(sleep_until(due)),
            due,
        }
    }

    /// When it rings, or has rung.
    #[cfg(test)]
    pub(crate) fn due(&self) -> Instant {
        self.due
    }

    pub(crate) fn set(&mut self, due: Instant) {
        self.due = due;
    }

    /// Waits until it rings; at once if it has. Cancel safe.
    pub(crate) async fn rung(&mut self) {
        if self.due != self.sleep.deadline() {
            self.sleep.as_mut().reset(self.due);
        }
        self.sleep.as_mut().await;
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
