//! The socket as the client uses it: woken for what is to be read, and for room to write only where there was none.
//!
//! A socket that is watched for both wakes its owner each time the daemon has read a request, in the middle of
//! everything the daemon is asked to do.

use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use nydusbox_protocol::SocketPath;
use rustix::io::Errno;
use rustix::net::Shutdown;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;

use crate::readiness::{readable_fd, writable_fd};

/// A connected socket.
#[derive(Debug)]
pub(super) struct Socket {
    readable: AsyncFd<OwnedFd>,
    /// While it takes no more.
    writable: Option<AsyncFd<OwnedFd>>,
}

impl Socket {
    pub(super) async fn connect(path: &SocketPath) -> io::Result<Self> {
        // Nobody may be listening, or too many waiting: only a socket of the runtime's waits for that.
        let stream = UnixStream::connect(path.as_path()).await?.into_std()?;
        Ok(Self {
            readable: readable_fd(stream.into())?,
            writable: None,
        })
    }

    fn poll_send(
        &mut self,
        context: &mut Context<'_>,
        send: impl Fn(&OwnedFd) -> rustix::io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        if self.writable.is_none() {
            match send(self.readable.get_ref()) {
                Err(Errno::WOULDBLOCK) => {}
                sent => return Poll::Ready(Ok(sent?)),
            }
            self.writable = Some(writable_fd(self.readable.get_ref().try_clone()?)?);
        }
        while let Some(writable) = &self.writable {
            let mut room = ready!(writable.poll_write_ready(context))?;
            if let Ok(sent) = room.try_io(|stream| Ok(send(stream.get_ref())?)) {
                self.writable = None;
                return Poll::Ready(sent);
            }
        }
        Poll::Pending
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.readable.poll_read_ready(context))?;
            let room = into.remaining();
            let read =
                ready.try_io(|stream| Ok(rustix::io::read(stream.get_ref(), into.initialize_unfilled())?));
            match read {
                Ok(read) => {
                    let read = read?;
                    if read > 0 && read < room {
                        // It was all there was; what comes next is told.
                        ready.clear_ready();
                    }
                    into.advance(read);
                    return Poll::Ready(Ok(()));
                }
                Err(_nothing_there) => {}
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_send(context, |stream| rustix::io::write(stream, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_send(context, |stream| rustix::io::writev(stream, bytes))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(rustix::net::shutdown(
            self.readable.get_ref(),
            Shutdown::Write,
        )?))
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    use super::*;

    /// More than a socket takes at once, in both directions, with a peer that reads only when all else waits.
    #[tokio::test]
    async fn what_does_not_fit_waits_for_room_and_comes_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = SocketPath::new(dir.path().join("s")).unwrap();
        let listener = UnixListener::bind(path.as_path()).unwrap();
        let mut ours = Socket::connect(&path).await.unwrap();
        let (mut theirs, _) = listener.accept().await.unwrap();
        let sent: Vec<u8> = (0..3_000_000u32).map(|n| n.to_le_bytes()[1]).collect();
        let echo = async {
            let mut all = vec![0; sent.len()];
            theirs.read_exact(&mut all).await.unwrap();
            theirs.write_all(&all).await.unwrap();
        };
        let exchange = async {
            ours.write_all(&sent).await.unwrap();
            assert!(ours.writable.is_none(), "nobody is woken for room any more");
            let mut back = vec![0; sent.len()];
            ours.read_exact(&mut back).await.unwrap();
            assert!(back == sent);
        };
        tokio::join!(exchange, echo);
        drop(theirs);
        assert_eq!(ours.read(&mut [0; 8]).await.unwrap(), 0);
    }
}
