//! A guest's memory from one file into another: only what has data, by two threads.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

/// What a thread takes at a time: in the processor's cache from the read until the write.
const PIECE_LEN: u64 = 512 << 10;
/// Zeros of this length at a multiple of it are not written.
const BLOCK_LEN: usize = 16 << 10;
/// More do not help: the memory's bandwidth is the limit.
const THREADS: usize = 2;

/// Copies what has data in `from` to where it is in `to`, and returns how many bytes that was. `to` must have the
/// wanted length, and no data. Blocks.
pub(crate) fn copy(from: &File, to: &File) -> io::Result<u64> {
    let pieces = pieces(from)?;
    let next = AtomicUsize::new(0);
    let work = || -> io::Result<u64> {
        let mut buffer = vec![0; usize::try_from(PIECE_LEN).expect("a piece is small")];
        let mut copied = 0;
        while let Some(&(at, len)) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
            let piece = &mut buffer[..len];
            from.read_exact_at(piece, at)?;
            copied += write_data(piece, to, at)?;
        }
        Ok(copied)
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..THREADS).map(|_| scope.spawn(work)).collect();
        let mut copied = work()?;
        for other in others {
            copied += other
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        Ok(copied)
    })
}

/// Writes what isn't zero, in as few writes as that takes.
fn write_data(piece: &[u8], to: &File, at: u64) -> io::Result<u64> {
    // By lines, so that it is a few instructions for each and data is found at once.
    let zero = |block: &[u8]| {
        let mut lines = block.chunks(64);
        lines.all(|line| line.iter().fold(0, |any, byte| any | byte) == 0)
    };
    let mut copied = 0;
    let mut start = 0;
    while start < piece.len() {
        let mut end = start;
        while end < piece.len() {
            let next = (end + BLOCK_LEN).min(piece.len());
            if zero(&piece[end..next]) {
                break;
            }
            end = next;
        }
        if start < end {
            to.write_all_at(&piece[start..end], at + start as u64)?;
            copied += (end - start) as u64;
        }
        start = (end + BLOCK_LEN).min(piece.len());
    }
    Ok(copied)
}

/// Where `file` has data, in pieces of at most [`PIECE_LEN`].
fn pieces(file: &File) -> io::Result<Vec<(u64, usize)>> {
    let mut pieces = Vec::new();
    let mut at = 0;
    loop {
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            // From here on there is none.
            Err(Errno::NXIO) => return Ok(pieces),
            Err(errno) => return Err(errno.into()),
        };
        at = seek(file, SeekFrom::Hole(start))?;
        let mut begin = start;
        while begin < at {
            // To the same multiples everywhere, so that blocks of zeros are whole.
            let end = ((begin / PIECE_LEN + 1) * PIECE_LEN).min(at);
            let len = usize::try_from(end - begin).expect("a piece is small");
            pieces.push((begin, len));
            begin = end;
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::MetadataExt;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn the_copy_reads_as_the_original(
            writes in proptest::collection::vec((0u64..3 << 20, 1usize..200_000, any::<u8>()), 0..8),
        ) {
            let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
            let len = 4 << 20;
            from.set_len(len).unwrap();
            to.set_len(len).unwrap();
            for (at, len, byte) in writes {
                from.write_all_at(&vec![byte; len], at).unwrap();
            }
            let copied = copy(&from, &to).unwrap();
            let read = |file: &File| {
                let mut bytes = vec![0; 4 << 20];
                file.read_exact_at(&mut bytes, 0).unwrap();
                bytes
            };
            prop_assert!(read(&from) == read(&to));
            prop_assert!(copied <= len);
        }
    }

    #[test]
    fn neither_holes_nor_zeros_take_room() {
        let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        for file in [&from, &to] {
            file.set_len(1 << 30).unwrap();
        }
        from.write_all_at(&vec![0; 8 << 20], 64 << 20).unwrap();
        from.write_all_at(b"data", 512 << 20).unwrap();
        assert!(copy(&from, &to).unwrap() <= BLOCK_LEN as u64);
        let used = to.metadata().unwrap().blocks() * 512;
        assert!(used <= 1 << 20, "{used} bytes");
    }
}
