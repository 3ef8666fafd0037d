//! The command's output: from a port to a sink, up to the marker that ends it.
//!
//! A virtio port has no end of file that the host sees, and the order between ports is not defined: the guest's
//! `exit` may overtake output. So the guest ends each stream with a marker, random for each boot, and the machine is
//! only let go when both have come.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::oneshot;

/// Finds the marker in a stream and holds back only what may be its beginning.
#[derive(Debug)]
pub(super) struct MarkerScan {
    marker: Vec<u8>,
    held: Vec<u8>,
    found: bool,
}

impl MarkerScan {
    /// Looks for `marker`, which must not be empty.
    pub(super) fn new(marker: &str) -> Self {
        debug_assert!(!marker.is_empty());
        Self {
            marker: marker.as_bytes().to_vec(),
            held: Vec::new(),
            found: false,
        }
    }

    /// Takes the next bytes; returns those that belong to the output. After the marker nothing does.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Vec<u8> {
        if self.found {
            return Vec::new();
        }
        self.held.extend_from_slice(bytes);
        // The marker's first byte is rare enough in output for this to stay linear in practice.
        let start = (0..self.held.len()).find(|&at| {
            let rest = &self.held[at..];
            rest.starts_with(&self.marker) || self.marker.starts_with(rest)
        });
        let Some(start) = start else {
            return std::mem::take(&mut self.held);
        };
        if self.held.len() - start >= self.marker.len() {
            self.found = true;
        }
        let rest = self.held.split_off(start);
        let output = std::mem::take(&mut self.held);
        if !self.found {
            self.held = rest;
        }
        output
    }

    /// Whether the marker has come.
    pub(super) fn found(&self) -> bool {
        self.found
    }

    /// What was held back when the stream ended without a marker.
    pub(super) fn rest(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.held)
    }
}

/// Which of the command's outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Output {
    Stdout,
    Stderr,
}

/// Copies output to `sink` until the marker or the port's end, whichever is first; returns whether the marker came.
/// When the sink fails, output is read and dropped: the guest must not hang on a reader that left. How it failed is told
/// to `lost`, for whom it would be a reason to end.
pub(super) async fn pump_output(
    mut port: UnixStream,
    mut sink: impl AsyncWrite + Unpin,
    marker: &str,
    name: Output,
    lost: oneshot::Sender<io::Error>,
) -> bool {
    let mut lost = Some(lost);
    let mut scan = MarkerScan::new(marker);
    let mut buffer = vec![0; 64 << 10];
    let mut sink_works = true;
    while !scan.found() {
        // A reset is QEMU ending with our bytes unread; it is the end as much as an orderly close.
        let read = port.read(&mut buffer).await.unwrap_or(0);
        let output = if read == 0 {
            scan.rest()
        } else {
            scan.feed(&buffer[..read])
        };
        if sink_works && let Err(error) = write(&mut sink, &output).await {
            tracing::debug!(stream = ?name, %error, "the command's output cannot be written; dropping the rest");
            sink_works = false;
            if let Some(lost) = lost.take() {
                // Nobody has to care.
                let _ = lost.send(error);
            }
        }
        if read == 0 {
            break;
        }
    }
    scan.found()
}

async fn write(sink: &mut (impl AsyncWrite + Unpin), output: &[u8]) -> io::Result<()> {
    if output.is_empty() {
        return Ok(());
    }
    sink.write_all(output).await?;
    sink.flush().await
}

/// Copies `source` to the guest, then closes our half so that the command reads an end of file. Half, because QEMU
/// drops what it has not read yet when a socket is closed as a whole.
pub(super) async fn pump_input(mut source: impl AsyncRead + Unpin, mut port: UnixStream) {
    if let Err(error) = tokio::io::copy(&mut source, &mut port).await {
        tracing::debug!(%error, "the command's input ended early");
    }
    let _ = port.shutdown().await;
    // Keep the other half until QEMU is gone: closing it would be the whole close again.
    let _ = port.read(&mut [0]).await;
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// However the stream is cut, the output is everything before the marker's first occurrence.
        #[test]
        fn output_is_what_precedes_the_marker(
            before in "[ab]{0,30}", after in "[abm]{0,10}", with_marker: bool, size in 1usize..8,
        ) {
            let marker = "abmab";
            let stream = if with_marker { format!("{before}{marker}{after}") } else { before.clone() };
            let mut scan = MarkerScan::new(marker);
            let mut output = Vec::new();
            for chunk in stream.as_bytes().chunks(size) {
                output.extend(scan.feed(chunk));
            }
            output.extend(scan.rest());
            prop_assert_eq!(scan.found(), with_marker);
            prop_assert_eq!(String::from_utf8_lossy(&output), before);
        }
    }

    #[tokio::test]
    async fn a_reader_that_left_is_told_once_and_the_rest_is_dropped() {
        let (mut guest, port) = UnixStream::pair().unwrap();
        let (sink, reader) = tokio::io::duplex(16);
        let (lost, told) = oneshot::channel::<io::Error>();
        drop(reader);
        let talk = async {
            guest.write_all(b"first").await.unwrap();
            assert_eq!(told.await.unwrap().kind(), io::ErrorKind::BrokenPipe);
            // More than a socket holds.
            guest.write_all(&vec![b'y'; 4 << 20]).await.unwrap();
            guest.write_all(b"xyz").await.unwrap();
        };
        let (complete, ()) = tokio::join!(pump_output(port, sink, "xyz", Output::Stdout, lost), talk);
        assert!(complete);
    }

    #[tokio::test]
    async fn a_reader_that_stays_is_not_told_to_have_left() {
        let (mut guest, port) = UnixStream::pair().unwrap();
        let (lost, told) = oneshot::channel::<io::Error>();
        let mut sink = Vec::new();
        let talk = guest.write_all(b"outputxyz");
        let (complete, _) = tokio::join!(pump_output(port, &mut sink, "xyz", Output::Stdout, lost), talk);
        assert!(complete && sink == b"output");
        assert!(told.await.is_err());
    }

    #[test]
    fn nothing_is_held_back_that_cannot_be_the_marker() {
        let mut scan = MarkerScan::new("xyz");
        assert_eq!(scan.feed(b"prompt> x"), b"prompt> ");
        assert_eq!(scan.feed(b"y"), b"");
        assert_eq!(scan.feed(b"w"), b"xyw");
    }
}
