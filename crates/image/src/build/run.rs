//! Runs the builder on a thread of its own, and from outside sees how far it is, stops it, and sorts out
//! what its failure means.
//!
//! nydus-builder reports no progress and takes no stop condition. What it offers instead:
//! * position: the kernel counts what its thread has read;
//! * stopping: the directory is reached through a symbolic link in the staging directory, and once that is gone
//!   the next file can't be opened. The file being read is read to its end.

use std::error::Error as StdError;
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, ScopedJoinHandle};

use super::rafs::Job;
use crate::config::{BuildConfig, Source};
use crate::error::{BuildError, out_of_space_below};
use crate::progress::Progress;
use crate::rafs::tail::BlobFormat;
use crate::scan::Totals;
use crate::staging::Staging;

/// Builds into the staging directory's working directory.
pub(super) fn run(
    config: &BuildConfig,
    staging: &Staging,
    totals: Totals,
    progress: &dyn Progress,
) -> Result<(), BuildError> {
    match &config.source {
        Source::Directory(dir) => run_directory(config, dir, staging, totals, progress),
        Source::Tar(archive) => super::layers::run(config, std::slice::from_ref(archive), staging, progress),
        Source::Layers(archives) => super::layers::run(config, archives, staging, progress),
    }
}

fn run_directory(
    config: &BuildConfig,
    dir: &Path,
    staging: &Staging,
    totals: Totals,
    progress: &dyn Progress,
) -> Result<(), BuildError> {
    let target = dir.canonicalize().map_err(|source| BuildError::Unreadable {
        path: dir.to_owned(),
        source,
    })?;
    let link = staging.source();
    symlink(&target, &link).map_err(|source| BuildError::output(&link, source))?;
    // The trailing dot makes the root the directory itself and not the link.
    let root = link.join(".");
    let job = Job {
        path: root,
        bootstrap: staging.work_bootstrap(),
        blob_dir: staging.work_blobs(),
        format: BlobFormat::from(config.format),
    };
    let stop = || {
        // Failing to remove it only means that the build goes on to its end before it is thrown away.
        let _ = fs::remove_file(&link);
    };
    let outcome = thread::scope(|scope| {
        let worker = Worker::spawn(scope, job)?;
        worker.watch(progress, totals.bytes, |worker| worker.bytes_read(), stop)
    });
    outcome.map_err(|failure| failure.into_error(config, &link, &target))
}

/// Why the builder's thread made nothing.
#[derive(Debug)]
enum Failure {
    Cancelled,
    Panicked,
    NoThread(io::Error),
    Refused(Box<dyn StdError + Send + Sync>),
}

impl Failure {
    /// `opened` is the path by which the builder knew `real`.
    fn into_error(self, config: &BuildConfig, opened: &Path, real: &Path) -> BuildError {
        let path = config.source.path().to_owned();
        match self {
            Self::Cancelled => BuildError::Cancelled,
            Self::Panicked => BuildError::BuilderPanicked { path },
            Self::NoThread(source) => BuildError::Builder {
                path,
                source: Box::new(source),
            },
            Self::Refused(source) if out_of_space_below(&*source) => BuildError::OutOfSpace {
                path: config.out_dir.clone(),
            },
            Self::Refused(source) => BuildError::Builder {
                path,
                source: Box::new(Reworded::new(&*source, opened, real)),
            },
        }
    }
}

type WorkerResult = Result<(), Box<dyn StdError + Send + Sync>>;

/// The builder's thread.
struct Worker<'scope> {
    thread: ScopedJoinHandle<'scope, WorkerResult>,
    /// Disconnected when the thread ends, in whatever way.
    ended: mpsc::Receiver<()>,
    thread_id: rustix::thread::Pid,
}

impl<'scope> Worker<'scope> {
    fn spawn<'env>(scope: &'scope thread::Scope<'scope, 'env>, job: Job) -> Result<Self, Failure> {
        let (alive, ended) = mpsc::channel::<()>();
        let (announce, announced) = mpsc::channel();
        let thread = thread::Builder::new()
            .name("image-builder".to_owned())
            .spawn_scoped(scope, move || {
                let _alive = alive;
                let _ = announce.send(rustix::thread::gettid());
                job.run()
            })
            .map_err(Failure::NoThread)?;
        match announced.recv() {
            Ok(thread_id) => Ok(Self {
                thread,
                ended,
                thread_id,
            }),
            Err(mpsc::RecvError) => Err(Failure::Panicked),
        }
    }

    /// Reports until the thread has ended; calls `stop` once if that is asked for.
    fn watch(
        self,
        progress: &dyn Progress,
        total: u64,
        position: impl Fn(&Self) -> Option<u64>,
        stop: impl Fn(),
    ) -> Result<(), Failure> {
        let mut reported = 0;
        let mut cancelled = false;
        loop {
            match self.ended.recv_timeout(progress.interval()) {
                Err(RecvTimeoutError::Disconnected) | Ok(()) => break,
                Err(RecvTimeoutError::Timeout) => {}
            }
            // The kernel also counts the odd byte that isn't content.
            let now = position(&self).unwrap_or(0).min(total);
            if now > reported {
                reported = now;
                progress.position(now);
            }
            if !cancelled && progress.is_cancelled() {
                cancelled = true;
                stop();
            }
        }
        // It may be done before anybody was asked.
        match self.thread.join() {
            _ if cancelled || progress.is_cancelled() => Err(Failure::Cancelled),
            Ok(Ok(())) => {
                progress.position(total);
                Ok(())
            }
            Ok(Err(source)) => Err(Failure::Refused(source)),
            Err(_) => Err(Failure::Panicked),
        }
    }

    /// How many bytes the thread has read by system calls, `rchar` of proc(5); `None` where the kernel
    /// keeps no such account.
    fn bytes_read(&self) -> Option<u64> {
        let path = format!("/proc/self/task/{}/io", self.thread_id.as_raw_nonzero());
        let account = fs::read_to_string(path).ok()?;
        account
            .lines()
            .find_map(|line| line.strip_prefix("rchar:"))?
            .trim()
            .parse()
            .ok()
    }
}

/// The builder's error with the path it was given replaced by the one the caller knows.
#[derive(Debug)]
struct Reworded {
    message: String,
    source: Option<Box<Self>>,
}

impl Reworded {
    fn new(error: &(dyn StdError + 'static), opened: &Path, real: &Path) -> Self {
        let opened = opened.to_string_lossy();
        let real = real.to_string_lossy();
        Self {
            message: error
                .to_string()
                .replace(&format!("{opened}/./"), &format!("{real}/"))
                .replace(&*opened, &real),
            source: error
                .source()
                .map(|source| Box::new(Self::new(source, Path::new(&*opened), Path::new(&*real)))),
        }
    }
}

impl fmt::Display for Reworded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Reworded {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}
