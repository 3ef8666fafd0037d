//! What is done about a daemon that ends without being asked to, and the pure machine that decides when to try again
//! and when to give up.
//!
//! It is told when the daemon ended and when one serves again; it has no clock. Next: [`crate::lifecycle`].

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What is done about a daemon that ends without being asked to. In every case there is an event that says how it
/// ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnExit {
    /// The sandbox is over: its status is [`crate::StatusPhase::Exited`], and whoever owns it ends the VM and stops
    /// it.
    #[default]
    Stop,
    /// Another daemon takes its place and gets its mounts. [`crate::SandboxEvent::Recovered`] says what that means
    /// for the guest.
    Restart(RestartPolicy),
    /// For the library the same as [`OnExit::Stop`]. For those who run VMs it means that the VM is not theirs to end
    /// on this account: `nydusbox supervise` leaves the sandbox as it is until it is told to stop.
    Report,
}

/// When a daemon that has ended is replaced, and when no longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartPolicy {
    first_delay: Duration,
    max_delay: Duration,
    exits: NonZeroU32,
    within: Duration,
    stable: Duration,
}

impl Default for RestartPolicy {
    /// After 50 ms, then twice as long each time up to 5 s; given up at the fifth exit within a minute; forgotten
    /// when a daemon has served for a minute.
    fn default() -> Self {
        Self {
            first_delay: Duration::from_millis(50),
            max_delay: Duration::from_secs(5),
            exits: NonZeroU32::MIN.saturating_add(4),
            within: Duration::from_secs(60),
            stable: Duration::from_secs(60),
        }
    }
}

impl RestartPolicy {
    /// How long to wait before the first attempt, and before any at most. The wait doubles from one to the next.
    #[must_use]
    pub fn with_delays(mut self, first: Duration, max: Duration) -> Self {
        self.first_delay = first;
        self.max_delay = max;
        self
    }

    /// Given up when the daemon, or an attempt to replace it, has ended so many times within that time.
    #[must_use]
    pub fn with_limit(mut self, exits: NonZeroU32, within: Duration) -> Self {
        self.exits = exits;
        self.within = within;
        self
    }

    /// Everything before is forgotten when a daemon has served for so long.
    #[must_use]
    pub fn with_stable_after(mut self, stable: Duration) -> Self {
        self.stable = stable;
        self
    }

    /// The time in which the limit of exits must not be reached.
    #[must_use]
    pub fn within(&self) -> Duration {
        self.within
    }
}

/// What to do about an exit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Start another daemon.
    Restart {
        /// The how manieth in a row, from 1.
        attempt: u32,
        after: Duration,
    },
    GiveUp {
        /// How many within the policy's time.
        exits: u32,
    },
}

/// The memory of a sandbox that restarts its daemon. Times count from any fixed point and never go back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Recovery {
    policy: RestartPolicy,
    /// When it ended, oldest first; never more than the policy's limit.
    exits: VecDeque<Duration>,
    attempts: u32,
    serving_since: Option<Duration>,
}

impl Recovery {
    /// A daemon serves.
    pub(crate) fn new(policy: RestartPolicy, now: Duration) -> Self {
        Self {
            policy,
            exits: VecDeque::new(),
            attempts: 0,
            serving_since: Some(now),
        }
    }

    pub(crate) fn policy(&self) -> RestartPolicy {
        self.policy
    }

    /// A daemon serves again.
    pub(crate) fn serves(&mut self, now: Duration) {
        self.serving_since = Some(now);
    }

    /// The daemon ended, or an attempt to start one failed.
    pub(crate) fn ended(&mut self, now: Duration) -> Verdict {
        let served = self.serving_since.take().map(|since| now.saturating_sub(since));
        if served.is_some_and(|served| served >= self.policy.stable) {
            self.exits.clear();
            self.attempts = 0;
        }
        self.exits.push_back(now);
        let within = self.policy.within;
        self.exits.retain(|&exit| now.saturating_sub(exit) <= within);
        let exits = u32::try_from(self.exits.len()).unwrap_or(u32::MAX);
        if exits >= self.policy.exits.get() {
            return Verdict::GiveUp { exits };
        }
        self.attempts = self.attempts.saturating_add(1);
        let doubled = 1u32.checked_shl(self.attempts - 1).unwrap_or(u32::MAX);
        Verdict::Restart {
            attempt: self.attempts,
            after: self
                .policy
                .first_delay
                .saturating_mul(doubled)
                .min(self.policy.max_delay),
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn policy(first: u64, max: u64, exits: u32, within: u64, stable: u64) -> RestartPolicy {
        RestartPolicy::default()
            .with_delays(Duration::from_millis(first), Duration::from_millis(max))
            .with_limit(NonZeroU32::new(exits).unwrap(), Duration::from_millis(within))
            .with_stable_after(Duration::from_millis(stable))
    }

    /// The rules once more, from the whole history and in other words: `history` has for every exit its time and
    /// how long a daemon had served before it, if one had.
    fn verdict(policy: (u64, u64, u32, u64, u64), history: &[(u64, Option<u64>)]) -> Verdict {
        let (first, max, limit, within, stable) = policy;
        let (now, _) = history[history.len() - 1];
        let begin = (0..history.len())
            .rev()
            .find(|&i| matches!(history[i].1, Some(served) if served >= stable))
            .unwrap_or(0);
        let row = &history[begin..];
        let recent = row.iter().filter(|(at, _)| at + within >= now).count();
        if recent >= limit as usize {
            return Verdict::GiveUp {
                exits: u32::try_from(recent).unwrap(),
            };
        }
        let mut wait = first;
        for _ in 1..row.len() {
            wait = (wait * 2).min(max);
        }
        Verdict::Restart {
            attempt: u32::try_from(row.len()).unwrap(),
            after: Duration::from_millis(wait.min(max)),
        }
    }

    proptest! {
        /// Over any history: the wait grows and is bounded, the limit is the limit, a stable time clears everything.
        #[test]
        fn the_machine_agrees_with_the_rules_over_the_whole_history(
            first in 0u64..200,
            max in 1u64..2000,
            limit in 1u32..6,
            within in 0u64..3000,
            stable in 1u64..3000,
            steps in proptest::collection::vec((0u64..1500, proptest::option::of(0u64..4000)), 1..40),
        ) {
            let mut recovery = Recovery::new(policy(first, max, limit, within, stable), Duration::ZERO);
            let (mut now, mut history) = (0, Vec::new());
            for (n, (pause, serves)) in steps.into_iter().enumerate() {
                // The first daemon serves from the beginning.
                let serves = match n {
                    0 => serves.or(Some(0)),
                    _ => serves,
                };
                if let Some(served) = serves {
                    if n > 0 {
                        now += pause;
                        recovery.serves(Duration::from_millis(now));
                    }
                    now += served;
                } else {
                    now += pause;
                }
                history.push((now, serves));
                let expected = verdict((first, max, limit, within, stable), &history);
                prop_assert_eq!(recovery.ended(Duration::from_millis(now)), expected);
                if matches!(expected, Verdict::GiveUp { .. }) {
                    break;
                }
            }
        }
    }

    #[test]
    fn by_default_a_daemon_that_dies_at_once_is_given_up_within_seconds() {
        let mut recovery = Recovery::new(RestartPolicy::default(), Duration::ZERO);
        let (mut now, mut waits) = (Duration::ZERO, Vec::new());
        while let Verdict::Restart { after, .. } = recovery.ended(now) {
            now += after;
            waits.push(after.as_millis());
        }
        assert_eq!(waits, [50, 100, 200, 400]);
    }
}
