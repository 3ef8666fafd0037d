//! The book of mounts: what is wanted where, what the daemon has confirmed, and in which of its slots it is.
//!
//! Pure. It decides whether a request needs a call, is done already or cannot be granted, and what an answer (or
//! its absence) means for the books. It never talks to the daemon; [`crate::lifecycle`] does, through actions. Next:
//! [`crate::slots`], [`crate::restoration`].

use nydusbox_protocol::{BackendCollection, ErrorCode, FsType, MountPoint};

use crate::client::CallError;
use crate::request::MountRequest;
use crate::restoration::{Restoration, Wanted};
use crate::shared_command::SharedCommand;
use crate::slots::{SLOTS, Slot, Slots};
use crate::state::MountRecord;

/// What is known about one mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Knowledge {
    /// The daemon said so.
    Confirmed,
    /// Asked for, not answered.
    Asked,
    /// Asked for, and the answer was lost: it may or may not be there.
    Doubtful,
}

#[derive(Debug, Clone)]
struct Entry {
    at: MountPoint,
    command: SharedCommand,
    knowledge: Knowledge,
    /// It was in doubt before it was asked for again.
    doubted: bool,
    /// What a predecessor knew of it, until the daemon has said what it has.
    recalled: Option<Knowledge>,
    /// New commands whose answers were lost: the mount has one of them, or the old.
    replacements: Vec<SharedCommand>,
    /// A new command that is being asked for.
    asked: Option<SharedCommand>,
    /// `None` until it is confirmed, and when it cannot be known.
    slot: Option<Slot>,
}

impl Entry {
    fn record(&self) -> MountRecord {
        MountRecord {
            at: self.at.clone(),
            command: self.command.clone(),
            slot: self.slot,
            unplaced: self.is_unplaced(),
            replacements: self.may_have().cloned().collect(),
        }
    }

    /// Whether a daemon that takes this one's place is to have it.
    fn is_wanted(&self) -> bool {
        self.knowledge == Knowledge::Confirmed || self.recalled == Some(Knowledge::Confirmed)
    }

    fn is_unplaced(&self) -> bool {
        self.slot.is_none() && self.is_wanted()
    }

    /// Whether this is its record. (A mount waits for it: nothing is cloned.)
    fn is_recorded(&self, record: &MountRecord) -> bool {
        let MountRecord {
            at,
            command,
            slot,
            unplaced,
            replacements,
        } = record;
        (&self.at, &self.command, &self.slot) == (at, command, slot)
            && self.is_unplaced() == *unplaced
            && self.may_have().eq(replacements)
    }

    /// New commands it may have got, or may yet, the last one last.
    fn may_have(&self) -> impl Iterator<Item = &SharedCommand> {
        let asked = self
            .asked
            .iter()
            .filter(|asked| !self.replacements.contains(asked));
        self.replacements.iter().chain(asked)
    }
}

/// What a permitted mount request needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission {
    /// The daemon must be asked.
    Ask,
    /// The same is mounted there already.
    Present,
}

/// Why a mount request is not granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Something else is mounted there.
    Conflict,
    /// It would lie inside, or around, this mount.
    Overlaps(MountPoint),
    /// No slot is free.
    Full,
}

/// Why a remount request is not granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RemountRefusal {
    /// Nothing is mounted there.
    NotMounted,
    /// What is mounted there, or what is to take its place, is a shared directory.
    NotAnImage,
}

/// How an unmount went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UnmountOutcome {
    /// It was mounted and is not any more.
    Unmounted,
    /// Nothing was mounted there.
    WasNotMounted,
}

/// The mounts of one daemon.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ledger {
    /// In the order in which they were first asked for.
    mounts: Vec<Entry>,
    slots: Slots,
}

impl Ledger {
    /// Enters a request, if it can be granted.
    pub(crate) fn admit(&mut self, request: &MountRequest) -> Result<Admission, Refusal> {
        if let Some(entry) = self.find_mut(request.at()) {
            if entry.command != *request.command() || !entry.replacements.is_empty() {
                return Err(Refusal::Conflict);
            }
            return Ok(match entry.knowledge {
                Knowledge::Confirmed => Admission::Present,
                Knowledge::Asked | Knowledge::Doubtful => {
                    entry.doubted = true;
                    entry.knowledge = Knowledge::Asked;
                    Admission::Ask
                }
            });
        }
        if let Some(other) = self.mounts.iter().find(|m| m.at.overlaps(request.at())) {
            return Err(Refusal::Overlaps(other.at.clone()));
        }
        if self.mounts.len() >= SLOTS {
            return Err(Refusal::Full);
        }
        self.mounts.push(Entry {
            at: request.at().clone(),
            command: request.command().clone(),
            knowledge: Knowledge::Asked,
            doubted: false,
            recalled: None,
            replacements: Vec::new(),
            asked: None,
            slot: None,
        });
        Ok(Admission::Ask)
    }

    /// Settles a mount that was asked for. A place that was in doubt and turns out to be taken is ours: the answer
    /// lost was a success.
    pub(crate) fn settle_mount(
        &mut self,
        at: &MountPoint,
        answer: Result<(), CallError>,
    ) -> Result<(), CallError> {
        let Some(entry) = self.find_mut(at) else {
            return answer;
        };
        match answer {
            Ok(()) => {
                entry.knowledge = Knowledge::Confirmed;
                // If it was in doubt, it was not there, and its slot of old is not in use.
                entry.slot = None;
                let slot = self.slots.allocate(self.mounts.iter().filter_map(|m| m.slot));
                if let Some(entry) = self.find_mut(at) {
                    entry.slot = slot;
                }
                Ok(())
            }
            Err(CallError::AlreadyMounted) if entry.doubted => {
                entry.knowledge = Knowledge::Confirmed;
                Ok(())
            }
            Err(error) if error.is_definite() && !(entry.doubted && is_under_way(&error)) => {
                self.remove(at);
                Err(error)
            }
            Err(error) => {
                entry.knowledge = Knowledge::Doubtful;
                self.slots.lose_count();
                Err(error)
            }
        }
    }

    /// Enters a new command for what is mounted at a place, if it can be granted.
    pub(crate) fn admit_remount(&mut self, request: &MountRequest) -> Result<(), RemountRefusal> {
        let Some(entry) = self.find_mut(request.at()) else {
            return Err(RemountRefusal::NotMounted);
        };
        match (entry.command.fs_type, request.command().fs_type) {
            (FsType::Rafs, FsType::Rafs) => {
                entry.asked = Some(request.command().clone());
                Ok(())
            }
            (FsType::PassthroughFs, _) | (_, FsType::PassthroughFs) => Err(RemountRefusal::NotAnImage),
        }
    }

    /// Settles a remount that was asked for.
    pub(crate) fn settle_remount(
        &mut self,
        request: &MountRequest,
        answer: Result<(), CallError>,
    ) -> Result<(), CallError> {
        let Some(entry) = self.find_mut(request.at()) else {
            return answer;
        };
        let asked = entry.asked.take();
        match answer {
            Ok(()) => {
                entry.command = request.command().clone();
                entry.replacements.clear();
                entry.knowledge = Knowledge::Confirmed;
                Ok(())
            }
            Err(CallError::NotMounted) => {
                self.remove(request.at());
                Err(CallError::NotMounted)
            }
            Err(error) => {
                if !error.is_definite() {
                    let lost = asked.filter(|command| !entry.replacements.contains(command));
                    entry.replacements.extend(lost);
                }
                Err(error)
            }
        }
    }

    /// Settles an unmount that was asked for.
    pub(crate) fn settle_unmount(
        &mut self,
        at: &MountPoint,
        answer: Result<(), CallError>,
    ) -> Result<UnmountOutcome, CallError> {
        match answer {
            Ok(()) => {
                self.remove(at);
                Ok(UnmountOutcome::Unmounted)
            }
            Err(CallError::NotMounted) => {
                self.remove(at);
                Ok(UnmountOutcome::WasNotMounted)
            }
            Err(error) => {
                if !error.is_definite()
                    && let Some(entry) = self.find_mut(at)
                {
                    entry.knowledge = Knowledge::Doubtful;
                    entry.recalled = None;
                }
                Err(error)
            }
        }
    }

    /// The book of a predecessor: what the daemon says it has of it, or all of it in doubt when it does not say. What
    /// was asked for, not answered and is not there is in doubt, too: it may be under way. `next` is where the daemon's
    /// count of slots stood.
    pub(crate) fn recalled(
        records: Vec<MountRecord>,
        next: Option<Slot>,
        reported: Option<&BackendCollection>,
    ) -> Self {
        let is_there = |at: &MountPoint| reported.map(|places| places.contains_key(at.as_str()));
        // A mount that was made past the supervisor has taken a slot, nobody knows when.
        let strangers = reported.is_some_and(|places| {
            let ours = |place: &String| records.iter().any(|record| record.at.as_str() == place);
            !places.keys().all(ours)
        });
        let mut slots = Slots::recalled(next);
        let under_way = |record: &MountRecord| !record.was_there() && is_there(&record.at) != Some(true);
        if strangers || reported.is_none() || records.iter().any(under_way) {
            slots.lose_count();
        }
        let entry = |record: MountRecord| {
            let was = match record.was_there() {
                true => Knowledge::Confirmed,
                false => Knowledge::Asked,
            };
            let (knowledge, recalled) = match is_there(&record.at) {
                Some(true) => (Knowledge::Confirmed, None),
                Some(false) if was == Knowledge::Confirmed => return None,
                Some(false) => (Knowledge::Doubtful, None),
                None => (Knowledge::Doubtful, Some(was)),
            };
            Some(Entry {
                at: record.at,
                command: record.command,
                knowledge,
                doubted: knowledge == Knowledge::Doubtful,
                recalled,
                replacements: record.replacements,
                asked: None,
                slot: record.slot.filter(|_| !strangers),
            })
        };
        let mut mounts: Vec<Entry> = records.into_iter().filter_map(entry).collect();
        // Its answer had not been written down yet.
        while let Some(at) = mounts.iter().position(|m| m.slot.is_none()) {
            let Some(slot) = slots.allocate(mounts.iter().filter_map(|m| m.slot)) else {
                break;
            };
            mounts[at].slot = Some(slot);
        }
        Self { mounts, slots }
    }

    /// Whether it is a predecessor's, and the daemon has not said what it has of it.
    pub(crate) fn is_untold(&self) -> bool {
        self.mounts.iter().any(|m| m.recalled.is_some())
    }

    /// The daemon says what it has, after all; where there was doubt and is none any more. What it does not have stays
    /// in doubt: it may have been asked for since.
    pub(crate) fn told(&mut self, reported: &BackendCollection) -> Vec<MountPoint> {
        let mut confirmed = Vec::new();
        for entry in &mut self.mounts {
            let was_recalled = entry.recalled.take().is_some();
            if was_recalled
                && entry.knowledge == Knowledge::Doubtful
                && reported.contains_key(entry.at.as_str())
            {
                entry.knowledge = Knowledge::Confirmed;
                confirmed.push(entry.at.clone());
            }
        }
        confirmed
    }

    /// What is to be remembered of every mount that is or may be there, but for the first `after`.
    pub(crate) fn records(&self, after: usize) -> impl Iterator<Item = MountRecord> {
        self.mounts.iter().skip(after).map(Entry::record)
    }

    /// How many of these records, from the first on, are what is to be remembered.
    pub(crate) fn agrees_with(&self, records: &[MountRecord]) -> usize {
        let pairs = self.mounts.iter().zip(records);
        pairs
            .take_while(|(entry, record)| entry.is_recorded(record))
            .count()
    }

    /// Where the daemon's count of slots stands, if that is known.
    pub(crate) fn next_slot(&self) -> Option<Slot> {
        self.slots.next()
    }

    /// Every mount that is or may be there, in the order in which they were made.
    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = (&MountPoint, &SharedCommand, Knowledge)> {
        self.mounts.iter().map(|m| {
            let knowledge = match m.replacements.is_empty() {
                false => Knowledge::Doubtful,
                true => m.knowledge,
            };
            (&m.at, &m.command, knowledge)
        })
    }

    /// The daemon is gone. What was not known to be there, to us or to a predecessor, is not wanted any more, and what
    /// was asked of it in vain is forgotten; where that was.
    pub(crate) fn daemon_is_gone(&mut self) -> Vec<MountPoint> {
        let unwanted = self.mounts.extract_if(.., |m| !m.is_wanted());
        let lost = unwanted.map(|entry| entry.at).collect();
        for entry in &mut self.mounts {
            entry.replacements.clear();
            entry.asked = None;
            entry.recalled = None;
            entry.knowledge = Knowledge::Asked;
        }
        lost
    }

    /// Something wanted is not wanted any more.
    pub(crate) fn forget(&mut self, at: &MountPoint) {
        self.remove(at);
    }

    /// How a daemon that has no mounts yet gets these.
    pub(crate) fn restoration(&self) -> Restoration {
        Restoration::new(self.mounts.iter().map(|m| Wanted {
            at: m.at.clone(),
            command: m.command.clone(),
            slot: m.slot,
        }))
    }

    /// The new daemon has them.
    pub(crate) fn restored(&mut self, restoration: &Restoration) {
        for (at, slot) in restoration.made() {
            if let Some(entry) = self.find_mut(at) {
                entry.knowledge = Knowledge::Confirmed;
                entry.slot = *slot;
            }
        }
        self.slots = Slots::after(restoration.last_slot());
    }

    /// How many slots are or may be in use.
    pub(crate) fn used(&self) -> usize {
        self.mounts.len()
    }

    fn find_mut(&mut self, at: &MountPoint) -> Option<&mut Entry> {
        self.mounts.iter_mut().find(|m| m.at == *at)
    }

    fn remove(&mut self, at: &MountPoint) {
        self.mounts.retain(|m| m.at != *at);
    }
}

/// Whether the daemon refuses it because it is being mounted, for somebody who has not waited for it.
fn is_under_way(error: &CallError) -> bool {
    matches!(
        error,
        CallError::Refused {
            code: ErrorCode::WrongState,
            ..
        }
    )
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
