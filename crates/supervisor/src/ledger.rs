//! The book of mounts: what is wanted where, and what the daemon has confirmed.
//!
//! Pure. It decides whether a request needs a call, is done already or cannot be granted, and what an answer (or
//! its absence) means for the books. It never talks to the daemon; [`crate::lifecycle`] does, through actions.

use std::collections::BTreeMap;

use nydusbox_protocol::{MountCommand, MountPoint};

use crate::client::CallError;
use crate::request::MountRequest;

/// Slots of the daemon's VFS: its index is one byte and 0 is the pseudo file system.
pub(crate) const SLOTS: usize = 255;

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
    command: MountCommand,
    knowledge: Knowledge,
    /// It was in doubt before it was asked for again.
    doubted: bool,
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
    mounts: BTreeMap<MountPoint, Entry>,
}

impl Ledger {
    /// Enters a request, if it can be granted.
    pub(crate) fn admit(&mut self, request: &MountRequest) -> Result<Admission, Refusal> {
        if let Some(entry) = self.mounts.get_mut(request.at()) {
            if entry.command != *request.command() {
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
        if let Some(other) = self.mounts.keys().find(|m| m.overlaps(request.at())) {
            return Err(Refusal::Overlaps(other.clone()));
        }
        if self.mounts.len() >= SLOTS {
            return Err(Refusal::Full);
        }
        let entry = Entry {
            command: request.command().clone(),
            knowledge: Knowledge::Asked,
            doubted: false,
        };
        self.mounts.insert(request.at().clone(), entry);
        Ok(Admission::Ask)
    }

    /// Settles a mount that was asked for. A place that was in doubt and turns out to be taken is ours: the answer
    /// lost was a success.
    pub(crate) fn settle_mount(
        &mut self,
        at: &MountPoint,
        answer: Result<(), CallError>,
    ) -> Result<(), CallError> {
        let Some(entry) = self.mounts.get_mut(at) else {
            return answer;
        };
        match answer {
            Ok(()) => {
                entry.knowledge = Knowledge::Confirmed;
                Ok(())
            }
            Err(CallError::AlreadyMounted) if entry.doubted => {
                entry.knowledge = Knowledge::Confirmed;
                Ok(())
            }
            Err(error) if error.is_definite() => {
                self.mounts.remove(at);
                Err(error)
            }
            Err(error) => {
                entry.knowledge = Knowledge::Doubtful;
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
                self.mounts.remove(at);
                Ok(UnmountOutcome::Unmounted)
            }
            Err(CallError::NotMounted) => {
                self.mounts.remove(at);
                Ok(UnmountOutcome::WasNotMounted)
            }
            Err(error) => {
                if !error.is_definite()
                    && let Some(entry) = self.mounts.get_mut(at)
                {
                    entry.knowledge = Knowledge::Doubtful;
                }
                Err(error)
            }
        }
    }

    /// Every mount that is or may be there, in the order of their places.
    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = (&MountPoint, &MountCommand, Knowledge)> {
        self.mounts.iter().map(|(at, e)| (at, &e.command, e.knowledge))
    }
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
