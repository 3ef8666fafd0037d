//! What has changed in a document's mounts: a line that is appended to it instead of writing it anew.
//!
//! A mount waits for what it promises to be written down. One short line is a tenth of the work of a document (22 of
//! 25 µs, and more where the caches are cold), however much is mounted already. Pure; who writes which: [`super::journal`].

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::document::{MountRecord, StateDocument};
use crate::slots::Slot;

/// What the line has beside the commands' own JSON, about, in bytes.
const FRAME_BYTES: usize = 256;

/// The mounts from one on, in place of those that were there.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Amendment<'a> {
    from: usize,
    mounts: Cow<'a, [MountRecord]>,
    next_slot: Option<Slot>,
}

impl<'a> Amendment<'a> {
    /// What makes this document of one that had the same mounts before `from`, and the same of all else.
    pub(crate) fn of(document: &'a StateDocument, from: usize) -> Self {
        Self {
            from,
            mounts: Cow::Borrowed(&document.mounts[from..]),
            next_slot: document.next_slot,
        }
    }

    /// Applies it; `false` when it is not one of this document.
    #[must_use]
    pub(crate) fn apply(self, document: &mut StateDocument) -> bool {
        if self.from > document.mounts.len() {
            return false;
        }
        document.mounts.truncate(self.from);
        document.mounts.extend(self.mounts.into_owned());
        document.next_slot = self.next_slot;
        true
    }

    /// Its line.
    pub(crate) fn encode(&self) -> serde_json::Result<Vec<u8>> {
        let commands = self.mounts.iter().map(|mount| mount.command.json().len());
        let mut line = Vec::with_capacity(commands.sum::<usize>() + FRAME_BYTES);
        // Of its own: what an interrupted write has left of another is not continued.
        line.push(b'\n');
        serde_json::to_writer(&mut line, self)?;
        Ok(line)
    }
}
