//! Content on its way to the client: at the line's speed, counted, and spoiled where that was asked for.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use hyper::body::{Body, Bytes, Frame, Incoming};
use tokio::sync::mpsc;

use super::{Fault, Shared};

/// What is sent at once on a line of limited bandwidth, in bytes.
const PIECE: usize = 16 << 10;

/// What a task sends.
#[derive(Debug)]
pub(super) struct Content(mpsc::Receiver<io::Result<Bytes>>);

impl Body for Content {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.0
            .poll_recv(context)
            .map(|piece| piece.map(|bytes| bytes.map(Frame::data)))
    }
}

/// Content that is here already.
pub(super) fn whole(bytes: impl Into<Bytes>) -> Content {
    let (sender, content) = mpsc::channel(1);
    // There is room for one; an empty piece would be taken for the end of the answer.
    let bytes = bytes.into();
    if !bytes.is_empty() {
        let _sent = sender.try_send(Ok(bytes));
    }
    Content(content)
}

/// What `from` has, as far as the fault allows; counted for `blob` too, if it is one's.
pub(super) fn pass_on(
    from: Incoming,
    fault: Option<Fault>,
    blob: Option<String>,
    shared: &Arc<Shared>,
) -> Content {
    let (sender, content) = mpsc::channel(1);
    let mut sending = Sending {
        sender,
        blob,
        shared: Arc::clone(shared),
    };
    tokio::spawn(async move {
        // A client that goes away in the middle is its own business.
        let _end = sending.all(from, fault).await;
    });
    Content(content)
}

/// What `from` has, up to so many bytes; then the connection it is sent on breaks.
pub(super) fn cut(mut from: Incoming, bytes: u64) -> Content {
    let (sender, content) = mpsc::channel(1);
    let mut left = usize::try_from(bytes).unwrap_or(usize::MAX);
    tokio::spawn(async move {
        while left > 0 {
            let Some(Ok(frame)) = from.frame().await else {
                break;
            };
            let Ok(mut bytes) = frame.into_data() else {
                continue;
            };
            bytes.truncate(left);
            left -= bytes.len();
            if sender.send(Ok(bytes)).await.is_err() {
                return;
            }
        }
        // As in `Sending::fail`.
        if let Ok(room) = sender.reserve().await {
            room.send(Err(io::Error::other("cut, as was asked for")));
        }
    });
    Content(content)
}

/// The client is gone.
struct Gone;

struct Sending {
    sender: mpsc::Sender<io::Result<Bytes>>,
    blob: Option<String>,
    shared: Arc<Shared>,
}

impl Sending {
    async fn all(&mut self, mut from: Incoming, fault: Option<Fault>) -> Result<(), Gone> {
        let mut left = match fault {
            Some(Fault::CloseAfter(bytes)) => usize::try_from(bytes).unwrap_or(usize::MAX),
            Some(Fault::TooShort) => {
                usize::try_from(from.size_hint().lower()).map_or(usize::MAX, |size| size.saturating_sub(1))
            }
            _ => usize::MAX,
        };
        let mut first = true;
        while let Some(frame) = from.frame().await {
            let mut bytes = match frame.map(Frame::into_data) {
                Ok(Ok(bytes)) => bytes,
                // Trailers.
                Ok(Err(_)) => continue,
                Err(error) => return self.fail(io::Error::other(error)).await,
            };
            if fault == Some(Fault::WrongContent) && first && !bytes.is_empty() {
                let mut spoiled = bytes.to_vec();
                spoiled[0] ^= 0xff;
                bytes = spoiled.into();
            }
            first = false;
            bytes.truncate(left);
            left -= bytes.len();
            self.paced(bytes).await?;
            if left == 0 {
                break;
            }
        }
        match fault {
            Some(Fault::CloseAfter(_)) => self.fail(io::Error::other("cut, as was asked for")).await,
            Some(Fault::TooLong) => self.piece(Bytes::from_static(b"!")).await,
            _ => Ok(()),
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "a bandwidth needs no sixteen digits")]
    async fn paced(&self, mut bytes: Bytes) -> Result<(), Gone> {
        while !bytes.is_empty() {
            let turn = {
                let mut state = self.shared.state();
                let bandwidth = state.conditions.bandwidth;
                let size = bandwidth.map_or(bytes.len(), |_| bytes.len().min(PIECE));
                let until = bandwidth.map(|bandwidth| {
                    // This piece occupies the line after what others are sending.
                    let free = state.line_free.unwrap_or_else(Instant::now).max(Instant::now());
                    let done = free + Duration::from_secs_f64(size as f64 / bandwidth as f64);
                    state.line_free = Some(done);
                    done
                });
                (size, until)
            };
            if let (_, Some(until)) = turn {
                tokio::time::sleep_until(until.into()).await;
            }
            self.piece(bytes.split_to(turn.0)).await?;
        }
        Ok(())
    }

    async fn piece(&self, bytes: Bytes) -> Result<(), Gone> {
        let sent = bytes.len() as u64;
        self.sender.send(Ok(bytes)).await.map_err(|_| Gone)?;
        let mut state = self.shared.state();
        state.bytes += sent;
        if let Some(blob) = &self.blob {
            state.blobs.entry(blob.clone()).or_default().bytes += sent;
        }
        Ok(())
    }

    /// Closes the connection, when what was sent before has been written: the channel holds one, and on this one
    /// thread hyper writes what it has taken before it asks again.
    async fn fail(&self, error: io::Error) -> Result<(), Gone> {
        let room = self.sender.reserve().await.map_err(|_| Gone)?;
        room.send(Err(error));
        Ok(())
    }
}
