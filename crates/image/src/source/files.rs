//! Files by relative name, from a directory or from an archive, so that layouts need not know which.
//!
//! Never interprets content. The archive is in `tar_index.rs`.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::SourceError;
use super::document::DOCUMENT_LIMIT_BYTES;
use super::error::DocumentName;

/// Some files, each with a name of ours: never one that somebody else's document contains as it stands.
pub(super) trait Files: fmt::Debug + Send + Sync {
    /// The file's content and its length in bytes; `None` if there is no such file.
    fn open(&self, name: &str) -> io::Result<Option<(Box<dyn Read + Send>, u64)>>;

    /// A whole document, of limited size; `None` if there is no such file.
    fn document(&self, place: &Path, name: &str) -> Result<Option<Vec<u8>>, SourceError> {
        let path = || place.join(name);
        let unreadable = |source| SourceError::Unreadable { path: path(), source };
        let Some((content, size_bytes)) = self.open(name).map_err(unreadable)? else {
            return Ok(None);
        };
        if size_bytes > DOCUMENT_LIMIT_BYTES {
            return Err(SourceError::TooLarge {
                what: DocumentName::File(path()),
                size_bytes,
                limit_bytes: DOCUMENT_LIMIT_BYTES,
            });
        }
        let mut bytes = Vec::new();
        content
            .take(DOCUMENT_LIMIT_BYTES)
            .read_to_end(&mut bytes)
            .map_err(unreadable)?;
        Ok(Some(bytes))
    }
}

/// The files of a directory.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
}

impl Directory {
    pub(super) fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
        }
    }
}

impl Files for Directory {
    fn open(&self, name: &str) -> io::Result<Option<(Box<dyn Read + Send>, u64)>> {
        match open_regular(&self.path.join(name)) {
            Ok((file, size)) => Ok(Some((Box::new(file), size))),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

/// Opens what has to be a regular file, without waiting for the other end should it be a FIFO.
pub(super) fn open_regular(path: &Path) -> io::Result<(File, u64)> {
    #[expect(clippy::cast_possible_wrap, reason = "open(2) takes the same bits as an int")]
    let flags = OFlags::NONBLOCK.bits() as i32;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    Ok((file, meta.len()))
}
