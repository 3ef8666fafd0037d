//! What the guest's console says: its end is kept for errors, and is in a file meanwhile for whoever looks.
//!
//! What runs in the guest may go on talking there for as long as it lives, so neither grows without bound.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::fs::File;
use tokio::io::{self, AsyncRead, AsyncReadExt, AsyncSeekExt, AsyncWriteExt};

use super::tail::Tail;

/// Of the file. What does not fit any more has it begin anew.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// A console, for who follows it and who asks what it said last.
#[derive(Debug, Clone, Default)]
pub(super) struct Console(Arc<Mutex<Tail>>);

impl Console {
    /// Takes what it says until its end. A file that can't be written is none: it is an extra.
    pub(super) async fn follow(&self, mut stream: impl AsyncRead + Unpin, path: &Path) {
        let said = |error: &io::Error| tracing::warn!(?path, %error, "the console is not in its file");
        let mut log = Log::create(path).await.inspect_err(said).ok();
        let mut buffer = [0; 4096];
        while let Ok(read @ 1..) = stream.read(&mut buffer).await {
            let text = &buffer[..read];
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(text);
            if let Some(file) = &mut log
                && file.append(text).await.inspect_err(said).is_err()
            {
                log = None;
            }
        }
        if let Some(mut log) = log {
            let _ = log.file.flush().await.inspect_err(said);
        }
    }

    pub(super) fn last_lines(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).lines()
    }
}

struct Log {
    file: File,
    bytes: u64,
}

impl Log {
    async fn create(path: &Path) -> io::Result<Self> {
        let file = File::create(path).await?;
        Ok(Self { file, bytes: 0 })
    }

    async fn append(&mut self, text: &[u8]) -> io::Result<()> {
        self.bytes += text.len() as u64;
        if self.bytes > MAX_FILE_BYTES {
            self.file.flush().await?;
            self.file.set_len(0).await?;
            self.file.rewind().await?;
            self.bytes = text.len() as u64;
        }
        self.file.write_all(text).await
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_console_that_does_not_stop_fills_no_disk() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console");
        let console = Console::default();
        let noise = io::repeat(b'x').take(3 * MAX_FILE_BYTES + 4096);
        console.follow(noise.chain(&b"\nlast\n"[..]), &path).await;
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.len() as u64 <= MAX_FILE_BYTES && text.ends_with("xx\nlast\n"));
        assert_eq!(console.last_lines().last().unwrap(), "last");
    }

    #[tokio::test]
    async fn a_console_without_a_file_is_heard() {
        let console = Console::default();
        console
            .follow(&b"one\ntwo\n"[..], Path::new("/nonexistent/console"))
            .await;
        assert_eq!(console.last_lines(), ["one", "two"]);
    }
}
