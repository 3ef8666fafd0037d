//! The socket as the client uses it: woken for what is to be read, and for room to write only where there was none.
//!
//! A socket that is watched for both wakes its owner each time the daemon has read a request, in the middle of
//! everything the daemon is asked to do.

use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;

use nydusbox_protocol::SocketPath;
use rustix::buffer::spare_capacity;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;

use crate::readiness::{readable_fd, writable_fd};

/// How much is read at once: any answer but a list of many mounts.
const READ_BYTES: usize = 8 << 10;

/// A connected socket.
#[derive(Debug)]
pub(super) struct Socket {
    readable: AsyncFd<OwnedFd>,
}

/// What was written before writing failed, and why it did.
#[derive(Debug)]
pub(super) struct Broken {
    pub(super) written: usize,
    pub(super) source: io::Error,
}

impl Socket {
    pub(super) async fn connect(path: &SocketPath) -> io::Result<Self> {
        // Nobody may be listening, or too many waiting: only a socket of the runtime's waits for that.
        let stream = UnixStream::connect(path.as_path()).await?.into_std()?;
        Ok(Self {
            readable: readable_fd(stream.into())?,
        })
    }

    /// Whether nothing came that was not called for, not even the end, as far as the runtime has been told.
    pub(super) fn is_quiet(&self) -> bool {
        let seen = self.readable.try_io(Interest::READABLE, |stream| {
            Ok(recv(stream, &mut [0; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT)?)
        });
        seen.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    /// What of it goes without waiting, in bytes.
    pub(super) fn write_at_once(&self, bytes: &[u8]) -> io::Result<usize> {
        match send(self.readable.get_ref(), bytes, SendFlags::NOSIGNAL).map_err(io::Error::from) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            sent => sent,
        }
    }

    pub(super) async fn write_all(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        let mut written = 0;
        while written < bytes.len() {
            match self.write_at_once(&bytes[written..]) {
                Ok(0) => self.room().await.map_err(|source| Broken { written, source })?,
                Ok(sent) => written += sent,
                Err(source) => return Err(Broken { written, source }),
            }
        }
        Ok(())
    }

    /// Until it takes more.
    async fn room(&self) -> io::Result<()> {
        let writable = writable_fd(self.readable.get_ref().try_clone()?)?;
        writable.writable().await?.retain_ready();
        Ok(())
    }

    /// Appends what there is to read; 0 bytes at the end.
    pub(super) async fn read(&mut self, into: &mut Vec<u8>) -> io::Result<usize> {
        loop {
            let mut ready = poll_fn(|context| self.readable.poll_read_ready(context)).await?;
            into.reserve(READ_BYTES);
            let room = into.capacity() - into.len();
            let read = ready.try_io(|stream| Ok(rustix::io::read(stream, spare_capacity(into))?));
            match read {
                Ok(read) => {
                    let read = read?;
                    if read > 0 && read < room {
                        // It was all there was; what comes next is told.
                        ready.clear_ready();
                    }
                    return Ok(read);
                }
                Err(_nothing_there) => {}
            }
        }
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
            let mut back = Vec::new();
            while back.len() < sent.len() {
                ours.read(&mut back).await.unwrap();
            }
            assert!(back == sent);
        };
        tokio::join!(exchange, echo);
        drop(theirs);
        assert_eq!(ours.read(&mut Vec::new()).await.unwrap(), 0);
    }
}
