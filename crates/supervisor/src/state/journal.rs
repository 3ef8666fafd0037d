//! The document of a sandbox that this process supervises, and the file it goes to.

use std::fs::File;
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
    /// For the next document, if it is made already.
    next: Option<File>,
}

impl Journal {
    /// Begins with a document that is not written yet.
    pub(crate) fn new(dir: impl AsFd, document: StateDocument) -> io::Result<Self> {
        Ok(Self {
            dir: dir.as_fd().try_clone_to_owned()?,
            document,
            written: Vec::new(),
            next: None,
        })
    }

    /// Changes the document and writes it, if that makes a difference. When it cannot be written, what it promises
    /// must not be done; the next change tries again.
    pub(crate) fn write(&mut self, change: impl FnOnce(&mut StateDocument)) -> io::Result<()> {
        change(&mut self.document);
        let bytes = self.document.encode().map_err(io::Error::other)?;
        if bytes != self.written {
            let prepared = self.next.take();
            let replaced = prepared.map(|next| store::replace(&self.dir, next, &bytes));
            // What was prepared may have been removed since.
            if !matches!(replaced, Some(Ok(()))) {
                store::replace(&self.dir, store::next(&self.dir)?, &bytes)?;
            }
            self.written = bytes;
        }
        Ok(())
    }

    /// Does what can be done of the next write, when nobody waits. What fails is tried, and told, then.
    pub(crate) fn prepare(&mut self) {
        if self.next.is_none() {
            self.next = store::next(&self.dir).ok();
        }
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

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use nydusbox_protocol::SandboxId;

    use super::*;
    use crate::config::SandboxConfig;
    use crate::program::Program;
    use crate::state::{STATE_NEW, read};

    #[test]
    fn what_was_prepared_is_used_and_not_relied_upon() {
        let dir = tempfile::tempdir().unwrap();
        let (id, program) = (SandboxId::new("s1").unwrap(), Program::stock("/bin/sh").unwrap());
        let config = SandboxConfig::new(id.clone(), dir.path(), program.clone()).unwrap();
        let document = StateDocument::new(id, program.record(), config.settings());
        let open = || File::open(dir.path()).unwrap();
        let mut journal = Journal::new(open(), document).unwrap();
        for (version, removed) in [("1", false), ("2", true), ("3", false)] {
            journal.prepare();
            if removed {
                std::fs::remove_file(dir.path().join(STATE_NEW)).unwrap();
            }
            journal
                .write(|document| version.clone_into(&mut document.program.version))
                .unwrap();
            let written = read(open()).unwrap().unwrap();
            assert_eq!(StateDocument::parse(&written).unwrap().program.version, version);
            assert!(!dir.path().join(STATE_NEW).exists());
        }
    }
}
