//! When a request is made again.
//!
//! Pure. Who waits is `endpoint.rs`.

use std::time::Duration;

/// How often a request that failed for the moment is made again, and after how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Retry {
    /// How often it is made, the first time included.
    pub attempts: u32,
    /// How long is waited the first time; each time it is twice as long, up to `longest`.
    pub first: Duration,
    /// How long is waited at most.
    pub longest: Duration,
    /// How long a server may ask to be waited for (`Retry-After`) without being given up.
    pub longest_asked: Duration,
}

impl Default for Retry {
    /// Five times in about four seconds.
    fn default() -> Self {
        Self {
            attempts: 5,
            first: Duration::from_millis(250),
            longest: Duration::from_secs(8),
            longest_asked: Duration::from_secs(60),
        }
    }
}

impl Retry {
    /// How long to wait after the attempt of this number, counted from 1; `None` if it was the last.
    /// `scatter`, between 0 and 1, spreads those who were refused at the same moment.
    pub(super) fn delay(self, attempt: u32, asked: Option<Duration>, scatter: f64) -> Option<Duration> {
        if attempt >= self.attempts {
            return None;
        }
        match asked {
            Some(asked) if asked > self.longest_asked => None,
            Some(asked) => Some(asked),
            None => {
                let doubled = self
                    .first
                    .saturating_mul(2_u32.saturating_pow(attempt.saturating_sub(1)));
                Some(
                    doubled
                        .min(self.longest)
                        .mul_f64(0.5 + scatter.clamp(0.0, 1.0) / 2.0),
                )
            }
        }
    }

    /// Whether this status may be another one in a moment.
    pub(super) fn is_for_the_moment(status: u16) -> bool {
        matches!(status, 408 | 425 | 429 | 500 | 502 | 503 | 504)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_end() {
        let retry = Retry {
            attempts: 6,
            first: Duration::from_millis(100),
            longest: Duration::from_millis(500),
            longest_asked: Duration::from_secs(3),
        };
        let millis = |scatter: f64| -> Vec<_> {
            (1..7)
                .map(|attempt| retry.delay(attempt, None, scatter).map(|delay| delay.as_millis()))
                .collect()
        };
        assert_eq!(
            millis(1.0),
            [Some(100), Some(200), Some(400), Some(500), Some(500), None]
        );
        assert_eq!(
            millis(0.0),
            [Some(50), Some(100), Some(200), Some(250), Some(250), None]
        );
    }

    #[test]
    fn a_server_is_waited_for_as_long_as_it_asks_but_not_for_ever() {
        let retry = Retry::default();
        let asked = |secs| retry.delay(1, Some(Duration::from_secs(secs)), 0.5);
        assert_eq!(asked(0), Some(Duration::ZERO));
        assert_eq!(asked(60), Some(Duration::from_secs(60)));
        assert_eq!(asked(61), None);
    }
}
