//! The document of a sandbox that this process supervises, and the file it goes to.

use std::fs::File;
use std::io::{self, Write};
use std::mem;
use std::os::fd::{AsFd, OwnedFd};

use super::amendment::Amendment;
use nydusbox_protocol::{LogLevel, MountPoint};

use super::document::{BindRecord, PhaseRecord, StateDocument};
use super::store;
use crate::binds::{Bind, BindBook};
use crate::ledger::Ledger;

/// Amendments of a sandbox that never comes to rest; then its file is replaced while somebody waits.
const AMENDED_MOST_BYTES: usize = 256 << 10;

/// A document, and the file that says the same.
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
    /// How much of it is amendments, in bytes.
    amended_bytes: usize,
}

/// What the books of a running sandbox say.
#[derive(Debug)]
pub(crate) struct Books<'a> {
    pub(crate) phase: PhaseRecord,
    pub(crate) ledger: &'a Ledger,
    pub(crate) binds: &'a BindBook,
    /// As the daemon names it.
    pub(crate) version: &'a str,
    pub(crate) log_level: LogLevel,
}

/// How a document has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Nothing,
    /// The mounts from this one on, or where the count of slots stands.
    Mounts {
        from: usize,
    },
    /// Anything else.
    More,
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

    /// Changes the document and writes it, if that makes a difference. When it cannot be written, what it promises must
    /// not be done; the next change tries again.
    pub(crate) fn write(&mut self, change: impl FnOnce(&mut StateDocument)) -> io::Result<()> {
        let before = self.document.clone();
        change(&mut self.document);
        self.put_down(match self.document == before {
            true => Change::Nothing,
            false => Change::More,
        })
    }

    /// The same for what the books say: as an amendment, if that suffices.
    pub(crate) fn enter(&mut self, books: &Books<'_>) -> io::Result<()> {
        let change = self.document.enter(books);
        self.put_down(change)
    }

    fn put_down(&mut self, change: Change) -> io::Result<()> {
        // What fails is not known to be in the file: it is replaced.
        let Some(mut written) = self.written.take() else {
            return self.replace();
        };
        let from = match change {
            Change::Nothing => self.document.mounts.len(),
            Change::Mounts { from } => from,
            Change::More => return self.replace(),
        };
        if change == Change::Nothing
            || written
                .amend(&Amendment::of(&self.document, from))
                .is_ok_and(|done| done)
        {
            self.written = Some(written);
            return Ok(());
        }
        self.replace()
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
            amended_bytes: 0,
        });
        Ok(())
    }
}

impl Written {
    /// Appends an amendment; `false` when there are enough of them, or nobody would find it.
    fn amend(&mut self, amendment: &Amendment<'_>) -> io::Result<bool> {
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
        Ok(true)
    }
}

impl StateDocument {
    /// Takes over what the books of a running sandbox say. Of one that is being stopped only the binds matter: its
    /// daemon goes in any case, and the mounts with it.
    fn enter(&mut self, books: &Books<'_>) -> Change {
        let Books {
            phase,
            ledger,
            binds,
            version,
            log_level,
        } = *books;
        let mut more = mem::replace(&mut self.phase, phase) != phase;
        more |= mem::replace(&mut self.settings.log_level, log_level) != log_level;
        if self.program.version != version {
            version.clone_into(&mut self.program.version);
            more = true;
        }
        let same = |(record, (at, bind)): (&BindRecord, (&MountPoint, &Bind))| {
            (&record.at, &record.bind) == (at, bind)
        };
        if binds.len() != self.binds.len() || !self.binds.iter().zip(binds.iter()).all(same) {
            let records = binds.iter().map(|(at, bind)| BindRecord {
                at: at.clone(),
                bind: bind.clone(),
            });
            self.binds = records.collect();
            more = true;
        }
        let mut mounts = Change::Nothing;
        if phase != PhaseRecord::Stopping {
            let from = ledger.agrees_with(&self.mounts);
            let next_slot = ledger.next_slot();
            let counted = mem::replace(&mut self.next_slot, next_slot) != next_slot;
            if counted || from < self.mounts.len() || from < ledger.used() {
                self.mounts.truncate(from);
                self.mounts.extend(ledger.records(from));
                mounts = Change::Mounts { from };
            }
        }
        if more { Change::More } else { mounts }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use nydusbox_protocol::{BackendEntry, MountCommand, SandboxId};

    use super::*;
    use crate::config::SandboxConfig;
    use crate::program::Program;
    use crate::request::MountRequest;
    use crate::slots::Slot;
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
            unplaced: false,
            replacements: Vec::new(),
        }
    }

    /// The book of a daemon that has these mounts and counts from this slot on.
    fn ledger(mounts: &[&str], next: Slot) -> Ledger {
        let entry = |place: &&str| {
            let entry = BackendEntry {
                backend_type: "PassthroughFs".to_owned(),
                mountpoint: (*place).to_owned(),
                mounted_time: String::new(),
                config: None,
            };
            ((*place).to_owned(), entry)
        };
        let records = mounts.iter().map(|place| mount(place)).collect();
        Ledger::recalled(records, Some(next), Some(&mounts.iter().map(entry).collect()))
    }

    fn enter(journal: &mut Journal, phase: PhaseRecord, ledger: &Ledger) -> io::Result<()> {
        journal.enter(&Books {
            phase,
            ledger,
            binds: &BindBook::default(),
            version: "1.2.3",
            log_level: LogLevel::Info,
        })
    }

    #[test]
    fn whatever_changes_is_in_the_file_at_once_and_mounts_are_a_line_until_it_is_tidied() {
        use PhaseRecord::{Serving, Starting, Stopping};
        let (dir, mut journal) = journal();
        let lines = |dir: &tempfile::TempDir| String::from_utf8(bytes(dir)).unwrap().lines().count();
        let steps = [
            ("begins", 1, Starting, [].as_slice(), 1),
            ("serves", 1, Serving, &[], 1),
            ("mounts", 2, Serving, &["/a"], 1),
            ("nothing", 2, Serving, &["/a"], 1),
            ("counts", 3, Serving, &["/a"], 2),
            ("mounts more", 4, Serving, &["/a", "/b", "/c"], 2),
            ("unmounts", 5, Serving, &["/a", "/c"], 2),
            ("mounts another", 6, Serving, &["/a", "/d"], 2),
            ("unmounts all", 7, Serving, &[], 2),
            ("more than mounts", 1, Starting, &[], 2),
            ("mounts again", 2, Starting, &["/a"], 2),
            ("stops", 1, Stopping, &[], 9),
        ];
        for (step, expected, phase, mounts, next) in steps {
            let ledger = ledger(mounts, next);
            enter(&mut journal, phase, &ledger).unwrap();
            assert_eq!(lines(&dir), expected, "{step}");
            let read = StateDocument::parse(&bytes(&dir)).unwrap();
            assert!(read == journal.document, "{step}");
            assert_eq!((read.phase, read.program.version.as_str()), (phase, "1.2.3"));
            if phase != Stopping {
                let records: Vec<_> = ledger.records(0).collect();
                assert_eq!(
                    (read.mounts, read.next_slot),
                    (records, ledger.next_slot()),
                    "{step}"
                );
            }
        }
        assert_eq!(journal.document.mounts.len(), 1, "the mounts go with the daemon");
        journal.tidy();
        assert!(StateDocument::parse(&bytes(&dir)).unwrap() == journal.document);
        assert_eq!(bytes(&dir), journal.document.encode().unwrap());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no remnant");
    }

    /// The count of slots goes on, and stays as it is when something is unmounted.
    #[test]
    fn a_mount_that_goes_is_a_line_of_its_own() {
        let (dir, mut journal) = journal();
        let mut ledger = Ledger::default();
        enter(&mut journal, PhaseRecord::Serving, &ledger).unwrap();
        let request = MountRequest::passthrough(MountPoint::new("/a").unwrap(), "/src").unwrap();
        ledger.admit(&request).unwrap();
        ledger.settle_mount(request.at(), Ok(())).unwrap();
        enter(&mut journal, PhaseRecord::Serving, &ledger).unwrap();
        assert_eq!(StateDocument::parse(&bytes(&dir)).unwrap().mounts.len(), 1);
        ledger.settle_unmount(request.at(), Ok(())).unwrap();
        enter(&mut journal, PhaseRecord::Serving, &ledger).unwrap();
        assert!(StateDocument::parse(&bytes(&dir)).unwrap().mounts.is_empty());
    }

    #[test]
    fn a_line_that_nobody_would_find_is_not_written() {
        let (dir, mut journal) = journal();
        enter(&mut journal, PhaseRecord::Starting, &ledger(&[], 1)).unwrap();
        std::fs::remove_file(dir.path().join(STATE)).unwrap();
        enter(&mut journal, PhaseRecord::Starting, &ledger(&["/a"], 1)).unwrap();
        assert_eq!(StateDocument::parse(&bytes(&dir)).unwrap().mounts.len(), 1);
        drop(std::fs::remove_dir_all(dir.path()));
        let refused = enter(&mut journal, PhaseRecord::Starting, &ledger(&["/a", "/b"], 1));
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn after_a_line_that_could_not_be_written_the_document_is() {
        let (dir, mut journal) = journal();
        enter(&mut journal, PhaseRecord::Starting, &ledger(&[], 1)).unwrap();
        // It takes no more: a disk that is full.
        journal.written.as_mut().unwrap().file = File::options().write(true).open("/dev/full").unwrap();
        enter(&mut journal, PhaseRecord::Starting, &ledger(&["/a"], 1)).unwrap();
        assert_eq!(bytes(&dir), journal.document.encode().unwrap());
    }
}
