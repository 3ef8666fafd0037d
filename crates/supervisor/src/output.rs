//! What the daemon prints: read without ever making it wait, kept as a log file and as the last few lines.
//!
//! The pipe is read in chunks, so no line is too long; bytes that are not UTF-8 or would disturb a terminal are
//! replaced in the kept lines, the file (`log_file`) has them as they came. Credentials of the sandbox are masked in
//! both. Each line is also an event of this process' own log, with the level the daemon gave it (`line`). Driven by
//! [`crate::daemon`].

mod bounded_log;
mod line;
mod log_file;

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use nydusbox_protocol::SandboxId;
use nydusbox_protocol::log::{FRONTEND_CONNECTED, FRONTEND_LEFT};
use tokio::net::unix::pipe::Receiver;
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::Level;

use crate::alarm::Alarm;
use crate::secrets::Secrets;
pub use bounded_log::BoundedLog;
pub(crate) use log_file::LogFile;

/// How many lines are kept for an error.
pub(crate) const LAST_LINES: usize = 20;
/// How much of one line is kept, in bytes; the file has all of it.
const LINE_KEPT_BYTES: usize = 4096;
const CHUNK_BYTES: usize = 64 << 10;
/// How long what a daemon begins to print, or prints during a call, is left in the pipe, which holds 64 KiB at the
/// least. To be woken by its lines one by one would cost a call as much as everything else about it.
const GATHERED: Duration = Duration::from_millis(2);
/// The same for one call after the other.
const GATHERED_MOST: Duration = Duration::from_millis(10);

#[derive(Debug)]
enum Pipe {
    /// The runtime says when there is something.
    Watched(Receiver),
    /// What is written wakes nobody.
    Left(OwnedFd),
    Ended,
}

/// The reading end of a daemon's standard output and error.
#[derive(Debug)]
pub(crate) struct Output {
    pipe: Pipe,
    /// When to read; `None` while nothing is there, as far as is known.
    due: Option<Instant>,
    alarm: Alarm,
    /// Since when there may be something that was not read.
    since: Option<Instant>,
    chunk: Box<[u8]>,
    tail: Tail,
    log: LogFile,
    sandbox: SandboxId,
    secrets: Secrets,
    /// Told each time a line says that a VMM has come or gone.
    frontend_moved: Option<Arc<Notify>>,
}

impl Output {
    /// Takes the reading end of a pipe. Must be called within a runtime.
    pub(crate) fn new(pipe: OwnedFd, log: LogFile, sandbox: SandboxId, secrets: Secrets) -> io::Result<Self> {
        Ok(Self {
            pipe: Pipe::Watched(Receiver::from_owned_fd(pipe)?),
            due: None,
            alarm: Alarm::at(Instant::now()),
            since: None,
            chunk: vec![0; CHUNK_BYTES].into_boxed_slice(),
            tail: Tail::default(),
            log,
            sandbox,
            secrets,
            frontend_moved: None,
        })
    }

    /// From now on somebody is told each time a line says that a VMM has come or gone.
    pub(crate) fn tell_of_frontends(&mut self, whom: Arc<Notify>) {
        self.frontend_moved = Some(whom);
    }

    /// As [`Output::new`], with the last lines of the log that was kept so far.
    pub(crate) fn resume(
        pipe: OwnedFd,
        log: LogFile,
        sandbox: SandboxId,
        secrets: Secrets,
    ) -> io::Result<Self> {
        let kept = log.last()?;
        let mut output = Self::new(pipe, log, sandbox, secrets)?;
        output.tail.push(&kept, &output.secrets, |_| ());
        Ok(output)
    }

    /// Whether every writer has closed its end.
    pub(crate) fn ended(&self) -> bool {
        matches!(self.pipe, Pipe::Ended)
    }

    /// A call begins: what is printed for the moment is left where it is, and wakes nobody.
    pub(crate) fn leave(&mut self) {
        self.pipe = match std::mem::replace(&mut self.pipe, Pipe::Ended) {
            Pipe::Watched(pipe) => match pipe.into_nonblocking_fd() {
                Ok(pipe) => Pipe::Left(pipe),
                Err(error) => self.lost(&error),
            },
            pipe @ (Pipe::Left(_) | Pipe::Ended) => pipe,
        };
        self.gather();
    }

    /// When what there is will be read: later, if this is called again, but not for ever.
    fn gather(&mut self) -> Instant {
        let now = Instant::now();
        let since = *self.since.get_or_insert(now);
        *self.due.insert((now + GATHERED).min(since + GATHERED_MOST))
    }

    fn watch(&mut self) {
        self.pipe = match std::mem::replace(&mut self.pipe, Pipe::Ended) {
            Pipe::Left(pipe) => match Receiver::from_owned_fd(pipe) {
                Ok(pipe) => Pipe::Watched(pipe),
                Err(error) => self.lost(&error),
            },
            pipe @ (Pipe::Watched(_) | Pipe::Ended) => pipe,
        };
    }

    /// Reads what has gathered, at most one chunk; waits when there is nothing, for ever once it has ended.
    /// Cancel safe.
    pub(crate) async fn pump(&mut self) {
        let due = match self.due {
            Some(due) => due,
            None => {
                self.wait().await;
                self.gather()
            }
        };
        self.alarm.set(due);
        self.alarm.rung().await;
        self.due = self.read().then_some(due);
        if self.due.is_none() {
            self.since = None;
            self.watch();
        }
    }

    /// The same without leaving it to gather.
    pub(crate) async fn pump_at_once(&mut self) {
        self.watch();
        self.wait().await;
        self.read();
    }

    /// Until there may be something.
    async fn wait(&self) {
        let readable = match &self.pipe {
            // One waits, which takes no place in a list of those who do.
            Pipe::Watched(pipe) => poll_fn(|context| pipe.poll_read_ready(context)).await.is_ok(),
            Pipe::Left(_) | Pipe::Ended => false,
        };
        if !readable {
            std::future::pending::<()>().await;
        }
    }

    /// Whether there may be more than was read.
    fn read(&mut self) -> bool {
        let read = match &self.pipe {
            Pipe::Watched(pipe) => pipe.try_read(&mut self.chunk),
            Pipe::Left(pipe) => rustix::io::read(pipe, &mut *self.chunk).map_err(io::Error::from),
            Pipe::Ended => return false,
        };
        match read {
            Ok(0) => self.pipe = self.end(),
            Ok(n) => {
                let bytes = &self.chunk[..n];
                // A plain write: the file is in the sandbox directory, by default in memory, and handing every
                // chunk to a thread would let the pipe fill up meanwhile.
                self.log.take(bytes, &self.secrets);
                let (sandbox, frontend_moved) = (&self.sandbox, &self.frontend_moved);
                self.tail.push(bytes, &self.secrets, |text| {
                    let line = line::parse(text);
                    tell(sandbox, line);
                    if let Some(whom) = frontend_moved
                        && matches!(line.message, FRONTEND_CONNECTED | FRONTEND_LEFT)
                    {
                        whom.notify_one();
                    }
                });
                return true;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => self.pipe = self.lost(&error),
        }
        false
    }

    fn lost(&mut self, error: &io::Error) -> Pipe {
        tracing::warn!(sandbox = %self.sandbox, %error, "cannot read the daemon's output");
        self.end()
    }

    fn end(&mut self) -> Pipe {
        self.log.finish(&self.secrets);
        Pipe::Ended
    }

    /// The last lines so far, oldest first, an unfinished one included.
    pub(crate) fn last_lines(&self) -> Vec<String> {
        self.tail.lines(&self.secrets)
    }
}

/// Passes a line on to this process' log.
fn tell(sandbox: &SandboxId, line: line::Line<'_>) {
    macro_rules! tell {
        ($level:expr, $line:expr) => {
            tracing::event!(target: "nydusbox::daemon", $level, %sandbox, origin = $line.origin, "{}", $line.message)
        };
    }
    // The level of an event is fixed where it is written.
    match line.level {
        Level::ERROR => tell!(Level::ERROR, line),
        Level::WARN => tell!(Level::WARN, line),
        Level::INFO => tell!(Level::INFO, line),
        Level::DEBUG => tell!(Level::DEBUG, line),
        Level::TRACE => tell!(Level::TRACE, line),
    }
}

/// The last lines of a stream of bytes.
#[derive(Debug, Default)]
struct Tail {
    lines: VecDeque<String>,
    partial: Vec<u8>,
}

impl Tail {
    fn push(&mut self, mut bytes: &[u8], secrets: &Secrets, mut finished: impl FnMut(&str)) {
        while let Some(end) = bytes.iter().position(|&b| b == b'\n') {
            self.extend(&bytes[..end]);
            bytes = &bytes[end + 1..];
            let line = secrets.mask(&readable(&self.partial)).into_owned();
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

    fn lines(&self, secrets: &Secrets) -> Vec<String> {
        let unfinished = secrets.mask(&readable(&self.partial)).into_owned();
        let unfinished = Some(unfinished).filter(|l| !l.is_empty());
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tail(chunks: &[&[u8]]) -> Vec<String> {
        let mut tail = Tail::default();
        for chunk in chunks {
            tail.push(chunk, &Secrets::default(), |_| ());
        }
        tail.lines(&Secrets::default())
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
