//! Guest memory as the place that a file system reads into and writes from: the data of an answer, and of a WRITE.

use std::io;

use fuse_backend_rs::api::filesystem::{ZeroCopyReader, ZeroCopyWriter};
use fuse_backend_rs::file_buf::FileVolatileSlice;
use fuse_backend_rs::file_traits::FileReadWriteVolatile;
use rustix::io::Errno;
use smallvec::SmallVec;
use vm_memory::{Bytes, GuestAddress};

use crate::transport::{Chain, Segment};

/// Buffers filled at once without asking the allocator: those of the largest READ, in pages.
const INLINE: usize = 257;

type Slices<'r> = SmallVec<[FileVolatileSlice<'r>; INLINE]>;

/// What is left of one part of a chain.
#[derive(Debug)]
struct Rest<'r> {
    chain: &'r Chain<'r>,
    segments: &'r [Segment],
    /// The buffer that comes next, and where in it.
    segment: usize,
    offset: u32,
    left: usize,
}

impl<'r> Rest<'r> {
    /// What comes after the first `skip` bytes; `None` when there are not so many.
    fn new(chain: &'r Chain<'r>, segments: &'r [Segment], skip: usize) -> Option<Self> {
        let whole = segments.iter().map(|s| u64::from(s.len)).sum::<u64>();
        let mut rest = Self {
            chain,
            segments,
            segment: 0,
            offset: 0,
            left: usize::try_from(whole).ok()?,
        };
        (skip <= rest.left).then(|| {
            rest.advance(skip);
            rest
        })
    }

    fn advance(&mut self, mut count: usize) {
        self.left -= count;
        while let Some(segment) = self.segments.get(self.segment) {
            let here = usize::try_from(segment.len - self.offset).unwrap_or(usize::MAX);
            if count < here {
                self.offset += u32::try_from(count).unwrap_or(0);
                return;
            }
            count -= here;
            self.segment += 1;
            self.offset = 0;
        }
    }

    /// The next `count` bytes, buffer by buffer.
    ///
    /// # Errors
    /// `FAULT` for a buffer that goes beyond the last address.
    fn next(&self, count: usize) -> impl Iterator<Item = io::Result<Segment>> {
        let mut left = count;
        let mut offset = self.offset;
        let rest = self.segments.get(self.segment..).unwrap_or_default();
        rest.iter().map_while(move |segment| {
            if left == 0 {
                return None;
            }
            let skip = std::mem::take(&mut offset);
            let len = segment
                .len
                .saturating_sub(skip)
                .min(u32::try_from(left).unwrap_or(u32::MAX));
            left -= usize::try_from(len).unwrap_or(left);
            let addr = segment.addr.checked_add(skip.into()).ok_or_else(outside);
            Some(addr.map(|addr| Segment { addr, len }))
        })
    }

    /// The next `count` bytes as memory, added to `slices`: to return them would copy all the room that they have.
    fn collect<'s>(&'s self, count: usize, slices: &mut Slices<'s>) -> io::Result<()> {
        for piece in self.next(count) {
            let piece = piece?;
            let len = usize::try_from(piece.len).unwrap_or(0);
            let slice = self.chain.piece(piece.addr, len).ok_or_else(outside)?;
            slices.push(FileVolatileSlice::from_volatile_slice(&slice));
        }
        Ok(())
    }
}

fn outside() -> io::Error {
    Errno::FAULT.into()
}

/// The writable part of a chain.
#[derive(Debug)]
pub(super) struct GuestWriter<'r>(Rest<'r>);

impl<'r> GuestWriter<'r> {
    /// What comes after the first `skip` bytes; `None` when there are not so many.
    pub(super) fn new(chain: &'r Chain<'r>, skip: usize) -> Option<Self> {
        Rest::new(chain, chain.writable(), skip).map(Self)
    }

    fn check(&self, count: usize) -> io::Result<()> {
        if count <= self.0.left {
            return Ok(());
        }
        Err(io::ErrorKind::InvalidData.into())
    }
}

impl io::Write for GuestWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.check(bytes.len())?;
        let mut at = 0;
        for piece in self.0.next(bytes.len()) {
            let piece = piece?;
            let here = usize::try_from(piece.len).unwrap_or(0);
            let memory = self.0.chain.memory();
            memory
                .write_slice(&bytes[at..at + here], GuestAddress(piece.addr))
                .map_err(|_| outside())?;
            at += here;
        }
        self.0.advance(at);
        Ok(at)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl ZeroCopyWriter for GuestWriter<'_> {
    fn write_from(&mut self, f: &mut dyn FileReadWriteVolatile, count: usize, off: u64) -> io::Result<usize> {
        self.check(count)?;
        let mut buffers = Slices::new();
        self.0.collect(count, &mut buffers)?;
        let got = f.read_vectored_at_volatile(&buffers, off)?;
        // A file system that claims more than it was given room for would make the answer too long.
        let got = got.min(count);
        drop(buffers);
        self.0.advance(got);
        Ok(got)
    }

    fn available_bytes(&self) -> usize {
        self.0.left
    }
}

/// The readable part of a chain. Nobody decides by what is in it: it goes into a file.
#[derive(Debug)]
pub(super) struct GuestReader<'r>(Rest<'r>);

impl<'r> GuestReader<'r> {
    /// What comes after the first `skip` bytes; `None` when there are not so many.
    pub(super) fn new(chain: &'r Chain<'r>, skip: usize) -> Option<Self> {
        Rest::new(chain, chain.readable(), skip).map(Self)
    }
}

impl io::Read for GuestReader<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let mut at = 0;
        for piece in self.0.next(bytes.len().min(self.0.left)) {
            let piece = piece?;
            let here = usize::try_from(piece.len).unwrap_or(0);
            let memory = self.0.chain.memory();
            memory
                .read_slice(&mut bytes[at..at + here], GuestAddress(piece.addr))
                .map_err(|_| outside())?;
            at += here;
        }
        self.0.advance(at);
        Ok(at)
    }
}

impl ZeroCopyReader for GuestReader<'_> {
    fn read_to(&mut self, f: &mut dyn FileReadWriteVolatile, count: usize, off: u64) -> io::Result<usize> {
        let count = count.min(self.0.left);
        if count == 0 {
            return Ok(0);
        }
        let mut buffers = Slices::new();
        self.0.collect(count, &mut buffers)?;
        let taken = f.write_vectored_at_volatile(&buffers, off)?.min(count);
        drop(buffers);
        self.0.advance(taken);
        Ok(taken)
    }
}
