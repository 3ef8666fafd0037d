//! Where the content of a blob comes from that is to be written somewhere.
//!
//! It can be read more than once: a registry may lose what it was sent, or want it in another way. Whether it is the
//! blob is checked by who takes it.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::{Descriptor, ImageSource, SinkError};

/// The content of a blob that may be needed. Opening it may cost something, and is not done in vain.
pub trait BlobContent: Sync {
    /// The content from its beginning.
    ///
    /// # Errors
    /// What the place of the content says.
    fn open(&self) -> io::Result<Box<dyn Read + Send + '_>>;
}

impl BlobContent for [u8] {
    fn open(&self) -> io::Result<Box<dyn Read + Send + '_>> {
        Ok(Box::new(self))
    }
}

impl BlobContent for Vec<u8> {
    fn open(&self) -> io::Result<Box<dyn Read + Send + '_>> {
        self.as_slice().open()
    }
}

impl BlobContent for &[u8] {
    fn open(&self) -> io::Result<Box<dyn Read + Send + '_>> {
        (**self).open()
    }
}

impl BlobContent for Path {
    fn open(&self) -> io::Result<Box<dyn Read + Send + '_>> {
        Ok(Box::new(File::open(self)?))
    }
}

impl BlobContent for PathBuf {
    fn open(&self) -> io::Result<Box<dyn Read + Send + '_>> {
        self.as_path().open()
    }
}

/// A blob of another place.
#[derive(Debug, Clone)]
pub struct BlobOf<'a> {
    /// The place.
    pub source: &'a dyn ImageSource,
    /// The blob.
    pub blob: Descriptor,
}

impl BlobContent for BlobOf<'_> {
    fn open(&self) -> io::Result<Box<dyn Read + Send + '_>> {
        self.source.blob(&self.blob).map_err(io::Error::other)
    }
}

/// Opens what is to be written as `blob`.
pub(crate) fn open<'a>(
    blob: &Descriptor,
    content: &'a dyn BlobContent,
) -> Result<Box<dyn Read + Send + 'a>, SinkError> {
    content.open().map_err(|source| SinkError::Content {
        digest: blob.digest().clone(),
        source,
    })
}
