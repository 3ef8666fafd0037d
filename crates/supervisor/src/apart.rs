//! Looks at file systems that may never answer, by threads on which nothing depends.
//!
//! A thread that waits for a file system can neither be ended nor given up: a runtime waits at its end for those that it
//! has begun, and one that the kernel does not let be killed outlives its process. So each look is a thread that no
//! runtime knows of and that has no file of this process open: else a supervisor that was killed would keep its
//! sandbox's lock and socket. A place that is being looked at is not looked at by another thread.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::File;
use std::io;
use std::os::fd::{IntoRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::Builder;
use std::time::Duration;

use rustix::thread::UnshareFlags;
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;
use tracing::Dispatch;
use tracing::dispatcher::with_default;

/// Where somebody looks, with what ends when that does.
static UNDER_WAY: Mutex<BTreeMap<PathBuf, watch::Receiver<()>>> = Mutex::new(BTreeMap::new());

/// Has `look` look at what is at `path`, and waits for what it finds. It neither gets nor gives descriptors: those that
/// it opens are its thread's only. What it logs goes nowhere.
///
/// # Errors
/// [`io::ErrorKind::TimedOut`] where it takes longer; then it goes on, and another look at the same path waits for it.
/// Others where no thread can be had for it, or it panicked.
pub async fn apart<T: Send + 'static>(
    path: &Path,
    within: Duration,
    look: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let looked = async {
        let turn = Turn::at(path).await;
        let (tell, told) = oneshot::channel();
        let looking = Builder::new()
            .name("nydusbox-look".to_owned())
            .spawn(move || with_default(&Dispatch::none(), || alone(look)))?;
        // Telling takes a descriptor, which who looks has not.
        Builder::new().name("nydusbox-wait".to_owned()).spawn(move || {
            let found = looking.join();
            drop(turn);
            if let Ok(found) = found {
                let _ = tell.send(found);
            }
        })?;
        told.await
            .map_err(|_| io::Error::other("the look at it ended without a result"))
    };
    timeout(within, looked)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Runs it without any descriptor of this process, as far as the system lets it.
fn alone<T>(look: impl FnOnce() -> T) -> T {
    #[expect(
        deprecated,
        reason = "its successor is unsafe; the table that is left is not touched, nor used by this thread any longer"
    )]
    let own = rustix::thread::unshare(UnshareFlags::FILES);
    // Where it is refused, as some sandboxes do, the descriptors are everybody's.
    if own.is_ok() {
        for fd in open_files() {
            let _ = nix::unistd::close(fd);
        }
        // Whatever prints to the standard streams must not print into a file that has got their number.
        for _ in 0..3 {
            let _ = File::options()
                .read(true)
                .write(true)
                .open("/dev/null")
                .map(IntoRawFd::into_raw_fd);
        }
    }
    look()
}

/// The descriptors of this thread.
fn open_files() -> Vec<RawFd> {
    let listed = std::fs::read_dir("/proc/thread-self/fd").into_iter().flatten();
    let number = |entry: io::Result<std::fs::DirEntry>| entry.ok()?.file_name().to_str()?.parse().ok();
    listed.filter_map(number).collect()
}

/// While it lives, nobody else looks there.
struct Turn {
    path: PathBuf,
    _ends: watch::Sender<()>,
}

impl Turn {
    async fn at(path: &Path) -> Self {
        loop {
            match Self::take(path) {
                Ok(turn) => return turn,
                // It says nothing; its end is an error.
                Err(mut others) => drop(others.changed().await),
            }
        }
    }

    /// The turn, or the end of who has it.
    fn take(path: &Path) -> Result<Self, watch::Receiver<()>> {
        match under_way().entry(path.to_owned()) {
            Entry::Occupied(others) => Err(others.get().clone()),
            Entry::Vacant(free) => {
                let (ends, end) = watch::channel(());
                free.insert(end);
                Ok(Self {
                    path: path.to_owned(),
                    _ends: ends,
                })
            }
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        under_way().remove(&self.path);
    }
}

fn under_way() -> MutexGuard<'static, BTreeMap<PathBuf, watch::Receiver<()>>> {
    UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const LONG: Duration = Duration::from_mins(1);

    #[tokio::test]
    async fn who_looks_has_no_file_of_the_process_open() {
        let dir = tempfile::tempdir().unwrap();
        let _held = File::create(dir.path().join("lock")).unwrap();
        let targets = || {
            let files = std::fs::read_dir("/proc/thread-self/fd").unwrap();
            files
                .map(|file| std::fs::read_link(file.unwrap().path()).unwrap_or_default())
                .collect::<Vec<_>>()
        };
        let found = apart(dir.path(), LONG, targets).await.unwrap();
        assert_eq!(found[..3], ["/dev/null"; 3].map(PathBuf::from));
        // The listing itself.
        assert_eq!(found.len(), 4, "{found:?}");
    }

    #[tokio::test]
    async fn a_look_that_does_not_end_is_given_up_and_not_begun_again_until_it_has() {
        let path = Path::new("/a/place/of/this/test");
        let (answer, answered) = mpsc::channel();
        let briefly = Duration::from_millis(10);
        let error = apart(path, briefly, move || answered.recv().unwrap())
            .await
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let (began, has_begun) = mpsc::channel();
        let again = move || began.send(()).unwrap();
        let error = apart(path, briefly, again.clone()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        // Elsewhere it is.
        assert_eq!(apart(Path::new("/another"), LONG, || 7).await.unwrap(), 7);
        has_begun.try_recv().unwrap_err();
        answer.send(()).unwrap();
        apart(path, LONG, again).await.unwrap();
        has_begun.try_recv().unwrap();
    }

    #[tokio::test]
    async fn a_look_that_panics_is_over() {
        let path = Path::new("/a/place/where/one/panics");
        let error = apart(path, LONG, || panic!("on purpose")).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Other);
        apart(path, LONG, || ()).await.unwrap();
    }
}
