//! The document of a sandbox that this process supervises, and the file it goes to.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};

use super::amendment::Amendment;
use super::document::{BindRecord, PhaseRecord, StateDocument};
use super::store;
use crate::binds::BindBook;
use crate::ledger::Ledger;

/// Amendments of a sandbox that never comes to rest; then its file is replaced while somebody waits.
const AMENDED_MOST_BYTES: usize = 256 << 10;

/// A document and what of it is written.
#[derive(Debug)]
pub(crate) struct Journal {
    dir: OwnedFd,
    document: StateDocument,
    /// `None` before the first time, and when it is not known what the file says.
    written: Option<Written>,
}

/// The file as it was written.
#[derive(Debug)]
struct Written {
    file: File,
    document: StateDocument,
    /// How much of it is amendments, in bytes.
    amended_bytes: usize,
}

impl Journal {
    /// Begins with a document that is not written yet.
    pub(crate) fn new(dir: impl AsFd, document: StateDocument) -> io::Result<Self> {
        Ok(Self {
            dir: dir.as_fd().try_clone_to_owned()?,
            document,
            written: None,
        })
    }

    /// Changes the document and writes it, if that makes a difference: as an amendment, if that suffices. When it
    /// cannot be written, what it promises must not be done; the next change tries again.
    pub(crate) fn write(&mut self, change: impl FnOnce(&mut StateDocument)) -> io::Result<()> {
        change(&mut self.document);
        // What fails is not known to be in the file: it is replaced.
        let Some(mut written) = self.written.take() else {
            return self.replace();
        };
        match written.amend(&self.document) {
            Ok(true) => self.written = Some(written),
            Ok(false) | Err(_) => return self.replace(),
        }
        Ok(())
    }

    /// Makes one document of the file, when nobody waits. If that fails, the next change tries, and tells.
    pub(crate) fn tidy(&mut self) {
        if self
            .written
            .as_ref()
            .is_none_or(|written| written.amended_bytes > 0)
        {
            self.written = None;
            let _ = self.replace();
        }
    }

    fn replace(&mut self) -> io::Result<()> {
        let bytes = self.document.encode().map_err(io::Error::other)?;
        let file = store::replace(&self.dir, &bytes)?;
        self.written = Some(Written {
            file,
            document: self.document.clone(),
            amended_bytes: 0,
        });
        Ok(())
    }
}

impl Written {
    /// Appends what makes `new` of it; `false` when that is more than an amendment can say, or nobody would find it.
    fn amend(&mut self, new: &StateDocument) -> io::Result<bool> {
        let Some(amendment) = Amendment::between(&self.document, new) else {
            return Ok(false);
        };
        if amendment.is_none(&self.document) {
            return Ok(true);
        }
        // It was removed.
        if rustix::fs::fstat(&self.file)?.st_nlink == 0 {
            return Ok(false);
        }
        let line = amendment.encode()?;
        self.amended_bytes += line.len();
        if self.amended_bytes > AMENDED_MOST_BYTES {
            return Ok(false);
        }
        self.file.write_all(&line)?;
        Ok(amendment.apply(&mut self.document))
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
    use nydusbox_protocol::{MountCommand, MountPoint, SandboxId};

    use super::*;
    use crate::config::SandboxConfig;
    use crate::program::Program;
    use crate::state::{MountRecord, STATE, read};

    /// A journal and the directory it is in.
    fn journal() -> (tempfile::TempDir, Journal) {
        let dir = tempfile::tempdir().unwrap();
        let (id, program) = (SandboxId::new("s1").unwrap(), Program::stock("/bin/sh").unwrap());
        let config = SandboxConfig::new(id.clone(), dir.path(), program.clone()).unwrap();
        let document = StateDocument::new(id, program.record(), config.settings());
        let journal = Journal::new(File::open(dir.path()).unwrap(), document).unwrap();
        (dir, journal)
    }

    fn bytes(dir: &tempfile::TempDir) -> Vec<u8> {
        read(File::open(dir.path()).unwrap()).unwrap().unwrap()
    }

    fn mount(name: &str) -> MountRecord {
        MountRecord {
            at: MountPoint::new(name).unwrap(),
            command: MountCommand::passthrough("/src").into(),
            slot: None,
            replacements: Vec::new(),
        }
    }

    #[test]
    fn whatever_changes_is_in_the_file_at_once_and_mounts_are_a_line_until_it_is_tidied() {
        let (dir, mut journal) = journal();
        let lines = |dir: &tempfile::TempDir| String::from_utf8(bytes(dir)).unwrap().lines().count();
        type Change = Box<dyn Fn(&mut StateDocument)>;
        let steps: Vec<(&str, usize, Change)> = vec![
            ("begins", 1, Box::new(|_| ())),
            ("mounts", 2, Box::new(|d| d.mounts.push(mount("/a")))),
            ("nothing", 2, Box::new(|_| ())),
            (
                "counts",
                3,
                Box::new(|d| (d.mounts[0].slot, d.next_slot) = (Some(1), Some(2))),
            ),
            (
                "mounts more",
                4,
                Box::new(|d| d.mounts.extend([mount("/b"), mount("/c")])),
            ),
            ("unmounts", 5, Box::new(|d| drop(d.mounts.remove(1)))),
            ("unmounts all", 6, Box::new(|d| d.mounts.clear())),
            (
                "more than mounts",
                1,
                Box::new(|d| d.phase = PhaseRecord::Stopping),
            ),
            ("mounts again", 2, Box::new(|d| d.mounts.push(mount("/a")))),
        ];
        for (step, expected, change) in &steps {
            journal.write(change).unwrap();
            assert_eq!(lines(&dir), *expected, "{step}");
            assert!(
                StateDocument::parse(&bytes(&dir)).unwrap() == journal.document,
                "{step}"
            );
        }
        journal.tidy();
        assert!(StateDocument::parse(&bytes(&dir)).unwrap() == journal.document);
        assert_eq!(bytes(&dir), journal.document.encode().unwrap());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no remnant");
    }

    #[test]
    fn a_line_that_nobody_would_find_is_not_written() {
        let (dir, mut journal) = journal();
        journal.write(|_| ()).unwrap();
        std::fs::remove_file(dir.path().join(STATE)).unwrap();
        journal
            .write(|document| document.mounts.push(mount("/a")))
            .unwrap();
        assert_eq!(StateDocument::parse(&bytes(&dir)).unwrap().mounts, [mount("/a")]);
        drop(std::fs::remove_dir_all(dir.path()));
        let refused = journal.write(|document| document.mounts.push(mount("/b")));
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn after_a_line_that_could_not_be_written_the_document_is() {
        let (dir, mut journal) = journal();
        journal.write(|_| ()).unwrap();
        // It takes no more: a disk that is full.
        journal.written.as_mut().unwrap().file = File::options().write(true).open("/dev/full").unwrap();
        journal
            .write(|document| document.mounts.push(mount("/a")))
            .unwrap();
        assert_eq!(bytes(&dir), journal.document.encode().unwrap());
    }
}
