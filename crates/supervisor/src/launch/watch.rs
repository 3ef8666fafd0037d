//! A directory watched for new names: how a daemon that binds its own sockets is noticed without polling.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::inotify;
use tokio::io::unix::AsyncFd;

use crate::readiness::readable_fd;

/// An inotify watch.
#[derive(Debug)]
pub(super) struct DirWatch(
    /// `None` only while it is dropped.
    Option<AsyncFd<OwnedFd>>,
);

impl DirWatch {
    /// Watches from now on. Must be called within a runtime.
    pub(super) fn new(dir: &Path) -> io::Result<Self> {
        let fd = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
        let names = inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO;
        inotify::add_watch(&fd, dir, names)?;
        Ok(Self(Some(readable_fd(fd)?)))
    }

    /// Waits until something has been created since the last call. Which name it was does not matter: the caller
    /// looks for itself.
    pub(super) async fn changed(&mut self) -> io::Result<()> {
        let mut buffer = [MaybeUninit::<u8>::uninit(); 4096];
        let Some(fd) = &self.0 else {
            return std::future::pending().await;
        };
        loop {
            let mut guard = fd.readable().await?;
            match guard.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut buffer).map(|_| ())?)) {
                Ok(result) => return result,
                Err(_would_block) => {}
            }
        }
    }
}

impl Drop for DirWatch {
    /// Closing an inotify instance waits for a grace period of the kernel, 10 to 20 ms in which neither the start
    /// nor anything else on this thread should have to stand still.
    fn drop(&mut self) {
        let Some(fd) = self.0.take().map(AsyncFd::into_inner) else {
            return;
        };
        match tokio::runtime::Handle::try_current() {
            // Needs no owner: it ends by itself, and a runtime that shuts down closes the descriptor as well.
            Ok(runtime) => drop(runtime.spawn_blocking(move || drop(fd))),
            Err(_) => drop(fd),
        }
    }
}
