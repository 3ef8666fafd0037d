//! The files of a tar archive, found once and then read each by itself, in any order and at the same time.
//!
//! A compressed archive is unpacked into a temporary file without a name first. Never follows a link out of
//! the archive, and keeps only where files are.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path};
use std::sync::Arc;

use super::files::{Files, open_regular};
use super::{AccessOptions, SourceError};
use crate::error::is_out_of_space;
use crate::layers::TarStream;
use flate2::read::MultiGzDecoder;

/// An image has a few files a layer; what has this many is something else.
const MAX_ENTRIES: usize = 100_000;
/// PATH_MAX on Linux.
const MAX_NAME_BYTES: usize = 4096;
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
            let dir = options.temp_dir.clone().unwrap_or_else(std::env::temp_dir);
            let mut plain = tempfile::tempfile_in(&dir).map_err(unreadable)?;
            let mut archive = MultiGzDecoder::new(BufReader::new(&file));
            io::copy(&mut archive, &mut plain).map_err(|error| match is_out_of_space(&error) {
                // What is read can't run out of it.
                true => SourceError::NoRoomToUnpack {
                    path: path.to_owned(),
                    dir,
                },
                false => damaged(error),
            })?;
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
    let mut archive = TarStream::new(archive);
    while let Some(entry) = archive.next_entry()? {
        if extents.len() + links.len() >= MAX_ENTRIES {
            return Ok(None);
        }
        let extent = Extent {
            offset: archive.pass_content()?,
            bytes: entry.size,
        };
        let Some(name) = name(&entry.path) else {
            continue;
        };
        match entry.type_flag {
            // What has holes isn't in the archive as it is in the file.
            b'0' if !entry.is_sparse => {
                if extent
                    .offset
                    .checked_add(extent.bytes)
                    .is_none_or(|end| end > archive_bytes)
                {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                extents.insert(name, extent);
            }
            kind @ (b'1' | b'2') => {
                let target = Path::new(OsStr::from_bytes(&entry.link_path));
                let base = match Path::new(&name).parent() {
                    Some(parent) if kind == b'2' => parent.join(target),
                    _ => target.to_owned(),
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

/// The name an entry is found by.
fn name(path: &[u8]) -> Option<String> {
    normal(Path::new(OsStr::from_bytes(path)))
}

/// The name without `.` and `..`; `None` if it leads out of the archive, isn't UTF-8, or longer than any that is asked
/// for: each is kept.
fn normal(path: &Path) -> Option<String> {
    if path.as_os_str().len() > MAX_NAME_BYTES {
        return None;
    }
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

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::io::Write;

    use tempfile::NamedTempFile;

    use super::*;

    fn header(kind: tar::EntryType, name: &str, bytes: u64) -> Vec<u8> {
        let mut header = tar::Header::new_gnu();
        header.set_path(name).unwrap();
        header.set_entry_type(kind);
        header.set_size(bytes);
        header.set_cksum();
        header.as_bytes().to_vec()
    }

    fn archive(parts: &[&[u8]]) -> NamedTempFile {
        let mut file = NamedTempFile::new().unwrap();
        for part in parts {
            file.write_all(part).unwrap();
            let end = file.as_file().metadata().unwrap().len();
            file.as_file().set_len(end.next_multiple_of(512)).unwrap();
            io::Seek::seek(&mut file, io::SeekFrom::End(0)).unwrap();
        }
        file
    }

    fn open(archive: &NamedTempFile) -> Result<TarIndex, SourceError> {
        TarIndex::open(archive.path(), &AccessOptions::default())
    }

    #[test]
    fn what_is_between_files_is_passed_over() {
        let large = 3 << 40;
        let archive = archive(&[
            &header(tar::EntryType::Regular, "./first", 5),
            b"first",
            &header(tar::EntryType::Symlink, "dir/link", 0),
            &header(tar::EntryType::Regular, "large", large),
        ]);
        let file = archive.as_file();
        let end = file.metadata().unwrap().len() + large;
        file.set_len(end).unwrap();
        file.write_all_at(&header(tar::EntryType::Regular, "last", 4), end)
            .unwrap();
        file.write_all_at(b"last", end + 512).unwrap();
        let index = open(&archive).unwrap();
        for name in ["first", "last"] {
            let (mut content, bytes) = index.open(name).unwrap().unwrap();
            let mut text = String::new();
            content.read_to_string(&mut text).unwrap();
            assert_eq!((&*text, bytes), (name, name.len() as u64));
        }
        assert_eq!(index.open("large").unwrap().unwrap().1, large);
        assert!(index.open("dir/link").unwrap().is_none());
    }

    #[test]
    fn a_name_without_end_is_not_read() {
        use tar::EntryType::{GNULongLink, GNULongName, XHeader};
        for kind in [GNULongName, GNULongLink, XHeader] {
            let archive = archive(&[&header(kind, "long", 8 << 20)]);
            archive.as_file().set_len((8 << 20) + 512).unwrap();
            let refused = open(&archive);
            assert!(
                matches!(refused, Err(SourceError::DamagedArchive { .. })),
                "{refused:?}"
            );
        }
    }

    #[test]
    fn a_file_that_is_cut_off_is_noticed() {
        let archive = archive(&[&header(tar::EntryType::Regular, "file", 5), b"four"]);
        archive.as_file().set_len(516).unwrap();
        assert!(matches!(open(&archive), Err(SourceError::DamagedArchive { .. })));
    }
}
