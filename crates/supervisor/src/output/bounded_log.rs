//! A log file of bounded size: one that has grown too large is set aside, in the place of the one before it.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

/// Size at which the file is set aside and begun anew. The state directory is usually in memory.
pub(super) const LOG_FILE_BYTES: u64 = 4 << 20;
/// How much is read again for the last lines.
const LAST_BYTES: u64 = 64 << 10;

/// A log, with one predecessor. Only its owner may read it.
#[derive(Debug)]
pub struct BoundedLog {
    path: PathBuf,
    set_aside: PathBuf,
    file: File,
    len: u64,
}

impl BoundedLog {
    /// Begins a new one.
    pub(super) fn create(path: &Path, set_aside: &Path) -> io::Result<Self> {
        Ok(Self {
            file: open_new(path)?,
            path: path.to_owned(),
            set_aside: set_aside.to_owned(),
            len: 0,
        })
    }

    /// Goes on with the one at `path`, or begins it. Once it is too large it is renamed to `set_aside`.
    ///
    /// # Errors
    /// When the file cannot be opened or made; a symlink is not followed.
    pub fn resume(path: &Path, set_aside: &Path) -> io::Result<Self> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::APPEND | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = File::from(rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)?);
        Ok(Self {
            path: path.to_owned(),
            set_aside: set_aside.to_owned(),
            len: file.metadata()?.len(),
            file,
        })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Its end, enough for the last lines.
    pub(super) fn last(&self) -> io::Result<Vec<u8>> {
        let begin = self.len.saturating_sub(LAST_BYTES);
        let mut kept = vec![0; usize::try_from(self.len - begin).unwrap_or(0)];
        self.file.read_exact_at(&mut kept, begin)?;
        Ok(kept)
    }

    /// Appends to it.
    ///
    /// # Errors
    /// When it cannot be written, or set aside.
    pub fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        // Also of what fails a part may have been written.
        self.len += bytes.len() as u64;
        self.file.write_all(bytes)?;
        match self.len >= LOG_FILE_BYTES {
            true => self.begin_anew(),
            false => Ok(()),
        }
    }

    fn begin_anew(&mut self) -> io::Result<()> {
        let is_set_aside = match std::fs::rename(&self.path, &self.set_aside) {
            // Somebody has removed it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            renamed => renamed,
        };
        match is_set_aside.and_then(|()| open_new(&self.path)) {
            Ok(file) => {
                (self.file, self.len) = (file, 0);
                Ok(())
            }
            // It goes on where it was, without what was in it: whoever does not mind the error is bounded, too.
            Err(error) => {
                self.file.set_len(0)?;
                self.len = 0;
                Err(error)
            }
        }
    }
}

fn open_new(path: &Path) -> io::Result<File> {
    let how = OFlags::CREATE | OFlags::TRUNC | OFlags::APPEND;
    let flags = how | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    Ok(rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)?.into())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_bounded_whoever_goes_on_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let (path, old) = (dir.path().join("log"), dir.path().join("log.old"));
        let len = |path: &Path| std::fs::metadata(path).unwrap().len();
        for _ in 0..10 {
            let mut log = BoundedLog::resume(&path, &old).unwrap();
            log.append(&vec![b'x'; 1 << 20]).unwrap();
        }
        assert_eq!((len(&old), len(&path)), (LOG_FILE_BYTES, 2 << 20));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_log_is_bounded_whatever_becomes_of_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let (path, old) = (dir.path().join("log"), dir.path().join("log.old"));
        let chunk = vec![b'x'; 1 << 20];
        let mut log = BoundedLog::resume(&path, &old).unwrap();
        log.append(b"x").unwrap();
        // Removed: what is written next is in a new one.
        std::fs::remove_file(&path).unwrap();
        for _ in 0..5 {
            log.append(&chunk).unwrap();
        }
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 1 << 20);
        // Not to be set aside: it stays where it is.
        std::fs::create_dir(&old).unwrap();
        let mut failed = 0;
        for _ in 0..10 {
            failed += usize::from(log.append(&chunk).is_err());
            assert!(log.file.metadata().unwrap().len() <= LOG_FILE_BYTES);
        }
        assert!(failed > 0);
        // Nor to be made anew.
        std::fs::remove_dir(&old).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        for _ in 0..10 {
            let _ = log.append(&chunk);
            assert!(log.file.metadata().unwrap().len() <= LOG_FILE_BYTES);
        }
    }
}
