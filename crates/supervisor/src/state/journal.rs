//! The document of a sandbox that this process supervises, and the file it goes to.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use super::document::{BindRecord, PhaseRecord, StateDocument};
use super::store;
use crate::binds::BindBook;
use crate::ledger::Ledger;

/// A document and what of it is written.
#[derive(Debug)]
pub(crate) struct Journal {
    dir: OwnedFd,
    document: StateDocument,
    written: Vec<u8>,
}

impl Journal {
    /// Begins with a document that is not written yet.
    pub(crate) fn new(dir: impl AsFd, document: StateDocument) -> io::Result<Self> {
        Ok(Self {
            dir: dir.as_fd().try_clone_to_owned()?,
            document,
            written: Vec::new(),
        })
    }

    /// Changes the document and writes it, if that makes a difference. When it cannot be written, what it promises
    /// must not be done; the next change tries again.
    pub(crate) fn write(&mut self, change: impl FnOnce(&mut StateDocument)) -> io::Result<()> {
        change(&mut self.document);
        let bytes = self.document.encode().map_err(io::Error::other)?;
        if bytes != self.written {
            store::replace(&self.dir, &bytes)?;
            self.written = bytes;
        }
        Ok(())
    }
}

impl StateDocument {
    /// Takes over what the books of a running sandbox say. Of one that is being stopped only the binds matter: its
    /// daemon goes in any case, and the mounts with it.
    pub(crate) fn enter(&mut self, phase: PhaseRecord, ledger: &Ledger, binds: &BindBook) {
        self.phase = phase;
        if phase != PhaseRecord::Stopping {
            self.mounts = ledger.records().collect();
            self.next_slot = ledger.next_slot();
        }
        let binds = binds.iter().map(|(at, bind)| BindRecord {
            at: at.clone(),
            bind: bind.clone(),
        });
        self.binds = binds.collect();
    }
}
