//! What has changed in a document's mounts: a line that is appended to it instead of writing it anew.
//!
//! A mount waits for what it promises to be written down. One short line is a tenth of the work of a document (22 of
//! 25 µs, and more where the caches are cold), however much is mounted already. Pure; who writes which: [`super::journal`].

use serde::{Deserialize, Serialize};

use super::document::{MountRecord, StateDocument};
use crate::slots::Slot;

/// The mounts from one on, in place of those that were there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Amendment {
    from: usize,
    mounts: Vec<MountRecord>,
    next_slot: Option<Slot>,
}

impl Amendment {
    /// What makes `new` of `old`; `None` when more than mounts has changed.
    pub(crate) fn between(old: &StateDocument, new: &StateDocument) -> Option<Self> {
        // Every field by name: one that is added must be compared too.
        let StateDocument {
            version,
            sandbox,
            phase,
            program,
            settings,
            daemon,
            cgroup,
            mounts,
            next_slot,
            binds,
        } = new;
        let same = (version, phase, settings, daemon)
            == (&old.version, &old.phase, &old.settings, &old.daemon)
            && (sandbox, program, cgroup, binds) == (&old.sandbox, &old.program, &old.cgroup, &old.binds);
        same.then(|| {
            let pairs = mounts.iter().zip(&old.mounts);
            let from = pairs.take_while(|(new, old)| new == old).count();
            Self {
                from,
                mounts: mounts[from..].to_vec(),
                next_slot: *next_slot,
            }
        })
    }

    /// Applies it; `false` when it is not one of this document.
    #[must_use]
    pub(crate) fn apply(self, document: &mut StateDocument) -> bool {
        if self.from > document.mounts.len() {
            return false;
        }
        document.mounts.truncate(self.from);
        document.mounts.extend(self.mounts);
        document.next_slot = self.next_slot;
        true
    }

    /// Whether it leaves this document, of which it is one, as it is.
    pub(crate) fn is_none(&self, document: &StateDocument) -> bool {
        self.mounts.is_empty() && (self.from, self.next_slot) == (document.mounts.len(), document.next_slot)
    }

    /// Its line.
    pub(crate) fn encode(&self) -> serde_json::Result<Vec<u8>> {
        // Of its own: what an interrupted write has left of another is not continued.
        let mut line = Vec::with_capacity(1024);
        line.push(b'\n');
        serde_json::to_writer(&mut line, self)?;
        Ok(line)
    }
}
