//! What observations mean.
//!
//! Pure. Counters only grow, so a judge remembers the last ones: blobs are judged by the reads since, and keep their
//! judgement while nothing is read. Each transition for the worse is an event, once.

use std::collections::BTreeMap;
use std::time::Duration;

use nydusbox_protocol::{DaemonState, MountPoint};

use super::blobs::Blobs;
use super::{Health, HealthReport};
use crate::client::FailedReads;
use crate::events::SandboxEvent;

/// A request that takes so long is slow.
const SLOW: Duration = Duration::from_secs(5);
/// A request that takes so long is stuck: nydus gives up on a registry earlier.
const STUCK: Duration = Duration::from_secs(60);

/// Reads of an image's blobs since it was mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reads {
    pub(crate) all: u64,
    pub(crate) failed: u64,
}

/// Requests of the guest that are being served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InFlight {
    /// The program does not tell.
    Untold,
    None,
    Longest(Duration),
}

/// What one round of observation found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Observed {
    /// What the daemon says it is, or why there was no answer.
    pub(crate) api: Result<DaemonState, String>,
    /// A call of ours was under way, which some programs answer nothing beside.
    pub(crate) busy: bool,
    /// Whether a VMM is connected, where that is known.
    pub(crate) vmm: Option<bool>,
    pub(super) blobs: Blobs,
    pub(crate) in_flight: InFlight,
}

/// Judges one round after the other.
#[derive(Debug, Default)]
pub(crate) struct Judge {
    images: BTreeMap<MountPoint, (Reads, Health)>,
    failed: FailedReads,
    slow: bool,
}

impl Judge {
    /// The report for a round, and what has become worse.
    pub(crate) fn judge(&mut self, observed: &Observed) -> (HealthReport, Vec<SandboxEvent>) {
        let mut events = Vec::new();
        let answered = observed.api.is_ok();
        let unanswered = || Health::unknown("the daemon does not answer");
        let report = HealthReport {
            api: api(observed),
            vmm: match observed.vmm {
                Some(true) => Health::Ok,
                Some(false) => Health::degraded("no VMM is connected"),
                None if answered => Health::unknown("this program does not tell"),
                None => unanswered(),
            },
            backend: match answered {
                true => self.blobs(&observed.blobs, &mut events),
                false => unanswered(),
            },
            in_flight: match answered {
                true => self.in_flight(observed.in_flight, &mut events),
                false => unanswered(),
            },
        };
        (report, events)
    }

    fn blobs(&mut self, observed: &Blobs, events: &mut Vec<SandboxEvent>) -> Health {
        self.images.retain(|at, _| observed.reads.contains_key(at));
        let mut worst = Health::Ok;
        let mut found = |health: Health| {
            if rank(&health) > rank(&worst) {
                worst = health;
            }
        };
        for (at, reads) in &observed.reads {
            found(match (reads, &observed.failed) {
                (Some(reads), _) => self.image(at, *reads, events),
                (None, failed) => uncounted(at, failed.as_ref()),
            });
        }
        if let Some(failed) = &observed.failed {
            found(self.failed(failed, events));
        }
        worst
    }

    /// What has failed since, of any image. That it goes well again is not told.
    fn failed(&mut self, now: &FailedReads, events: &mut Vec<SandboxEvent>) -> Health {
        let before = std::mem::replace(&mut self.failed, now.clone());
        let Some(newest) = &now.newest else {
            return Health::Ok;
        };
        if *now == before {
            return Health::Ok;
        }
        // Of a list that is full the oldest goes for each that comes.
        let count = now.remembered.saturating_sub(before.remembered).max(1);
        events.push(SandboxEvent::BackendErrors {
            at: None,
            count: u64::try_from(count).unwrap_or(u64::MAX),
            newest: Some(newest.clone()),
        });
        Health::degraded(format!("a read of a blob failed: {newest}"))
    }

    fn image(&mut self, at: &MountPoint, now: Reads, events: &mut Vec<SandboxEvent>) -> Health {
        let (before, last) = match self.images.get(at) {
            // A counter that went back belongs to another daemon.
            Some((before, last)) if before.all <= now.all && before.failed <= now.failed => {
                (*before, last.clone())
            }
            _ => (Reads { all: 0, failed: 0 }, Health::Ok),
        };
        let (all, failed) = (now.all - before.all, now.failed - before.failed);
        let health = if all == 0 && failed == 0 {
            last
        } else if failed == 0 {
            Health::Ok
        } else if failed < all {
            Health::degraded(format!("some reads of the image at {at} failed"))
        } else {
            Health::failed(format!("no read of the image at {at} succeeded"))
        };
        if failed > 0 {
            events.push(SandboxEvent::BackendErrors {
                at: Some(at.clone()),
                count: failed,
                newest: None,
            });
        }
        self.images.insert(at.clone(), (now, health.clone()));
        health
    }

    fn in_flight(&mut self, observed: InFlight, events: &mut Vec<SandboxEvent>) -> Health {
        let longest = match observed {
            InFlight::Untold => return Health::unknown("this program does not tell"),
            InFlight::None => Duration::ZERO,
            InFlight::Longest(longest) => longest,
        };
        let slow = longest >= SLOW;
        if slow && !self.slow {
            let in_flight_ms = u64::try_from(longest.as_millis()).unwrap_or(u64::MAX);
            events.push(SandboxEvent::Slow { in_flight_ms });
        }
        self.slow = slow;
        let told = || format!("a request has been waiting for {} s", longest.as_secs());
        match longest {
            longest if longest >= STUCK => Health::failed(told()),
            longest if longest >= SLOW => Health::degraded(told()),
            _ => Health::Ok,
        }
    }
}

fn uncounted(at: &MountPoint, failed: Option<&FailedReads>) -> Health {
    Health::unknown(match failed.and_then(|failed| failed.newest.as_ref()) {
        Some(newest) => format!("the image at {at} has no counters; what failed last, of any: {newest}"),
        None => format!("the image at {at} has no counters"),
    })
}

fn api(observed: &Observed) -> Health {
    match &observed.api {
        Ok(DaemonState::Running) => Health::Ok,
        Ok(state) => Health::degraded(format!("its state is {state:?}")),
        Err(reason) if observed.busy => {
            Health::degraded(format!("{reason}, while another call is under way"))
        }
        Err(reason) => Health::failed(reason.clone()),
    }
}

fn rank(health: &Health) -> u8 {
    match health {
        Health::Ok => 0,
        Health::Unknown { .. } => 1,
        Health::Degraded { .. } => 2,
        Health::Failed { .. } => 3,
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn at(place: &str) -> MountPoint {
        MountPoint::new(place).unwrap()
    }

    fn well() -> Observed {
        Observed {
            api: Ok(DaemonState::Running),
            busy: false,
            vmm: Some(true),
            blobs: Blobs::default(),
            in_flight: InFlight::None,
        }
    }

    fn reading(all: u64, failed: u64) -> Observed {
        let reads = BTreeMap::from([(at("/rafs/c/lowerdir"), Some(Reads { all, failed }))]);
        let blobs = Blobs { reads, failed: None };
        Observed { blobs, ..well() }
    }

    /// A daemon that does not count, and remembers what has failed.
    fn remembering(remembered: usize, newest: &str) -> Observed {
        let blobs = Blobs {
            reads: BTreeMap::from([(at("/r"), None)]),
            failed: Some(FailedReads {
                remembered,
                newest: (remembered > 0).then(|| newest.to_owned()),
            }),
        };
        Observed { blobs, ..well() }
    }

    fn state(health: &Health) -> &'static str {
        ["ok", "unknown", "degraded", "failed"][usize::from(rank(health))]
    }

    fn states(observed: &Observed) -> [&'static str; 4] {
        let (report, _) = Judge::default().judge(observed);
        [&report.api, &report.vmm, &report.backend, &report.in_flight].map(state)
    }

    #[test]
    fn each_answer_is_judged_by_itself() {
        let silent = || Err("no answer within 1s".to_owned());
        for (observed, expected) in [
            (well(), ["ok", "ok", "ok", "ok"]),
            (
                Observed {
                    vmm: Some(false),
                    ..well()
                },
                ["ok", "degraded", "ok", "ok"],
            ),
            (Observed { vmm: None, ..well() }, ["ok", "unknown", "ok", "ok"]),
            (
                Observed {
                    api: Ok(DaemonState::Init),
                    ..well()
                },
                ["degraded", "ok", "ok", "ok"],
            ),
            (
                Observed {
                    api: silent(),
                    ..well()
                },
                ["failed", "ok", "unknown", "unknown"],
            ),
            (
                Observed {
                    api: silent(),
                    busy: true,
                    vmm: None,
                    ..well()
                },
                ["degraded", "unknown", "unknown", "unknown"],
            ),
            (reading(10, 0), ["ok", "ok", "ok", "ok"]),
            (reading(10, 1), ["ok", "ok", "degraded", "ok"]),
            (reading(10, 10), ["ok", "ok", "failed", "ok"]),
            (remembering(0, ""), ["ok", "ok", "unknown", "ok"]),
            (remembering(2, "refused"), ["ok", "ok", "degraded", "ok"]),
            (
                Observed {
                    in_flight: InFlight::Untold,
                    ..well()
                },
                ["ok", "ok", "ok", "unknown"],
            ),
            (
                Observed {
                    in_flight: InFlight::Longest(SLOW),
                    ..well()
                },
                ["ok", "ok", "ok", "degraded"],
            ),
            (
                Observed {
                    in_flight: InFlight::Longest(STUCK),
                    ..well()
                },
                ["ok", "ok", "ok", "failed"],
            ),
        ] {
            assert_eq!(states(&observed), expected, "{observed:?}");
        }
    }

    #[test]
    fn an_image_is_judged_by_its_reads_since_and_keeps_its_judgement_while_it_is_not_read() {
        let mut judge = Judge::default();
        let mut next = |observed: &Observed| {
            let (report, events) = judge.judge(observed);
            let errors = events.iter().map(|event| match event {
                SandboxEvent::BackendErrors { count, .. } => *count,
                other => panic!("{other:?}"),
            });
            (state(&report.backend), errors.sum::<u64>())
        };
        assert_eq!(next(&reading(5, 0)), ("ok", 0));
        assert_eq!(next(&reading(8, 3)), ("failed", 3));
        assert_eq!(next(&reading(8, 3)), ("failed", 0));
        assert_eq!(next(&reading(12, 4)), ("degraded", 1));
        assert_eq!(next(&reading(13, 4)), ("ok", 0));
        // Another daemon begins to count anew.
        assert_eq!(next(&reading(2, 2)), ("failed", 2));
        assert_eq!(next(&well()), ("ok", 0));
        assert_eq!(next(&reading(2, 2)), ("failed", 2));
    }

    #[test]
    fn a_failed_read_of_nobody_knows_which_image_is_told_once_with_the_daemons_words() {
        let mut judge = Judge::default();
        let mut next = |observed: &Observed| {
            let (report, events) = judge.judge(observed);
            let told = events.into_iter().map(|event| match event {
                SandboxEvent::BackendErrors {
                    at: None,
                    count,
                    newest: Some(newest),
                } => (count, newest),
                other => panic!("{other:?}"),
            });
            (state(&report.backend), told.collect::<Vec<_>>())
        };
        let told = |count, newest: &str| vec![(count, newest.to_owned())];
        assert_eq!(next(&remembering(0, "")), ("unknown", vec![]));
        assert_eq!(next(&remembering(3, "9:00 a")), ("degraded", told(3, "9:00 a")));
        assert_eq!(next(&remembering(3, "9:00 a")), ("unknown", vec![]));
        assert_eq!(next(&remembering(4, "9:00 a")), ("degraded", told(1, "9:00 a")));
        // The list is full.
        assert_eq!(next(&remembering(4, "9:01 a")), ("degraded", told(1, "9:01 a")));
        // Another daemon has nothing to remember yet.
        assert_eq!(next(&remembering(0, "")), ("unknown", vec![]));
        assert_eq!(next(&remembering(1, "9:02 b")), ("degraded", told(1, "9:02 b")));
    }

    #[test]
    fn a_slow_request_is_one_event_until_it_is_over() {
        let mut judge = Judge::default();
        let mut events = |secs| {
            let in_flight = InFlight::Longest(Duration::from_secs(secs));
            judge.judge(&Observed { in_flight, ..well() }).1.len()
        };
        assert_eq!([1, 6, 12, 90, 0, 7].map(&mut events), [0, 1, 0, 0, 0, 1]);
    }
}
