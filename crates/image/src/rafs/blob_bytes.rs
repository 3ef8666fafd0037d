//! The bytes of a blob by their place in it: in a file, or at the end of a blob that is somewhere else.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::source::{Descriptor, ImageSource, SourceError};

/// Bytes that can be read at any place.
pub(crate) trait BlobBytes {
    /// How many there are.
    fn length(&self) -> io::Result<u64>;

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
}

impl BlobBytes for File {
    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buf, offset)
    }
}

/// A blob of which the end is here, and the rest is asked for when it is needed. Nothing of it is verified.
#[derive(Debug)]
pub(crate) struct EndOfBlob<'a> {
    place: &'a dyn ImageSource,
    blob: &'a Descriptor,
    end: Vec<u8>,
}

impl<'a> EndOfBlob<'a> {
    /// Most bootstraps of a layer are in that with all that follows them.
    const FETCHED_BYTES: u64 = 128 << 10;

    /// None where blobs can be read from their beginning only.
    pub(crate) fn fetch(
        place: &'a dyn ImageSource,
        blob: &'a Descriptor,
    ) -> Result<Option<Self>, SourceError> {
        let begin = blob.size().saturating_sub(Self::FETCHED_BYTES);
        let end = place.part(blob, begin..blob.size())?;
        Ok(end.map(|end| Self { place, blob, end }))
    }
}

impl BlobBytes for EndOfBlob<'_> {
    fn length(&self) -> io::Result<u64> {
        Ok(self.blob.size())
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let begin = self.blob.size() - self.end.len() as u64;
        let until = offset + buf.len() as u64;
        let fetched;
        let found = match offset.checked_sub(begin) {
            Some(at) => usize::try_from(at).ok().and_then(|at| self.end.get(at..)),
            None => {
                fetched = self
                    .place
                    .part(self.blob, offset..until)
                    .map_err(io::Error::other)?;
                fetched.as_deref()
            }
        };
        let found = found.and_then(|found| found.get(..buf.len()));
        buf.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}
