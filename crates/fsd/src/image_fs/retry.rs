//! When a failed request to a backend is made again. Pure: the time is given.

use std::time::{Duration, Instant};

/// Limits of a retry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RetryPolicy {
    /// No attempt begins later than this after the first one.
    pub(super) deadline: Duration,
    /// The pause after the first failure; it doubles each time.
    pub(super) first_pause: Duration,
    /// The longest pause.
    pub(super) longest_pause: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            // A guest's program waits this long for a backend that comes back, and not much longer for one that
            // does not.
            deadline: Duration::from_secs(5),
            first_pause: Duration::from_millis(50),
            longest_pause: Duration::from_secs(1),
        }
    }
}

/// How an attempt went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// The backend did not answer, or refused: it may be different a moment later.
    Unreachable,
    /// It answered with what cannot be right: too little, or damaged. Once more, in case the way was at fault.
    WrongContent,
    /// The backend was not asked, because there is nowhere to put its answer. That takes longer to change.
    NoRoom,
}

/// The attempts of one request.
#[derive(Debug)]
pub(super) struct Retry {
    policy: RetryPolicy,
    began: Instant,
    pause: Duration,
    wrong: u32,
}

impl Retry {
    pub(super) fn begin(policy: RetryPolicy, now: Instant) -> Self {
        Self {
            policy,
            began: now,
            pause: policy.first_pause,
            wrong: 0,
        }
    }

    /// How long to pause before the next attempt; `None` to give up.
    pub(super) fn after(&mut self, cause: Cause, now: Instant) -> Option<Duration> {
        match cause {
            Cause::Unreachable => {}
            Cause::WrongContent => {
                self.wrong += 1;
                if self.wrong > 1 {
                    return None;
                }
            }
            Cause::NoRoom => return None,
        }
        let pause = self.pause;
        self.pause = (self.pause * 2).min(self.policy.longest_pause);
        (now.saturating_duration_since(self.began) + pause <= self.policy.deadline).then_some(pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_end_at_the_deadline() {
        let policy = RetryPolicy {
            deadline: Duration::from_secs(10),
            first_pause: Duration::from_secs(1),
            longest_pause: Duration::from_secs(3),
        };
        let mut now = Instant::now();
        let mut retry = Retry::begin(policy, now);
        let mut pauses = Vec::new();
        while let Some(pause) = retry.after(Cause::Unreachable, now) {
            pauses.push(pause.as_secs());
            now += pause;
        }
        assert_eq!(pauses, [1, 2, 3, 3]);
    }

    #[test]
    fn an_attempt_that_took_all_the_time_is_the_last() {
        let now = Instant::now();
        let mut retry = Retry::begin(RetryPolicy::default(), now);
        let late = now + RetryPolicy::default().deadline;
        assert_eq!(retry.after(Cause::Unreachable, late), None);
    }

    #[test]
    fn wrong_content_is_asked_for_once_more() {
        let now = Instant::now();
        let mut retry = Retry::begin(RetryPolicy::default(), now);
        assert!(retry.after(Cause::WrongContent, now).is_some());
        assert_eq!(retry.after(Cause::WrongContent, now), None);
    }

    #[test]
    fn a_full_disk_is_not_waited_for() {
        let now = Instant::now();
        let mut retry = Retry::begin(RetryPolicy::default(), now);
        assert_eq!(retry.after(Cause::NoRoom, now), None);
    }
}
