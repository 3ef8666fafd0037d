//! The files of a tar archive, found once and then read each by itself, in any order and at the same time.
//!
//! A compressed archive is unpacked into a temporary file without a name first. Never follows a link out of
//! the archive, and keeps only where files are.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Component, Path};
use std::sync::Arc;

use flate2::read::MultiGzDecoder;
use tar::{Archive, EntryType};

use super::files::{Files, open_regular};
use super::{AccessOptions, SourceError};

/// An image has a few files a layer; what has this many is something else.
const MAX_ENTRIES: usize = 100_000;
/// First bytes of a gzip member with the deflate method, RFC 1952 section 2.3.1.
const GZIP_MAGIC: [u8; 3] = [0x1f, 0x8b, 0x08];

/// Where a file's content is in the archive.
#[derive(Debug, Clone, Copy)]
struct Extent {
    offset: u64,
    bytes: u64,
}

#[derive(Debug)]
pub(super) struct TarIndex {
    file: Arc<File>,
    extents: HashMap<String, Extent>,
}

impl TarIndex {
    pub(super) fn open(path: &Path, options: &AccessOptions) -> Result<Self, SourceError> {
        let unreadable = |source| SourceError::Unreadable {
            path: path.to_owned(),
            source,
        };
        let damaged = |source| SourceError::DamagedArchive {
            path: path.to_owned(),
            source,
        };
        let (mut file, _) = open_regular(path).map_err(unreadable)?;
        let mut magic = [0; GZIP_MAGIC.len()];
        let got = file.read_at(&mut magic, 0).map_err(unreadable)?;
        if got == magic.len() && magic == GZIP_MAGIC {
            let mut plain = match &options.temp_dir {
                Some(dir) => tempfile::tempfile_in(dir),
                None => tempfile::tempfile(),
            }
            .map_err(unreadable)?;
            io::copy(&mut MultiGzDecoder::new(BufReader::new(&file)), &mut plain).map_err(damaged)?;
            file = plain;
        }
        let whole = Extent {
            offset: 0,
            bytes: file.metadata().map_err(unreadable)?.len(),
        };
        let file = Arc::new(file);
        let extents = index(Part::new(&file, whole), whole.bytes)
            .map_err(damaged)?
            .ok_or_else(|| SourceError::TooManyEntries {
                path: path.to_owned(),
                limit: MAX_ENTRIES,
            })?;
        Ok(Self { file, extents })
    }
}

/// Where the files are; `None` if there are too many.
fn index(archive: Part, archive_bytes: u64) -> io::Result<Option<HashMap<String, Extent>>> {
    let mut extents = HashMap::new();
    // `docker save` before version 25 wrote a layer that occurs twice as a link to its first occurrence.
    let mut links = Vec::new();
    let mut archive = Archive::new(archive);
    for entry in archive.entries_with_seek()? {
        let entry = entry?;
        if extents.len() + links.len() >= MAX_ENTRIES {
            return Ok(None);
        }
        let Some(name) = entry.path().ok().and_then(|path| normal(&path)) else {
            continue;
        };
        match entry.header().entry_type() {
            EntryType::Regular | EntryType::Continuous => {
                let extent = Extent {
                    offset: entry.raw_file_position(),
                    bytes: entry.size(),
                };
                if extent
                    .offset
                    .checked_add(extent.bytes)
                    .is_none_or(|end| end > archive_bytes)
                {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                extents.insert(name, extent);
            }
            kind @ (EntryType::Symlink | EntryType::Link) => {
                let Some(target) = entry.link_name()? else {
                    continue;
                };
                let base = match Path::new(&name).parent() {
                    Some(parent) if kind == EntryType::Symlink => parent.join(&target),
                    _ => target.into_owned(),
                };
                links.extend(normal(&base).map(|target| (name, target)));
            }
            _ => {}
        }
    }
    for (name, target) in links {
        if let Some(extent) = extents.get(&target).copied() {
            extents.insert(name, extent);
        }
    }
    Ok(Some(extents))
}

/// The name without `.` and `..`; `None` if it leads out of the archive, or isn't UTF-8.
fn normal(path: &Path) -> Option<String> {
    let mut parts = Vec::new();
    for component in path.components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(part) => parts.push(part.to_str()?),
            Component::ParentDir => {
                parts.pop()?;
            }
            Component::Prefix(_) => return None,
        }
    }
    Some(parts.join("/"))
}

impl Files for TarIndex {
    fn open(&self, name: &str) -> io::Result<Option<(Box<dyn Read + Send>, u64)>> {
        let Some(extent) = normal(Path::new(name)).and_then(|name| self.extents.get(&name).copied()) else {
            return Ok(None);
        };
        Ok(Some((Box::new(Part::new(&self.file, extent)), extent.bytes)))
    }
}

/// A part of a file that doesn't share its position with others.
#[derive(Debug)]
struct Part {
    file: Arc<File>,
    extent: Extent,
    at: u64,
}

impl Part {
    fn new(file: &Arc<File>, extent: Extent) -> Self {
        Self {
            file: Arc::clone(file),
            extent,
            at: 0,
        }
    }
}

impl Read for Part {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = self.extent.bytes.saturating_sub(self.at);
        let room = usize::try_from(left).map_or(buf.len(), |left| left.min(buf.len()));
        let got = self
            .file
            .read_at(&mut buf[..room], self.extent.offset + self.at)?;
        self.at += got as u64;
        Ok(got)
    }
}

impl io::Seek for Part {
    fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
        let at = match to {
            io::SeekFrom::Start(at) => Some(at),
            io::SeekFrom::End(by) => self.extent.bytes.checked_add_signed(by),
            io::SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}
