//! The data part of an answer, as the place a file system reads into.

use std::io;

use fuse_backend_rs::api::filesystem::ZeroCopyWriter;
use fuse_backend_rs::file_buf::FileVolatileSlice;
use fuse_backend_rs::file_traits::FileReadWriteVolatile;
use smallvec::SmallVec;
use vm_memory::{Bytes, GuestAddress};

use crate::transport::{Chain, Segment};

/// Buffers filled at once without asking the allocator: those of the largest READ, in pages.
const INLINE: usize = 257;

/// What is left of the writable part of a chain.
#[derive(Debug)]
pub(super) struct GuestWriter<'r> {
    chain: &'r Chain<'r>,
    /// The buffer written next, and where in it.
    segment: usize,
    offset: u32,
    left: usize,
}

impl<'r> GuestWriter<'r> {
    /// What comes after the first `skip` bytes; `None` when there are not so many.
    pub(super) fn new(chain: &'r Chain<'r>, skip: usize) -> Option<Self> {
        let whole = chain.writable().iter().map(|s| u64::from(s.len)).sum::<u64>();
        let mut writer = Self {
            chain,
            segment: 0,
            offset: 0,
            left: usize::try_from(whole).ok()?,
        };
        (skip <= writer.left).then(|| {
            writer.advance(skip);
            writer
        })
    }

    fn advance(&mut self, mut count: usize) {
        self.left -= count;
        while let Some(segment) = self.chain.writable().get(self.segment) {
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

    /// The next `count` bytes of room, buffer by buffer.
    fn room(&self, count: usize) -> impl Iterator<Item = Segment> {
        let mut left = count;
        let mut offset = self.offset;
        let rest = self.chain.writable().get(self.segment..).unwrap_or_default();
        rest.iter().map_while(move |segment| {
            if left == 0 {
                return None;
            }
            let skip = std::mem::take(&mut offset);
            let len = segment
                .len
                .checked_sub(skip)?
                .min(u32::try_from(left).unwrap_or(u32::MAX));
            left -= usize::try_from(len).ok()?;
            let addr = segment.addr.checked_add(skip.into())?;
            Some(Segment { addr, len })
        })
    }

    fn check(&self, count: usize) -> io::Result<()> {
        if count <= self.left {
            return Ok(());
        }
        Err(io::ErrorKind::InvalidData.into())
    }
}

fn outside() -> io::Error {
    rustix::io::Errno::FAULT.into()
}

impl io::Write for GuestWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.check(bytes.len())?;
        let mut at = 0;
        for piece in self.room(bytes.len()) {
            let here = usize::try_from(piece.len).unwrap_or(0);
            self.chain
                .memory()
                .write_slice(&bytes[at..at + here], GuestAddress(piece.addr))
                .map_err(|_| outside())?;
            at += here;
        }
        self.advance(at);
        Ok(at)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl ZeroCopyWriter for GuestWriter<'_> {
    fn write_from(&mut self, f: &mut dyn FileReadWriteVolatile, count: usize, off: u64) -> io::Result<usize> {
        self.check(count)?;
        let mut buffers: SmallVec<[FileVolatileSlice<'_>; INLINE]> = SmallVec::new();
        for piece in self.room(count) {
            let len = usize::try_from(piece.len).unwrap_or(0);
            let slice = self.chain.piece(piece.addr, len).ok_or_else(outside)?;
            buffers.push(FileVolatileSlice::from_volatile_slice(&slice));
        }
        let got = f.read_vectored_at_volatile(&buffers, off)?;
        // A file system that claims more than it was given room for would make the answer too long.
        let got = got.min(count);
        drop(buffers);
        self.advance(got);
        Ok(got)
    }

    fn available_bytes(&self) -> usize {
        self.left
    }
}
