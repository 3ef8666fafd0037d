//! The standard streams as the command's. What their descriptors are like is not ours to change: a flag belongs to all
//! who have the same open file, so one that says "would block" is waited for.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use rustix::fs::{OFlags, fcntl_getfl};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

use crate::error::Failure;

/// A stream of this process.
#[derive(Debug)]
enum Stream<T> {
    /// A thread waits for it.
    Blocking(T),
    /// The runtime says when it can be gone on with.
    Watched(AsyncFd<File>),
}

impl<T> Stream<T> {
    fn new(fd: BorrowedFd<'_>, interest: Interest, blocking: T) -> Self {
        let is_blocking = fcntl_getfl(fd).is_ok_and(|flags| !flags.contains(OFlags::NONBLOCK));
        if is_blocking {
            return Self::Blocking(blocking);
        }
        // A file that is always ready cannot be watched, and need not be.
        match fd
            .try_clone_to_owned()
            .and_then(|fd| watched(fd.into(), interest))
        {
            Ok(watched) => Self::Watched(watched),
            Err(_) => Self::Blocking(blocking),
        }
    }
}

#[expect(
    deprecated,
    reason = "deprecated for types that may give their descriptor away; a File does not, and the successor is unsafe"
)]
fn watched(file: File, interest: Interest) -> io::Result<AsyncFd<File>> {
    AsyncFd::with_interest(file, interest)
}

/// Standard input.
#[derive(Debug)]
pub(super) struct Input {
    stream: Stream<tokio::io::Stdin>,
    is_terminal: bool,
    failed: Arc<OnceLock<io::Error>>,
}

/// How reading standard input has ended.
#[derive(Debug)]
pub(super) struct InputEnd(Arc<OnceLock<io::Error>>);

/// Standard input, and who knows whether it was read to its end.
pub(super) fn input() -> (Input, InputEnd) {
    let stdin = io::stdin();
    let failed = Arc::default();
    let input = Input {
        stream: Stream::new(stdin.as_fd(), Interest::READABLE, tokio::io::stdin()),
        is_terminal: stdin.is_terminal(),
        failed: Arc::clone(&failed),
    };
    (input, InputEnd(failed))
}

/// Standard output.
pub(super) fn output() -> impl AsyncWrite + Send + Unpin + 'static {
    Output(Stream::new(
        io::stdout().as_fd(),
        Interest::WRITABLE,
        tokio::io::stdout(),
    ))
}

/// Standard error.
pub(super) fn errors() -> impl AsyncWrite + Send + Unpin + 'static {
    Output(Stream::new(
        io::stderr().as_fd(),
        Interest::WRITABLE,
        tokio::io::stderr(),
    ))
}

impl InputEnd {
    /// Whether all there was has been read, as far as reading went.
    pub(super) fn complete(self) -> Result<(), Failure> {
        match self.0.get() {
            Some(error) => Err(Failure::new("read the command's input", error)),
            None => Ok(()),
        }
    }
}

impl AsyncRead for Input {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = match &mut self.stream {
            Stream::Blocking(stdin) => ready!(Pin::new(stdin).poll_read(context, buffer)),
            Stream::Watched(file) => loop {
                let mut guard = ready!(file.poll_read_ready(context))?;
                let read = guard.try_io(|file| file.get_ref().read(buffer.initialize_unfilled()));
                if let Ok(read) = read {
                    break read.map(|bytes| buffer.advance(bytes));
                }
            },
        };
        let Err(error) = &read else {
            return Poll::Ready(read);
        };
        let errno = Errno::from_io_error(error);
        // One that cannot be read is empty, as nohup wants it, and a terminal from the background is as if it were.
        let is_empty = errno == Some(Errno::BADF) || (self.is_terminal && errno == Some(Errno::IO));
        if !is_empty {
            let copy = errno.map_or_else(|| error.kind().into(), io::Error::from);
            let _ = self.failed.set(copy);
        }
        Poll::Ready(read)
    }
}

struct Output<T>(Stream<T>);

impl<T: AsyncWrite + Unpin> AsyncWrite for Output<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.0 {
            Stream::Blocking(stream) => Pin::new(stream).poll_write(context, bytes),
            Stream::Watched(file) => loop {
                let mut guard = ready!(file.poll_write_ready(context))?;
                if let Ok(written) = guard.try_io(|file| file.get_ref().write(bytes)) {
                    return Poll::Ready(written);
                }
            },
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Stream::Blocking(stream) => Pin::new(stream).poll_flush(context),
            Stream::Watched(_) => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(context)
    }
}
