//! What the daemon prints: read without ever making it wait, kept as a log file and as the last few lines.
//!
//! The pipe is read in chunks, so no line is too long; bytes that are not UTF-8 or would disturb a terminal are
//! replaced in the kept lines, the file has them as they came. Nothing here interprets a line. Driven by
//! [`crate::daemon`].

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nydusbox_protocol::SandboxId;
use rustix::fs::{Mode, OFlags};
use tokio::net::unix::pipe::Receiver;

/// How many lines are kept for an error.
pub(crate) const LAST_LINES: usize = 20;
/// How much of one line is kept, in bytes; the file has all of it.
const LINE_KEPT_BYTES: usize = 4096;
/// Size at which the log file is set aside and begun anew. The state directory is usually in memory.
const LOG_FILE_BYTES: u64 = 4 << 20;
const CHUNK_BYTES: usize = 64 << 10;

/// The reading end of a daemon's standard output and error.
#[derive(Debug)]
pub(crate) struct Output {
    pipe: Option<Receiver>,
    chunk: Box<[u8]>,
    tail: Tail,
    log: LogFile,
    sandbox: SandboxId,
}

impl Output {
    /// Takes the reading end of a pipe. Must be called within a runtime.
    pub(crate) fn new(pipe: OwnedFd, log: LogFile, sandbox: SandboxId) -> io::Result<Self> {
        Ok(Self {
            pipe: Some(Receiver::from_owned_fd(pipe)?),
            chunk: vec![0; CHUNK_BYTES].into_boxed_slice(),
            tail: Tail::default(),
            log,
            sandbox,
        })
    }

    /// As [`Output::new`], with the last lines of the log that was kept so far.
    pub(crate) fn resume(pipe: OwnedFd, log: LogFile, sandbox: SandboxId) -> io::Result<Self> {
        let kept = log.end()?;
        let mut output = Self::new(pipe, log, sandbox)?;
        output.tail.push(&kept, |_| ());
        Ok(output)
    }

    /// Whether every writer has closed its end.
    pub(crate) fn ended(&self) -> bool {
        self.pipe.is_none()
    }

    /// Reads what is there, at most one chunk; waits when there is nothing, for ever once it has ended.
    /// Cancel safe.
    pub(crate) async fn pump(&mut self) {
        let Some(pipe) = &self.pipe else {
            return std::future::pending().await;
        };
        if pipe.readable().await.is_err() {
            return std::future::pending().await;
        }
        match pipe.try_read(&mut self.chunk) {
            Ok(0) => self.pipe = None,
            Ok(n) => {
                let bytes = &self.chunk[..n];
                // A plain write: the file is in the sandbox directory, by default in memory, and handing every
                // chunk to a thread would let the pipe fill up meanwhile.
                self.log.append(bytes);
                let sandbox = &self.sandbox;
                self.tail.push(bytes, |line| {
                    tracing::debug!(target: "nydusbox::daemon", %sandbox, "{line}");
                });
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                tracing::warn!(sandbox = %self.sandbox, %error, "cannot read the daemon's output");
                self.pipe = None;
            }
        }
    }

    /// The last lines so far, oldest first, an unfinished one included.
    pub(crate) fn last_lines(&self) -> Vec<String> {
        self.tail.lines()
    }
}

/// The last lines of a stream of bytes.
#[derive(Debug, Default)]
struct Tail {
    lines: VecDeque<String>,
    partial: Vec<u8>,
}

impl Tail {
    fn push(&mut self, mut bytes: &[u8], mut finished: impl FnMut(&str)) {
        while let Some(end) = bytes.iter().position(|&b| b == b'\n') {
            self.extend(&bytes[..end]);
            bytes = &bytes[end + 1..];
            let line = readable(&self.partial);
            self.partial.clear();
            if line.is_empty() {
                continue;
            }
            finished(&line);
            if self.lines.len() == LAST_LINES {
                self.lines.pop_front();
            }
            self.lines.push_back(line);
        }
        self.extend(bytes);
    }

    fn extend(&mut self, bytes: &[u8]) {
        let room = LINE_KEPT_BYTES.saturating_sub(self.partial.len());
        self.partial.extend_from_slice(&bytes[..room.min(bytes.len())]);
    }

    fn lines(&self) -> Vec<String> {
        let unfinished = Some(readable(&self.partial)).filter(|l| !l.is_empty());
        let skip = (self.lines.len() + usize::from(unfinished.is_some())).saturating_sub(LAST_LINES);
        self.lines.iter().skip(skip).cloned().chain(unfinished).collect()
    }
}

/// Text fit for a terminal: colours (nydusd writes them into pipes too) removed, other control characters and
/// invalid UTF-8 replaced, white space at the end cut off.
fn readable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut out = String::with_capacity(text.len());
    let mut chars = text.trim_end().chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            // CSI: parameters and intermediates up to one final byte `@` to `~`.
            '\u{1b}' if chars.peek() == Some(&'[') => {
                chars.next();
                let _ = chars.find(|c| ('@'..='~').contains(c));
            }
            '\t' => out.push(c),
            c if c.is_control() => out.push(char::REPLACEMENT_CHARACTER),
            c => out.push(c),
        }
    }
    out
}

/// `daemon.log`, with one predecessor, bounded in size.
#[derive(Debug)]
pub(crate) struct LogFile {
    path: PathBuf,
    set_aside: PathBuf,
    /// `None` after a failed write: a full disk must not stop the daemon, and one warning is enough.
    file: Option<File>,
    len: u64,
}

impl LogFile {
    /// Begins a new log.
    pub(crate) fn create(path: &Path, set_aside: &Path) -> io::Result<Self> {
        Ok(Self {
            file: Some(open_new(path)?),
            path: path.to_owned(),
            set_aside: set_aside.to_owned(),
            len: 0,
        })
    }

    /// Goes on with the log of a predecessor.
    pub(crate) fn resume(path: &Path, set_aside: &Path) -> io::Result<Self> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::APPEND | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = File::from(rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)?);
        Ok(Self {
            path: path.to_owned(),
            set_aside: set_aside.to_owned(),
            len: file.metadata()?.len(),
            file: Some(file),
        })
    }

    /// Its end, enough for the last lines.
    fn end(&self) -> io::Result<Vec<u8>> {
        let begin = self.len.saturating_sub(CHUNK_BYTES as u64);
        let mut kept = vec![0; usize::try_from(self.len - begin).unwrap_or(0)];
        if let Some(file) = &self.file {
            file.read_exact_at(&mut kept, begin)?;
        }
        Ok(kept)
    }

    fn append(&mut self, bytes: &[u8]) {
        if let Err(error) = self.write(bytes) {
            tracing::warn!(path = %self.path.display(), %error, "the daemon's log is not kept any more");
            self.file = None;
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        file.write_all(bytes)?;
        self.len += bytes.len() as u64;
        if self.len >= LOG_FILE_BYTES {
            std::fs::rename(&self.path, &self.set_aside)?;
            *file = open_new(&self.path)?;
            self.len = 0;
        }
        Ok(())
    }
}

fn open_new(path: &Path) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    Ok(rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)?.into())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tail(chunks: &[&[u8]]) -> Vec<String> {
        let mut tail = Tail::default();
        for chunk in chunks {
            tail.push(chunk, |_| ());
        }
        tail.lines()
    }

    #[test]
    fn lines_are_joined_across_chunks_and_the_unfinished_one_counts() {
        assert_eq!(tail(&[b"a", b"b\nc", b"\r\nlast"]), ["ab", "c", "last"]);
    }

    #[test]
    fn only_the_last_lines_are_kept() {
        let text: String = (0..100).map(|i| format!("{i}\n")).collect();
        let lines = tail(&[text.as_bytes(), b"x"]);
        assert_eq!(lines.len(), LAST_LINES);
        assert_eq!((lines[0].as_str(), lines[19].as_str()), ("81", "x"));
    }

    #[test]
    fn a_line_of_any_length_is_cut_to_its_beginning() {
        let long = vec![b'x'; 10 << 20];
        let lines = tail(&[&long, &long, b"\nnext\n"]);
        assert_eq!((lines[0].len(), lines[1].as_str()), (LINE_KEPT_BYTES, "next"));
    }

    #[test]
    fn what_would_disturb_a_terminal_is_taken_out() {
        assert_eq!(
            tail(&[b"\x1b[31mred\x1b[0m\x07 \xff\tend\n"]),
            ["red\u{fffd} \u{fffd}\tend"]
        );
    }

    #[test]
    fn the_log_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let (path, aside) = (dir.path().join("log"), dir.path().join("log.old"));
        let mut log = LogFile::create(&path, &aside).unwrap();
        let chunk = vec![b'x'; 1 << 20];
        for _ in 0..10 {
            log.append(&chunk);
        }
        let len = |p: &Path| std::fs::metadata(p).unwrap().len();
        assert_eq!((len(&aside), len(&path)), (LOG_FILE_BYTES, 2 << 20));
    }

    proptest! {
        /// However the stream is cut into chunks, the lines are those of the whole text.
        #[test]
        fn chunking_does_not_matter(text in "[a-c\n]{0,200}", cuts in proptest::collection::vec(0usize..200, 0..8)) {
            let bytes = text.as_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> = cuts.windows(2).map(|w| &bytes[w[0]..w[1]]).collect();
            let all: Vec<&str> = text.split('\n').filter(|l| !l.is_empty()).collect();
            let expected = &all[all.len().saturating_sub(LAST_LINES)..];
            prop_assert_eq!(tail(&chunks), expected);
        }
    }
}
