//! The reader that lets nothing pass as a blob that isn't one.
//!
//! Owns the rule: the last bytes are handed out only after the whole was found right, so that also a caller
//! who reads exactly as many bytes as the descriptor says, and never meets the end, is told.

use std::io::{self, Read};

use oci_spec::image::{Descriptor, Digest};
use thiserror::Error;

use super::digest::{Hasher, UnsupportedDigest};

/// How content differs from its descriptor. Inside an [`io::Error`] of kind `InvalidData`, or `UnexpectedEof`
/// when it is too short.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum BlobMismatch {
    /// The right length, other content.
    #[error("blob {expected} has the digest {found}")]
    Digest {
        /// The digest of the descriptor.
        expected: Digest,
        /// That of the content.
        found: Digest,
    },
    /// It ends early.
    #[error("blob {digest} ends after {found_bytes} bytes of {expected_bytes}")]
    Short {
        /// The digest of the descriptor.
        digest: Digest,
        /// The length in the descriptor.
        expected_bytes: u64,
        /// How much there was.
        found_bytes: u64,
    },
    /// It goes on.
    #[error("blob {digest} is longer than the {expected_bytes} bytes its descriptor says")]
    Long {
        /// The digest of the descriptor.
        digest: Digest,
        /// The length in the descriptor.
        expected_bytes: u64,
    },
}

impl From<BlobMismatch> for io::Error {
    fn from(mismatch: BlobMismatch) -> Self {
        let kind = match mismatch {
            BlobMismatch::Short { .. } => io::ErrorKind::UnexpectedEof,
            BlobMismatch::Digest { .. } | BlobMismatch::Long { .. } => io::ErrorKind::InvalidData,
        };
        Self::new(kind, mismatch)
    }
}

/// A blob's content on its way, checked against its descriptor.
#[derive(Debug)]
pub struct Verified<R> {
    inner: R,
    digest: Digest,
    expected_bytes: u64,
    seen_bytes: u64,
    /// `None` once the content was found right or wrong.
    hasher: Option<Hasher>,
    mismatch: Option<BlobMismatch>,
}

impl<R: Read> Verified<R> {
    /// Checks what comes out of `inner` against `descriptor`.
    ///
    /// # Errors
    /// [`UnsupportedDigest`] if its digest can't be computed here.
    pub fn new(inner: R, descriptor: &Descriptor) -> Result<Self, UnsupportedDigest> {
        Ok(Self {
            inner,
            digest: descriptor.digest().clone(),
            expected_bytes: descriptor.size(),
            seen_bytes: 0,
            hasher: Some(Hasher::like(descriptor.digest())?),
            mismatch: None,
        })
    }

    fn refuse(&mut self, mismatch: BlobMismatch) -> io::Error {
        self.hasher = None;
        self.mismatch = Some(mismatch.clone());
        mismatch.into()
    }

    /// All bytes are there; what remains is that there are no more, and that they are the right ones.
    fn conclude(&mut self) -> io::Result<()> {
        let Some(hasher) = self.hasher.take() else {
            return Ok(());
        };
        let mut more = [0];
        loop {
            match self.inner.read(&mut more) {
                Ok(0) => break,
                Ok(_) => {
                    let mismatch = BlobMismatch::Long {
                        digest: self.digest.clone(),
                        expected_bytes: self.expected_bytes,
                    };
                    return Err(self.refuse(mismatch));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.hasher = Some(hasher);
                    return Err(error);
                }
            }
        }
        let found = hasher.finish();
        if found == self.digest {
            return Ok(());
        }
        let mismatch = BlobMismatch::Digest {
            expected: self.digest.clone(),
            found,
        };
        Err(self.refuse(mismatch))
    }
}

impl<R: Read> Read for Verified<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if let Some(mismatch) = &self.mismatch {
            return Err(mismatch.clone().into());
        }
        let left = self.expected_bytes - self.seen_bytes;
        if left == 0 {
            return self.conclude().map(|()| 0);
        }
        let room = usize::try_from(left).map_or(buf.len(), |left| left.min(buf.len()));
        if room == 0 {
            return Ok(0);
        }
        let got = self.inner.read(&mut buf[..room])?;
        if got == 0 {
            let mismatch = BlobMismatch::Short {
                digest: self.digest.clone(),
                expected_bytes: self.expected_bytes,
                found_bytes: self.seen_bytes,
            };
            return Err(self.refuse(mismatch));
        }
        self.seen_bytes += got as u64;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buf[..got]);
        }
        if self.seen_bytes == self.expected_bytes {
            self.conclude()?;
        }
        Ok(got)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

    use oci_spec::image::MediaType;
    use proptest::prelude::*;

    use super::*;
    use crate::source::sha256_of;

    fn descriptor(content: &[u8], size: usize) -> Descriptor {
        Descriptor::new(MediaType::ImageLayer, size as u64, sha256_of(content))
    }

    fn mismatch(error: &io::Error) -> &BlobMismatch {
        error.get_ref().unwrap().downcast_ref().unwrap()
    }

    proptest! {
        #[test]
        fn what_comes_out_is_all_of_the_blob_or_an_error_before_its_last_byte(
            content in prop::collection::vec(any::<u8>(), 0..200),
            served in prop::collection::vec(any::<u8>(), 0..200),
            serve_content in any::<bool>(),
            size in 0..220_usize,
            right_size in any::<bool>(),
            piece in 1..50_usize,
        ) {
            let size = if right_size { content.len() } else { size };
            let served = if serve_content { content.clone() } else { served };
            let mut verified = Verified::new(&*served, &descriptor(&content, size)).unwrap();
            let mut out = Vec::new();
            let mut buf = vec![0; piece];
            let result = loop {
                match verified.read(&mut buf) {
                    Ok(0) => break Ok(()),
                    Ok(got) => out.extend_from_slice(&buf[..got]),
                    Err(error) => break Err(error),
                }
            };
            if served == content && size == content.len() {
                result.unwrap();
                prop_assert_eq!(out, content);
            } else {
                let error = result.unwrap_err();
                // An empty blob has no last byte to hold back.
                prop_assert!(out.len() < size.max(1));
                match mismatch(&error) {
                    BlobMismatch::Short { .. } => prop_assert!(served.len() < size),
                    BlobMismatch::Long { .. } => prop_assert!(served.len() > size),
                    BlobMismatch::Digest { .. } => prop_assert!(served.len() == size),
                }
                // And it stays an error.
                let again = verified.read(&mut buf).unwrap_err();
                prop_assert_eq!(mismatch(&again), mismatch(&error));
            }
        }
    }
}
