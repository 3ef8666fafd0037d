//! Feeds an archive's uncompressed stream to the builder through a pipe.
//!
//! The builder opens its input by path and offers no view of how far it is. A pipe that we fill shows the
//! position exactly (less the 64 KiB in the pipe), and ending it early is how a build of an archive is
//! cancelled. Who starts and ends this is `build/run.rs`.

use std::io::{self, ErrorKind, PipeWriter, Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// How a feed ended.
#[derive(Debug)]
pub(super) enum Fed {
    /// The whole stream was taken.
    All,
    /// The builder closed its end, which it does when it fails: its own error says why.
    Refused,
    /// Told to stop.
    Stopped,
    /// The archive can't be read further.
    Unreadable(io::Error),
}

/// Copies `stream` into `pipe`, adding to `position`, until either ends or `stop` is set.
pub(super) fn feed(
    mut stream: impl Read,
    mut pipe: PipeWriter,
    position: &AtomicU64,
    stop: &AtomicBool,
) -> Fed {
    let mut buffer = vec![0; 64 << 10];
    loop {
        if stop.load(Ordering::Relaxed) {
            return Fed::Stopped;
        }
        let got = match stream.read(&mut buffer) {
            Ok(0) => return Fed::All,
            Ok(got) => got,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Fed::Unreadable(error),
        };
        // A write to a pipe without readers is EPIPE here: Rust programs ignore SIGPIPE.
        if pipe.write_all(&buffer[..got]).is_err() {
            return Fed::Refused;
        }
        position.fetch_add(got as u64, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

    use std::thread;

    use super::*;

    #[test]
    fn a_stream_arrives_whole_and_is_counted() {
        let (mut reader, writer) = io::pipe().unwrap();
        let content: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
        let position = AtomicU64::new(0);
        let received = thread::scope(|scope| {
            scope.spawn(|| {
                assert!(matches!(
                    feed(&content[..], writer, &position, &AtomicBool::new(false)),
                    Fed::All
                ));
            });
            let mut received = Vec::new();
            reader.read_to_end(&mut received).unwrap();
            received
        });
        assert!(received == content);
        assert_eq!(position.into_inner(), content.len() as u64);
    }

    #[test]
    fn a_closed_pipe_and_a_set_flag_end_an_endless_stream() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let position = AtomicU64::new(0);
        assert!(matches!(
            feed(io::repeat(0), writer, &position, &AtomicBool::new(false)),
            Fed::Refused
        ));

        let (_reader, writer) = io::pipe().unwrap();
        assert!(matches!(
            feed(io::repeat(0), writer, &position, &AtomicBool::new(true)),
            Fed::Stopped
        ));
        assert_eq!(position.into_inner(), 0);
    }
}
