//! The body of a request on its way, piece by piece, so that a slow line is told apart from a dead one.
//!
//! Never decides how long is waited: see `transport.rs`.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use hyper::body::{Body, Bytes, Frame, SizeHint};
use tokio::sync::mpsc;

/// How much is handed over at once, in bytes: on a line of 2 kB/s each is gone within the time that a server may be
/// silent.
pub(super) const PIECE_BYTES: usize = 64 << 10;

/// How much of a request was taken by the connection.
#[derive(Debug, Clone, Default)]
pub(super) struct Taken(Arc<AtomicU64>);

impl Taken {
    pub(super) fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The content of a request.
#[derive(Debug)]
pub(super) struct Payload {
    content: Content,
    left: u64,
    taken: Taken,
}

#[derive(Debug)]
enum Content {
    Whole(Bytes),
    /// As it is read elsewhere; if that ends too early, the request breaks.
    Pieces(mpsc::Receiver<Bytes>),
}

impl Payload {
    pub(super) fn new(bytes: Bytes, taken: Taken) -> Self {
        Self {
            left: bytes.len() as u64,
            content: Content::Whole(bytes),
            taken,
        }
    }

    /// Content of `size` bytes, which come in pieces.
    pub(super) fn of_pieces(pieces: mpsc::Receiver<Bytes>, size: u64, taken: Taken) -> Self {
        Self {
            content: Content::Pieces(pieces),
            left: size,
            taken,
        }
    }
}

impl Body for Payload {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let piece = match &mut self.content {
            Content::Whole(bytes) => bytes.split_to(bytes.len().min(PIECE_BYTES)),
            Content::Pieces(pieces) => match pieces.poll_recv(context) {
                Poll::Ready(Some(piece)) => piece,
                Poll::Ready(None) => return Poll::Ready(Some(Err(io::ErrorKind::UnexpectedEof.into()))),
                Poll::Pending => return Poll::Pending,
            },
        };
        self.left = self.left.saturating_sub(piece.len() as u64);
        self.taken.0.fetch_add(piece.len() as u64, Ordering::Relaxed);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
