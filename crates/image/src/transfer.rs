//! Blobs on their way to where an image goes, several beside each other, watched from the caller's thread.
//!
//! Owns the threads. Blobs may be added while others are under way; what is complete stays, whatever fails. How one is
//! written is the sink's matter, and what names them the caller's.

use std::collections::VecDeque;
use std::fmt;
use std::fs;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Scope};
use std::time::Duration;

use serde::Serialize;

use crate::progress::{Phase, Progress};
use crate::source::{BlobContent, BlobOf, Descriptor, ImageSink, ImageSource, Put, SinkError};

/// As many are under way at once. More would share the same line, and each takes the memory of what is sent at once.
const AT_ONCE: usize = 4;
/// How often the position is reported, and whether to stop asked.
const REPORT_INTERVAL: Duration = Duration::from_millis(100);

/// What it took to have all blobs of an image where it goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct TransferSummary {
    /// Blobs that were written, or sent.
    pub written_blobs: u64,
    /// Their bytes.
    pub written_bytes: u64,
    /// Blobs that were there.
    pub present_blobs: u64,
    /// Blobs that the registry took over from another repository.
    pub mounted_blobs: u64,
}

/// A blob to be written.
pub(crate) struct Job<'a> {
    blob: Descriptor,
    content: Box<dyn BlobContent + Send + 'a>,
    /// A file that nobody needs then.
    remove: Option<PathBuf>,
}

impl<'a> Job<'a> {
    pub(crate) fn new(blob: Descriptor, content: impl BlobContent + Send + 'a) -> Self {
        Self {
            blob,
            content: Box::new(content),
            remove: None,
        }
    }

    /// A blob that another place has.
    pub(crate) fn of(source: &'a dyn ImageSource, blob: &Descriptor) -> Self {
        let content = BlobOf {
            source,
            blob: blob.clone(),
        };
        Self::new(blob.clone(), content)
    }

    /// With the file at this path going when it is written.
    pub(crate) fn removing(self, path: PathBuf) -> Self {
        Self {
            remove: Some(path),
            ..self
        }
    }
}

impl fmt::Debug for Job<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job")
            .field("blob", &self.blob)
            .finish_non_exhaustive()
    }
}

#[derive(Default)]
struct State<'a> {
    waiting: VecDeque<Job<'a>>,
    /// How many threads are at work.
    busy: usize,
    /// Nothing is added any more.
    is_closed: bool,
    failed: Option<SinkError>,
    summary: TransferSummary,
}

/// The blobs, and who writes them.
pub(crate) struct Transfers<'a> {
    sink: &'a dyn ImageSink,
    state: Mutex<State<'a>>,
    changed: Condvar,
    cancelled: AtomicBool,
    /// Bytes of all that was added, and of what is done.
    total: AtomicU64,
    position: AtomicU64,
}

impl<'a> Transfers<'a> {
    pub(crate) fn new(sink: &'a dyn ImageSink) -> Self {
        Self {
            sink,
            state: Mutex::default(),
            changed: Condvar::new(),
            cancelled: AtomicBool::new(false),
            total: AtomicU64::new(0),
            position: AtomicU64::new(0),
        }
    }

    /// Has blobs written beside what `work` does, and then to the end: also if it fails, for what is complete need not
    /// be made again. The blobs' own failure comes first, as it is then why `work` ended.
    ///
    /// # Errors
    /// What `work` says, or the first blob that can't be written.
    pub(crate) fn beside<T, E: From<SinkError>>(
        &self,
        progress: &dyn Progress,
        work: impl FnOnce() -> Result<T, E>,
    ) -> Result<(T, TransferSummary), E> {
        thread::scope(|scope| {
            let begun = self.start(scope);
            let begun = begun.map_err(|source| SinkError::NoThread { source }.into());
            let done = begun.and_then(|()| work());
            if done.is_ok() {
                progress.begin(Phase::Send, Some(self.total.load(Ordering::Relaxed)));
            }
            self.close();
            self.watch(progress);
            let mut state = self.state();
            match state.failed.take() {
                Some(error) => Err(error.into()),
                None => done.map(|done| (done, state.summary)),
            }
        })
    }

    /// Adds a blob; `false` if no more are written.
    pub(crate) fn add(&self, job: Job<'a>) -> bool {
        let mut state = self.state();
        // Nobody would come for it.
        if self.is_cancelled() {
            return false;
        }
        self.total.fetch_add(job.blob.size(), Ordering::Relaxed);
        state.waiting.push_back(job);
        drop(state);
        self.changed.notify_all();
        true
    }

    fn start<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>) -> io::Result<()> {
        for _ in 0..AT_ONCE {
            thread::Builder::new()
                .name("transfer".to_owned())
                .spawn_scoped(scope, move || self.work())
                // Those there are already end by themselves.
                .inspect_err(|_| self.cancel())?;
        }
        Ok(())
    }

    fn work(&self) {
        while let Some(job) = self.next() {
            let put = self.write(&job);
            if let Some(path) = &job.remove {
                // It goes with its directory anyhow.
                let _removed = fs::remove_file(path);
            }
            let mut state = self.state();
            state.busy -= 1;
            match put {
                Ok(put) => state.summary.count(put, job.blob.size()),
                Err(error) => {
                    state.failed.get_or_insert(error);
                    drop(state);
                    self.cancel();
                }
            }
            self.changed.notify_all();
        }
    }

    fn next(&self) -> Option<Job<'a>> {
        let mut state = self.state();
        loop {
            if self.is_cancelled() {
                state.waiting.clear();
            }
            if let Some(job) = state.waiting.pop_front() {
                state.busy += 1;
                return Some(job);
            }
            if state.is_closed || self.is_cancelled() {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn write(&self, job: &Job<'_>) -> Result<Put, SinkError> {
        let watched = Watched {
            content: &*job.content,
            counted: AtomicU64::new(0),
            position: &self.position,
            cancelled: &self.cancelled,
        };
        let put = self.sink.put(&job.blob, &watched)?;
        // What was not read is done, too.
        watched.count_up_to(job.blob.size());
        Ok(put)
    }

    fn close(&self) {
        self.state().is_closed = true;
        self.changed.notify_all();
    }

    fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
        // Under the lock, so that nobody is just about to wait.
        let _state = self.state();
        self.changed.notify_all();
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Until all is done.
    fn watch(&self, progress: &dyn Progress) {
        let mut state = self.state();
        while state.busy > 0 || !state.waiting.is_empty() {
            let waited = self.changed.wait_timeout(state, REPORT_INTERVAL);
            (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
            progress.position(self.position.load(Ordering::Relaxed));
            if progress.is_cancelled() && !self.is_cancelled() {
                drop(state);
                self.cancel();
                state = self.state();
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State<'a>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TransferSummary {
    fn count(&mut self, put: Put, bytes: u64) {
        match put {
            Put::Written => {
                self.written_blobs += 1;
                self.written_bytes += bytes;
            }
            Put::Present => self.present_blobs += 1,
            Put::Mounted => self.mounted_blobs += 1,
        }
    }
}

/// Content that is counted once, however often it is read, and ends when all is to end.
struct Watched<'a> {
    content: &'a dyn BlobContent,
    counted: AtomicU64,
    position: &'a AtomicU64,
    cancelled: &'a AtomicBool,
}

impl Watched<'_> {
    fn count_up_to(&self, bytes: u64) {
        let before = self.counted.fetch_max(bytes, Ordering::Relaxed);
        self.position
            .fetch_add(bytes.saturating_sub(before), Ordering::Relaxed);
    }
}

impl BlobContent for Watched<'_> {
    fn open(&self) -> io::Result<Box<dyn Read + Send + '_>> {
        Ok(Box::new(WatchedReader {
            content: self.content.open()?,
            read: 0,
            watched: self,
        }))
    }
}

struct WatchedReader<'a> {
    content: Box<dyn Read + Send + 'a>,
    read: u64,
    watched: &'a Watched<'a>,
}

impl Read for WatchedReader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.watched.cancelled.load(Ordering::Relaxed) {
            return Err(io::Error::other("cancelled"));
        }
        let got = self.content.read(buf)?;
        self.read += got as u64;
        self.watched.count_up_to(self.read);
        Ok(got)
    }
}
