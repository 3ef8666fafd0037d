//! Where a guest's output goes in a test, and how a test waits for a process it does not own.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use tokio::io::{AsyncReadExt, AsyncWrite, DuplexStream};
use tokio::sync::Notify;

/// Returns when no process has this number. Bounded by the test runner's own limit.
pub async fn wait_until_gone(pid: u32) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    // A dropped child is killed at once and reaped by the runtime; until then the number is its own.
    while rustix::process::test_kill_process(pid).is_ok() {
        tokio::task::yield_now().await;
    }
}

/// Collects what is written to it.
#[derive(Debug, Clone, Default)]
pub struct Sink {
    bytes: Arc<Mutex<Vec<u8>>>,
    written: Arc<Notify>,
}

impl Sink {
    /// What was written so far, which is then forgotten.
    pub fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.bytes.lock().unwrap())
    }

    /// What was written so far, as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().unwrap()).into_owned()
    }

    /// Returns once exactly these bytes were written.
    pub async fn wait_for(&self, bytes: &[u8]) {
        while self.bytes.lock().unwrap().as_slice() != bytes {
            self.written.notified().await;
        }
    }
}

impl AsyncWrite for Sink {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        self.bytes.lock().unwrap().extend_from_slice(bytes);
        self.written.notify_one();
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// A sink with room for 4 KiB, so that the writer always waits for the reader.
pub fn slow_sink() -> (DuplexStream, SlowReader) {
    let (sink, reader) = tokio::io::duplex(4096);
    (sink, SlowReader(reader))
}

/// Its reading end.
#[derive(Debug)]
pub struct SlowReader(DuplexStream);

impl SlowReader {
    /// Reads to the end, in small pieces.
    pub async fn read_all(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        let mut piece = [0; 1000];
        while let Ok(read @ 1..) = self.0.read(&mut piece).await {
            all.extend_from_slice(&piece[..read]);
            tokio::task::yield_now().await;
        }
        all
    }
}
