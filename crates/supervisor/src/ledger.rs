//! The book of mounts: what is wanted where, and what the daemon has confirmed.
//!
//! Pure. It decides whether a request needs a call, is done already or cannot be granted, and what an answer (or
//! its absence) means for the books. It never talks to the daemon; [`crate::lifecycle`] does, through actions.

use nydusbox_protocol::{BackendCollection, FsType, MountCommand, MountPoint};

use crate::client::CallError;
use crate::request::MountRequest;

/// Slots of the daemon's VFS: its index is one byte and 0 is the pseudo file system.
pub(crate) const SLOTS: usize = 255;
/// From so many mounts on it is time to warn.
pub(crate) const SLOTS_LOW: usize = 240;

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
    command: MountCommand,
    knowledge: Knowledge,
    /// It was in doubt before it was asked for again.
    doubted: bool,
    /// A new command whose answer was lost: the mount has the one or the other.
    replacement: Option<MountCommand>,
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
}

impl Ledger {
    /// Enters a request, if it can be granted.
    pub(crate) fn admit(&mut self, request: &MountRequest) -> Result<Admission, Refusal> {
        if let Some(entry) = self.find_mut(request.at()) {
            if entry.command != *request.command() || entry.replacement.is_some() {
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
            replacement: None,
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
                Ok(())
            }
            Err(CallError::AlreadyMounted) if entry.doubted => {
                entry.knowledge = Knowledge::Confirmed;
                Ok(())
            }
            Err(error) if error.is_definite() => {
                self.remove(at);
                Err(error)
            }
            Err(error) => {
                entry.knowledge = Knowledge::Doubtful;
                Err(error)
            }
        }
    }

    /// Whether what is mounted at a place may be given a new command.
    pub(crate) fn admit_remount(&self, request: &MountRequest) -> Result<(), RemountRefusal> {
        match self.find(request.at()) {
            None => Err(RemountRefusal::NotMounted),
            Some(entry) => match (entry.command.fs_type, request.command().fs_type) {
                (FsType::Rafs, FsType::Rafs) => Ok(()),
                (FsType::PassthroughFs, _) | (_, FsType::PassthroughFs) => Err(RemountRefusal::NotAnImage),
            },
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
        match answer {
            Ok(()) => {
                entry.command = request.command().clone();
                entry.replacement = None;
                entry.knowledge = Knowledge::Confirmed;
                Ok(())
            }
            Err(CallError::NotMounted) => {
                self.remove(request.at());
                Err(CallError::NotMounted)
            }
            Err(error) => {
                if !error.is_definite() {
                    entry.replacement = Some(request.command().clone());
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
                }
                Err(error)
            }
        }
    }

    /// The book of a predecessor: what the daemon says it has of it, or all of it in doubt when it does not say.
    pub(crate) fn recalled(
        mounts: impl IntoIterator<Item = (MountPoint, MountCommand)>,
        reported: Option<&BackendCollection>,
    ) -> Self {
        let entry = |(at, command): (MountPoint, MountCommand)| {
            let knowledge = match reported.map(|places| places.contains_key(at.as_str())) {
                Some(true) => Knowledge::Confirmed,
                Some(false) => return None,
                None => Knowledge::Doubtful,
            };
            Some(Entry {
                at,
                command,
                knowledge,
                doubted: knowledge == Knowledge::Doubtful,
                replacement: None,
            })
        };
        Self {
            mounts: mounts.into_iter().filter_map(entry).collect(),
        }
    }

    /// Every mount that is or may be there, in the order in which they were made.
    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = (&MountPoint, &MountCommand, Knowledge)> {
        self.mounts.iter().map(|m| {
            let knowledge = match m.replacement {
                Some(_) => Knowledge::Doubtful,
                None => m.knowledge,
            };
            (&m.at, &m.command, knowledge)
        })
    }

    /// How many slots are or may be in use.
    pub(crate) fn used(&self) -> usize {
        self.mounts.len()
    }

    fn find(&self, at: &MountPoint) -> Option<&Entry> {
        self.mounts.iter().find(|m| m.at == *at)
    }

    fn find_mut(&mut self, at: &MountPoint) -> Option<&mut Entry> {
        self.mounts.iter_mut().find(|m| m.at == *at)
    }

    fn remove(&mut self, at: &MountPoint) {
        self.mounts.retain(|m| m.at != *at);
    }
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
