//! What has happened to a sandbox: numbered records that any number of readers follow at their own pace.
//!
//! The newest records are kept in a ring, so that a reader who comes late sees the start, and one who is slow costs
//! no memory and is told how many it missed. Writing never waits. How a sandbox *is* says [`crate::Status`]; who
//! emits what: [`crate::driver`] and [`crate::launch`].

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::SystemTime;

use nydusbox_protocol::{MountPoint, SandboxId};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::exit::Exit;
use crate::stop::StopStep;

/// How many records are kept. An exit holds up to 20 lines, so even a daemon that dies again and again keeps the ring
/// below a few hundred KiB.
const KEPT: usize = 256;

/// An event with its place in the sandbox's history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventRecord {
    /// Counts from 0 without gaps.
    pub seq: u64,
    /// When it was recorded; RFC 3339 in UTC when written as JSON.
    #[serde(with = "rfc3339")]
    pub time: SystemTime,
    /// Whose it is.
    pub sandbox: SandboxId,
    /// What happened. Its fields stand beside the others in JSON: `{"seq":3,…,"event":"mounted","at":"/m"}`.
    #[serde(flatten)]
    pub event: SandboxEvent,
}

/// What can happen to a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum SandboxEvent {
    /// The daemon serves; the shared directory's mount follows.
    Started {
        /// Its process id, for people.
        pid: u32,
        /// Its executable.
        program: String,
    },
    /// The daemon has mounted something, or, of one that was taken over, says that it has.
    Mounted {
        /// Where.
        at: MountPoint,
    },
    /// The daemon has given an image's mount a new image or configuration.
    Remounted {
        /// Where.
        at: MountPoint,
    },
    /// The daemon has unmounted something.
    Unmounted {
        /// Where.
        at: MountPoint,
    },
    /// Most of the daemon's slots for mounts are in use. Said again when it was less in between.
    SlotsLow {
        /// How many are.
        used: usize,
        /// How many there are.
        of: usize,
    },
    /// The daemon ended without being asked to.
    Exited {
        /// How.
        exit: Exit,
    },
    /// A request has been at the daemon for long.
    Slow {
        /// How long, in milliseconds.
        in_flight_ms: u64,
    },
    /// Blobs could not be read.
    BackendErrors {
        /// Where their image is mounted; a stock nydusd may not tell.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        at: Option<MountPoint>,
        /// How many reads failed since the last such event.
        count: u64,
        /// The daemon's words for the last of them, where it doesn't tell whose they were.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        newest: Option<String>,
    },
    /// A limit or an argument that was asked for could not be applied as it was; the sandbox runs without it.
    Degraded {
        /// The limit or the argument.
        what: String,
        /// Why not.
        reason: String,
    },
    /// This process has taken over a daemon that another one had started.
    Adopted {
        /// Its process id, for people.
        pid: u32,
    },
    /// Another daemon is going to take the place of the one that ended.
    Recovering {
        /// The how manieth attempt in a row, from 1.
        attempt: u32,
        /// When it begins, in milliseconds from now.
        after_ms: u64,
    },
    /// The attempt came to nothing.
    RecoveryFailed {
        /// Which.
        attempt: u32,
        /// Why.
        reason: String,
        /// The last lines of the daemon it was about, if there was one, oldest first.
        last_lines: Vec<String>,
    },
    /// A mount could not be given to the new daemon, or the old one was not known to have it; it is not in the sandbox
    /// any more.
    MountLost {
        /// Where it was.
        at: MountPoint,
        /// Why.
        reason: String,
    },
    /// Another daemon serves in the place of the one that ended.
    Recovered {
        /// Its process id, for people.
        pid: u32,
        /// How many mounts it has.
        mounts: usize,
        /// What this means for the guest.
        guest: GuestOutlook,
    },
    /// The daemon has ended too often; it is not replaced any more.
    GaveUp {
        /// How often, attempts to replace it included.
        exits: u32,
        /// Within which time, in milliseconds.
        within_ms: u64,
    },
    /// A VMM has connected to the vhost-user socket.
    VmmConnected,
    /// The VMM is not connected any more.
    VmmLeft,
    /// The sandbox is being stopped.
    Stopping,
    /// The sandbox is stopped; no event follows.
    Stopped {
        /// The step that ended the daemon.
        step: StopStep,
        /// What could not be removed, in words; normally nothing.
        leftovers: Vec<String>,
    },
}

/// Whether a guest can go on with a daemon that has taken another one's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum GuestOutlook {
    /// No VMM was connected: nothing is lost. Known of a stock nydusd only; the embedded daemon's VMM may have come
    /// after it was asked last.
    NoVmm,
    /// If the VMM connects again by itself (Cloud Hypervisor tries for a minute, QEMU does not), the guest goes on
    /// with its images: they have the inode numbers they had. What it has open in a shared directory is lost, and
    /// inodes it knows there may be others now; it has to mount the share again. Requests that were under way when
    /// the daemon ended are answered only if the VMM sends them again.
    ImagesIfVmmReconnects,
    /// As before, but the images' inode numbers are others too: the guest has to mount everything again.
    MustMountAgain,
}

/// What a reader gets next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventItem {
    /// The next record.
    Record(EventRecord),
    /// The reader was too slow: so many records were dropped before it asked.
    Lost {
        /// How many.
        count: u64,
    },
}

#[derive(Debug, Default)]
struct Ring {
    kept: VecDeque<EventRecord>,
    /// The number of the next record.
    next: u64,
}

impl Ring {
    fn push(&mut self, record: impl FnOnce(u64) -> EventRecord) {
        if self.kept.len() == KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back(record(self.next));
        self.next += 1;
    }

    fn oldest(&self) -> u64 {
        self.next - self.kept.len() as u64
    }

    /// What a reader that has everything before `wanted` gets now, and what it has then.
    fn read(&self, wanted: u64) -> Option<(EventItem, u64)> {
        let oldest = self.oldest();
        if wanted < oldest {
            return Some((
                EventItem::Lost {
                    count: oldest - wanted,
                },
                oldest,
            ));
        }
        let index = usize::try_from(wanted - oldest).ok()?;
        let record = self.kept.get(index)?.clone();
        Some((EventItem::Record(record), wanted + 1))
    }
}

/// Where events of one sandbox are put. Cheap to clone; the readers' streams end when all clones are gone.
#[derive(Debug, Clone)]
pub(crate) struct EventSink {
    sandbox: Arc<SandboxId>,
    ring: watch::Sender<Ring>,
}

impl EventSink {
    pub(crate) fn new(sandbox: SandboxId) -> Self {
        Self {
            sandbox: Arc::new(sandbox),
            ring: watch::Sender::new(Ring::default()),
        }
    }

    /// Records an event. Never waits for a reader.
    pub(crate) fn emit(&self, event: SandboxEvent) {
        let (time, sandbox) = (SystemTime::now(), SandboxId::clone(&self.sandbox));
        self.ring.send_modify(|ring| {
            ring.push(|seq| EventRecord {
                seq,
                time,
                sandbox,
                event,
            });
        });
    }

    /// Records that something was not applied as it was asked for.
    pub(crate) fn degraded(&self, what: &str, reason: String) {
        let what = what.to_owned();
        self.emit(SandboxEvent::Degraded { what, reason });
    }

    /// A reader that begins with the oldest record kept.
    pub(crate) fn events(&self) -> Events {
        Events::new(self.ring.subscribe())
    }
}

/// A reader of a sandbox's events, see [`crate::Sandbox::events`]. Each clone goes on by itself from the same place.
#[derive(Debug, Clone)]
pub struct Events {
    ring: watch::Receiver<Ring>,
    wanted: u64,
}

impl Events {
    fn new(ring: watch::Receiver<Ring>) -> Self {
        let wanted = ring.borrow().oldest();
        Self { ring, wanted }
    }

    /// Another reader, that begins with the oldest record kept now.
    pub(crate) fn restarted(&self) -> Self {
        Self::new(self.ring.clone())
    }

    /// The next event; `None` when the sandbox is gone and all were read.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Option<EventItem> {
        loop {
            if let Some(item) = self.try_next() {
                return Some(item);
            }
            // An error means that no sink is left; what was put before is a change and comes first.
            self.ring.changed().await.ok()?;
        }
    }

    /// The next event if there is one already.
    pub fn try_next(&mut self) -> Option<EventItem> {
        let (item, wanted) = self.ring.borrow_and_update().read(self.wanted)?;
        self.wanted = wanted;
        Some(item)
    }
}

mod rfc3339 {
    use std::time::SystemTime;

    use serde::{Deserialize, Deserializer, Serializer, de, ser};
    use time::OffsetDateTime;
    use time::format_description::well_known::Rfc3339;

    pub(super) fn serialize<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
        let text = OffsetDateTime::from(*time)
            .format(&Rfc3339)
            .map_err(ser::Error::custom)?;
        serializer.serialize_str(&text)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SystemTime, D::Error> {
        let text = String::deserialize(deserializer)?;
        let time = OffsetDateTime::parse(&text, &Rfc3339).map_err(de::Error::custom)?;
        Ok(time.into())
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn sink() -> EventSink {
        EventSink::new(SandboxId::new("s1").unwrap())
    }

    fn seq(item: &EventItem) -> u64 {
        match item {
            EventItem::Record(record) => record.seq,
            EventItem::Lost { count } => panic!("lost {count}"),
        }
    }

    #[test]
    fn a_record_is_one_flat_object_and_comes_back_from_json() {
        let record = EventRecord {
            seq: 3,
            time: SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_250),
            sandbox: SandboxId::new("s1").unwrap(),
            event: SandboxEvent::Mounted {
                at: MountPoint::containers(),
            },
        };
        let text = serde_json::to_string(&record).unwrap();
        assert_eq!(
            text,
            r#"{"seq":3,"time":"2023-11-14T22:13:20.25Z","sandbox":"s1","event":"mounted","at":"/containers"}"#
        );
        assert_eq!(serde_json::from_str::<EventRecord>(&text).unwrap(), record);
    }

    #[tokio::test]
    async fn a_late_reader_sees_the_start_and_the_stream_ends_with_the_last_sink() {
        let sink = sink();
        sink.emit(SandboxEvent::Stopping);
        let (mut early, other_sink) = (sink.events(), sink.clone());
        other_sink.emit(SandboxEvent::Stopping);
        let mut late = sink.events();
        drop(sink);
        assert_eq!(seq(&early.next().await.unwrap()), 0);
        assert_eq!(seq(&early.next().await.unwrap()), 1);
        assert_eq!(early.try_next(), None);
        let waiting = tokio::spawn(async move { early.next().await });
        other_sink.emit(SandboxEvent::Stopping);
        assert_eq!(seq(&waiting.await.unwrap().unwrap()), 2);
        drop(other_sink);
        for expected in 0..3 {
            assert_eq!(seq(&late.next().await.unwrap()), expected);
        }
        assert_eq!(late.next().await, None);
    }

    proptest! {
        /// However reading and writing alternate: every record comes once and in order, or is counted as lost, and
        /// nothing is lost while the reader is less than the ring's size behind.
        #[test]
        fn a_slow_reader_knows_exactly_what_it_missed(turns in proptest::collection::vec((0usize..400, 0usize..400), 0..8)) {
            let sink = sink();
            let mut events = sink.events();
            let (mut written, mut read) = (0u64, 0u64);
            for (writes, reads) in turns {
                for _ in 0..writes {
                    sink.emit(SandboxEvent::Stopping);
                    written += 1;
                }
                for _ in 0..reads {
                    match events.try_next() {
                        None => prop_assert_eq!(read, written),
                        Some(EventItem::Lost { count }) => {
                            prop_assert!(written - read > KEPT as u64);
                            read += count;
                            prop_assert_eq!(written - read, KEPT as u64);
                        }
                        Some(EventItem::Record(record)) => {
                            prop_assert_eq!(record.seq, read);
                            read += 1;
                        }
                    }
                }
            }
        }
    }
}
