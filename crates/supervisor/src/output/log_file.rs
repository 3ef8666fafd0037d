//! The daemon's log as a file: bounded in size, and without credentials.
//!
//! As long as no credential is known, bytes go through as they come. After that whole lines do, because a chunk may
//! end in the middle of one. Driven by [`super::Output`].

use std::io;
use std::path::Path;

use super::bounded_log::BoundedLog;
use crate::secrets::Secrets;

/// How much of an unfinished line is held back.
const HELD_BYTES: usize = 64 << 10;

/// `daemon.log`, with one predecessor, bounded in size.
#[derive(Debug)]
pub(crate) struct LogFile {
    /// `None` after a failed write: a full disk must not stop the daemon, and one warning is enough.
    file: Option<BoundedLog>,
    /// The beginning of a line in which a credential may be.
    held: Vec<u8>,
}

impl LogFile {
    /// Begins a new log.
    pub(crate) fn create(path: &Path, set_aside: &Path) -> io::Result<Self> {
        BoundedLog::create(path, set_aside).map(Self::on)
    }

    /// Goes on with the log of a predecessor.
    pub(crate) fn resume(path: &Path, set_aside: &Path) -> io::Result<Self> {
        BoundedLog::resume(path, set_aside).map(Self::on)
    }

    fn on(file: BoundedLog) -> Self {
        Self {
            file: Some(file),
            held: Vec::new(),
        }
    }

    /// Its end, enough for the last lines.
    pub(super) fn last(&self) -> io::Result<Vec<u8>> {
        self.file.as_ref().map_or(Ok(Vec::new()), BoundedLog::last)
    }

    /// Takes bytes as they were printed.
    pub(super) fn take(&mut self, bytes: &[u8], secrets: &Secrets) {
        let longest = secrets.longest();
        if longest == 0 && self.held.is_empty() {
            return self.append(bytes);
        }
        let before = self.held.len();
        self.held.extend_from_slice(bytes);
        if let Some(end) = bytes.iter().rposition(|&b| b == b'\n') {
            let rest = self.held.split_off(before + end + 1);
            let lines = std::mem::replace(&mut self.held, rest);
            self.append_masked(&lines, secrets);
        }
        if self.held.len() > HELD_BYTES {
            // What is whole in it is masked, so that only its end can be the beginning of another.
            let text = String::from_utf8_lossy(&self.held);
            let mut masked = secrets.mask_whole(&text).into_owned().into_bytes();
            self.held = masked.split_off(masked.len().saturating_sub(longest));
            self.append(&masked);
        }
    }

    /// Nothing follows.
    pub(super) fn finish(&mut self, secrets: &Secrets) {
        let rest = std::mem::take(&mut self.held);
        self.append_masked(&rest, secrets);
    }

    fn append_masked(&mut self, bytes: &[u8], secrets: &Secrets) {
        let text = String::from_utf8_lossy(bytes);
        match secrets.mask(&text) {
            masked if masked == text => self.append(bytes),
            masked => self.append(masked.as_bytes()),
        }
    }

    fn append(&mut self, bytes: &[u8]) {
        if let Some(file) = &mut self.file
            && let Err(error) = file.append(bytes)
        {
            tracing::warn!(path = %file.path().display(), %error, "the daemon's log is not kept any more");
            self.file = None;
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::super::bounded_log::LOG_FILE_BYTES;
    use super::*;

    fn log() -> (tempfile::TempDir, LogFile) {
        let dir = tempfile::tempdir().unwrap();
        let log = LogFile::create(&dir.path().join("log"), &dir.path().join("log.old")).unwrap();
        (dir, log)
    }

    fn len(path: &Path) -> u64 {
        std::fs::metadata(path).unwrap().len()
    }

    #[test]
    fn the_log_is_bounded() {
        let (dir, mut log) = log();
        let chunk = vec![b'x'; 1 << 20];
        for _ in 0..10 {
            log.take(&chunk, &Secrets::default());
        }
        assert_eq!(len(&dir.path().join("log.old")), LOG_FILE_BYTES);
        assert_eq!(len(&dir.path().join("log")), 2 << 20);
    }

    #[test]
    fn a_credential_is_not_in_it_however_it_is_cut_into_chunks() {
        let (dir, mut log) = log();
        let secrets = Secrets::default();
        log.take(b"as it \xff comes\n", &secrets);
        secrets.learn("S3CR3T-TOKEN");
        let long = format!("{}S3CR3T-TOKEN{}", "y".repeat(HELD_BYTES), "z".repeat(HELD_BYTES));
        let text = format!("auth S3CR3T-TOKEN end\n{long}\nlast S3CR3T-TOKEN");
        for chunk in text.as_bytes().chunks(777) {
            log.take(chunk, &secrets);
        }
        log.take(b" more \xff too\nS3CR3", &secrets);
        log.finish(&secrets);
        let written = std::fs::read(dir.path().join("log")).unwrap();
        let text = String::from_utf8_lossy(&written);
        assert!(written.starts_with(b"as it \xff comes\nauth *** end\n"),);
        assert!(!text.contains("S3CR3"));
        assert_eq!(
            text.matches('y').count() + text.matches('z').count(),
            2 * HELD_BYTES
        );
    }
}
