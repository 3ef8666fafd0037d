//! The scan of a tar archive, and how an archive's stream is opened (gunzipped when it needs to be).
//!
//! Refuses by name every entry that the builder would refuse vaguely, misread silently (sparse files in
//! pax format) or panic on (`..`). Never keeps content. Read `build/feed.rs` for how the stream then
//! reaches the builder.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use flate2::read::MultiGzDecoder;
use tar::{Archive, Entry, EntryType};

use super::Totals;
use crate::config::FsVersion;
use crate::error::{BuildError, TarEntryProblem};
use crate::progress::Progress;

/// First bytes of a gzip member with the deflate method, RFC 1952 section 2.3.1.
const GZIP_MAGIC: [u8; 3] = [0x1f, 0x8b, 0x08];
/// A tar header, and the unit in which archives grow.
const BLOCK_SIZE: usize = 512;
/// NAME_MAX on Linux.
const NAME_MAX_BYTES: usize = 255;

/// Opens the archive's uncompressed stream.
pub(crate) fn open_stream(path: &Path) -> io::Result<Box<dyn Read + Send>> {
    let mut file = BufReader::with_capacity(64 << 10, File::open(path)?);
    let mut magic = [0; GZIP_MAGIC.len()];
    let got = read_up_to(&mut file, &mut magic)?;
    let whole = io::Cursor::new(magic).take(got as u64).chain(file);
    Ok(if magic == GZIP_MAGIC {
        Box::new(MultiGzDecoder::new(whole))
    } else {
        Box::new(whole)
    })
}

pub(super) fn scan(path: &Path, version: FsVersion, progress: &dyn Progress) -> Result<Totals, BuildError> {
    let unreadable = |source| BuildError::Unreadable {
        path: path.to_owned(),
        source,
    };
    check_first_header(path)?;
    let mut stream = Counting {
        inner: open_stream(path).map_err(unreadable)?,
        bytes: 0,
    };

    let mut totals = Totals::default();
    let mut archive = Archive::new(&mut stream);
    // As the builder reads it: archives may be concatenated.
    archive.set_ignore_zeros(true);
    let damaged = |source| BuildError::DamagedTar {
        path: path.to_owned(),
        source,
    };
    let mut seen = Seen::default();
    for entry in archive.entries().map_err(damaged)? {
        let mut entry = entry.map_err(damaged)?;
        let name = entry.path().map_err(damaged)?.into_owned();
        check_entry(&mut entry, &name, version, &mut seen).map_err(|problem| match problem {
            EntryError::Problem(problem) => BuildError::TarEntry {
                path: path.to_owned(),
                entry: name.clone(),
                problem,
            },
            EntryError::Io(source) => damaged(source),
        })?;
        totals.add(0, progress)?;
    }
    // Whatever follows the archive (padding, mostly) is fed to the builder too.
    io::copy(&mut stream, &mut io::sink()).map_err(damaged)?;
    totals.bytes = stream.bytes;
    Ok(totals)
}

/// Tells "not a tar" from "a damaged tar": the former has no valid header where the first one belongs.
fn check_first_header(path: &Path) -> Result<(), BuildError> {
    let mut stream = open_stream(path).map_err(|source| BuildError::Unreadable {
        path: path.to_owned(),
        source,
    })?;
    let mut block = [0; BLOCK_SIZE];
    let got = read_up_to(&mut stream, &mut block);
    let valid = matches!(got, Ok(BLOCK_SIZE)) && {
        let header = tar::Header::from_byte_slice(&block);
        // An archive without entries begins with its end: a block of zeros.
        block == [0; BLOCK_SIZE] || header.cksum().is_ok_and(|sum| sum == checksum(&block))
    };
    if valid {
        Ok(())
    } else {
        Err(BuildError::NotATar {
            path: path.to_owned(),
        })
    }
}

/// The header's checksum: the sum of its bytes, its own field read as spaces (POSIX pax, "ustar").
fn checksum(block: &[u8; BLOCK_SIZE]) -> u32 {
    const FIELD: std::ops::Range<usize> = 148..156;
    let byte = |(at, byte): (usize, &u8)| u32::from(if FIELD.contains(&at) { b' ' } else { *byte });
    block.iter().enumerate().map(byte).sum()
}

/// What hard links may point to: the latest entry of each path.
#[derive(Default)]
struct Seen(HashMap<PathBuf, SeenEntry>);

#[derive(Clone, Copy)]
struct SeenEntry {
    is_file: bool,
    has_xattrs: bool,
}

enum EntryError {
    Problem(TarEntryProblem),
    Io(io::Error),
}

impl From<TarEntryProblem> for EntryError {
    fn from(problem: TarEntryProblem) -> Self {
        Self::Problem(problem)
    }
}

impl From<io::Error> for EntryError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn check_entry<R: Read>(
    entry: &mut Entry<'_, R>,
    name: &Path,
    version: FsVersion,
    seen: &mut Seen,
) -> Result<(), EntryError> {
    let kind = entry.header().entry_type();
    let is_file = match kind {
        EntryType::Regular | EntryType::Link => true,
        EntryType::Directory | EntryType::Symlink | EntryType::Char | EntryType::Block | EntryType::Fifo => {
            false
        }
        EntryType::GNUSparse => return Err(TarEntryProblem::Sparse.into()),
        EntryType::XGlobalHeader => return Err(TarEntryProblem::GlobalHeader.into()),
        other => {
            return Err(TarEntryProblem::Type {
                type_flag: other.as_byte(),
            }
            .into());
        }
    };
    let path = image_path(name)?;
    let mut has_xattrs = false;
    if let Some(extensions) = entry.pax_extensions()? {
        for extension in extensions {
            // The format of GNU tar 1.14 and later: an ordinary file whose content begins with a map.
            let extension = extension.map_err(|_| TarEntryProblem::PaxRecord)?;
            if extension.key_bytes().starts_with(b"GNU.sparse.") {
                return Err(TarEntryProblem::Sparse.into());
            }
            has_xattrs |= extension.key_bytes().starts_with(b"SCHILY.xattr.");
        }
    }
    if kind == EntryType::Link {
        let target = image_path(&entry.link_name()?.ok_or(TarEntryProblem::LinkTarget)?)?;
        let target = seen.0.get(&target).filter(|target| target.is_file);
        has_xattrs = target.ok_or(TarEntryProblem::LinkTarget)?.has_xattrs;
        // nydus-builder 0.2.0 gives the link its target's attributes but not the flag that it has any,
        // which makes a v5 bootstrap unreadable from there on. In v6 nothing depends on the flag.
        if has_xattrs && version == FsVersion::V5 {
            return Err(TarEntryProblem::LinkWithXattrs.into());
        }
    }
    seen.0.insert(path, SeenEntry { is_file, has_xattrs });
    Ok(())
}

/// The path an entry gets in the image: relative to its root, without `.` and doubled slashes.
fn image_path(name: &Path) -> Result<PathBuf, TarEntryProblem> {
    let mut path = PathBuf::new();
    for component in name.components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) if OsStr::as_bytes(name).len() > NAME_MAX_BYTES => {
                return Err(TarEntryProblem::NameTooLong);
            }
            Component::Normal(name) => path.push(name),
            Component::ParentDir | Component::Prefix(_) => return Err(TarEntryProblem::ParentComponent),
        }
    }
    Ok(path)
}

/// Counts what passes.
struct Counting<R> {
    inner: R,
    bytes: u64,
}

impl<R: Read> Read for Counting<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let got = self.inner.read(buf)?;
        self.bytes += got as u64;
        Ok(got)
    }
}

/// Reads until `buf` is full or the stream ends; how many bytes came.
fn read_up_to(reader: &mut impl Read, buf: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buf.len() {
        match reader.read(&mut buf[filled..]) {
            Ok(0) => break,
            Ok(got) => filled += got,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
