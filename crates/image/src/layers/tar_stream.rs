//! Entries of a tar stream, one after the other, with their content: nothing is kept, and nothing is skipped by
//! seeking unless that is asked for.
//!
//! Knows POSIX, pax and GNU tar, sparse files and numbers of any size; reads what Go's `archive/tar` reads, by
//! which layers are made and unpacked elsewhere. Never judges what an entry means: see `entry.rs`.

use std::io::{self, Read, Seek, SeekFrom};

use super::error::{StreamError, TarProblem};
use super::tar_header::{BLOCK_BYTES, Block, Header, gnu_sparse_more};
use super::tar_pax::Pax;
use super::tar_sparse::{MapAt, MapReader, SparseMap, Stretch};

/// Extended headers and long names are no larger, as in Go; those of one entry aren't together.
const MAX_EXTENSION_BYTES: u64 = 1 << 20;
/// Pieces of an old GNU sparse map, 21 in each block.
const MAX_SPARSE_BLOCKS: usize = 1 << 13;

/// An entry as the archive has it.
#[derive(Debug)]
pub(crate) struct TarEntry {
    /// As in its header, except that old and contiguous regular files are `0`.
    pub(crate) type_flag: u8,
    pub(crate) path: Vec<u8>,
    pub(crate) link_path: Vec<u8>,
    pub(super) mode: i64,
    pub(super) uid: i64,
    pub(super) gid: i64,
    /// Seconds and nanoseconds since the epoch.
    pub(super) mtime: (i64, u32),
    pub(super) device: (i64, i64),
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Of the content as it is read, holes included, in bytes.
    pub(crate) size: u64,
    /// Whether there are holes in it, of which the archive has nothing.
    pub(crate) is_sparse: bool,
}

/// The stream, and how far the current entry's content was read.
#[derive(Debug)]
pub(crate) struct TarStream<R> {
    inner: R,
    /// Of the entry's bytes in the archive.
    left: u64,
    padding: u64,
    position: u64,
    size: u64,
    sparse: Option<SparseMap>,
    ended: bool,
    has_end_marker: bool,
}

impl<R: Read> TarStream<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self {
            inner,
            left: 0,
            padding: 0,
            position: 0,
            size: 0,
            sparse: None,
            ended: false,
            has_end_marker: false,
        }
    }

    /// The next entry, having skipped what is left of the one before; none at the archive's end.
    pub(crate) fn next_entry(&mut self) -> Result<Option<TarEntry>, StreamError> {
        if self.ended {
            return Ok(None);
        }
        self.skip(self.left)?;
        let padding = self.padding;
        (self.left, self.padding) = (0, 0);
        // `umoci insert` ends there, and Go's reader, which everybody else unpacks with, takes it for the end.
        if self.skip_at_most(padding)? < padding {
            self.ended = true;
            return Ok(None);
        }
        let mut pax = Pax::default();
        let (mut long_name, mut long_link) = (None, None);
        // Of all headers that say something of one entry.
        let mut most = MAX_EXTENSION_BYTES;
        loop {
            let Some(block) = self.header_block()? else {
                self.ended = true;
                return Ok(None);
            };
            let header = Header::new(&block)?;
            match header.type_flag() {
                b'x' => {
                    let records = self.extension(header.size()?, &mut most)?;
                    pax.read(&records)?;
                }
                // For all entries that follow; in layers only comments, and Go's extractors skip it too.
                b'g' => drop(self.extension(header.size()?, &mut { MAX_EXTENSION_BYTES })?),
                b'L' => long_name = Some(self.long_text(header.size()?, &mut most)?),
                b'K' => long_link = Some(self.long_text(header.size()?, &mut most)?),
                _ => return self.begin(&header, pax, long_name, long_link).map(Some),
            }
        }
    }

    fn begin(
        &mut self,
        header: &Header<'_>,
        pax: Pax,
        long_name: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<TarEntry, StreamError> {
        let path = pax.path.or(long_name).unwrap_or_else(|| header.name());
        let type_flag = match header.type_flag() {
            // Before POSIX a directory was a file whose name ends in a slash.
            0 | b'0' if path.ends_with(b"/") => b'5',
            0 | b'7' => b'0',
            other => other,
        };
        let stored = match type_flag {
            // Whatever size a link or a directory has, nothing follows it.
            b'1'..=b'6' => 0,
            _ => pax.size.map_or_else(|| header.size(), Ok)?,
        };
        self.left = stored;
        self.padding = stored.next_multiple_of(BLOCK_BYTES as u64) - stored;
        let mut entry = TarEntry {
            type_flag,
            path,
            link_path: pax
                .link_path
                .or(long_link)
                .unwrap_or_else(|| header.link_name().to_vec()),
            mode: header.mode()?,
            uid: pax.uid.map_or_else(|| header.uid(), Ok)?,
            gid: pax.gid.map_or_else(|| header.gid(), Ok)?,
            mtime: match pax.mtime {
                Some(mtime) => mtime,
                None => (header.mtime()?, 0),
            },
            device: match type_flag {
                b'3' | b'4' => header.device()?,
                _ => (0, 0),
            },
            xattrs: pax.xattrs,
            size: stored,
            is_sparse: false,
        };
        self.sparse = None;
        if type_flag == b'S' {
            let (pieces, size) = self.gnu_sparse_map(header)?;
            self.sparse = Some(SparseMap::new(pieces, size, stored)?);
            entry.type_flag = b'0';
        } else if let Some(at) = pax.sparse.map_at()? {
            let pieces = match at {
                MapAt::Records => pax.sparse.pieces()?,
                MapAt::Data => self.map_before_data()?,
            };
            let size = pax.sparse.real_size.ok_or(TarProblem::Sparse)?;
            self.sparse = Some(SparseMap::new(pieces, size, self.left)?);
            if let Some(name) = pax.sparse.name {
                entry.path = name;
            }
        }
        if let Some(map) = &self.sparse {
            entry.size = map.size();
            entry.is_sparse = true;
        }
        (self.position, self.size) = (0, entry.size);
        Ok(entry)
    }

    /// The rest of an old GNU sparse file's map, which follows its header, and the file's size.
    fn gnu_sparse_map(&mut self, header: &Header<'_>) -> Result<(Vec<(u64, u64)>, u64), StreamError> {
        let (mut pieces, mut more, size) = header.gnu_sparse()?;
        let mut blocks = 0;
        while more {
            blocks += 1;
            if blocks > MAX_SPARSE_BLOCKS {
                return Err(TarProblem::Sparse.into());
            }
            let mut block: Block = [0; BLOCK_BYTES];
            self.inner.read_exact(&mut block)?;
            let further;
            (further, more) = gnu_sparse_more(&block)?;
            pieces.extend(further);
        }
        Ok((pieces, size))
    }

    /// The map of pax format 1.0, which is the first blocks of the content.
    fn map_before_data(&mut self) -> Result<Vec<(u64, u64)>, StreamError> {
        let mut reader = MapReader::default();
        loop {
            if self.left < BLOCK_BYTES as u64 {
                return Err(TarProblem::Sparse.into());
            }
            let mut block: Block = [0; BLOCK_BYTES];
            self.inner.read_exact(&mut block)?;
            self.left -= BLOCK_BYTES as u64;
            if let Some(pieces) = reader.block(&block)? {
                return Ok(pieces);
            }
        }
    }

    /// A header's block; none where the archive ends: at two blocks of zeros, or where the stream does.
    fn header_block(&mut self) -> Result<Option<Block>, StreamError> {
        let mut block: Block = [0; BLOCK_BYTES];
        if !self.fill_or_end(&mut block)? {
            return Ok(None);
        }
        if block == [0; BLOCK_BYTES] {
            self.has_end_marker = true;
            let more = self.fill_or_end(&mut block)?;
            if more && block != [0; BLOCK_BYTES] {
                return Err(TarProblem::Checksum.into());
            }
            return Ok(None);
        }
        Ok(Some(block))
    }

    /// Whether there was a block; half of one is an error.
    fn fill_or_end(&mut self, block: &mut Block) -> Result<bool, StreamError> {
        let mut filled = 0;
        while filled < block.len() {
            match self.inner.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(false),
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Ok(got) => filled += got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }

    /// What an extended header has, unless that is more than `most`, of which it is taken.
    fn extension(&mut self, size: u64, most: &mut u64) -> Result<Vec<u8>, StreamError> {
        *most = most.checked_sub(size).ok_or(TarProblem::ExtensionTooLong)?;
        let mut bytes = Vec::new();
        (&mut self.inner).take(size).read_to_end(&mut bytes)?;
        if (bytes.len() as u64) < size {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        self.skip(size.next_multiple_of(BLOCK_BYTES as u64) - size)?;
        Ok(bytes)
    }

    /// GNU's long names end in a NUL.
    fn long_text(&mut self, size: u64, most: &mut u64) -> Result<Vec<u8>, StreamError> {
        let mut text = self.extension(size, most)?;
        if let Some(end) = text.iter().position(|byte| *byte == 0) {
            text.truncate(end);
        }
        Ok(text)
    }

    fn skip(&mut self, bytes: u64) -> Result<(), StreamError> {
        if self.skip_at_most(bytes)? < bytes {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        Ok(())
    }

    /// Passes over `bytes` of the current entry's content if all of them are in a hole; whether they were.
    pub(super) fn pass_hole(&mut self, bytes: u64) -> bool {
        let stretch = self.sparse.as_mut().and_then(|map| map.at(self.position));
        let is_hole = matches!(stretch, Some(Stretch::Hole(most)) if most >= bytes);
        if is_hole {
            self.position += bytes;
        }
        is_hole
    }

    /// How much there was to skip.
    fn skip_at_most(&mut self, bytes: u64) -> io::Result<u64> {
        io::copy(&mut (&mut self.inner).take(bytes), &mut io::sink())
    }

    /// Whether the archive has ended as it says itself, not only where the stream did.
    pub(super) fn has_end_marker(&self) -> bool {
        self.has_end_marker
    }

    /// Reads what follows the archive, so that whoever checks the stream sees all of it.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        io::copy(&mut self.inner, &mut io::sink()).map(drop)
    }
}

impl<R: Read + Seek> TarStream<R> {
    /// Passes over what is left of the current entry's content without reading it, be it there or not; where in the
    /// archive it was.
    pub(crate) fn pass_content(&mut self) -> io::Result<u64> {
        let at = self.inner.stream_position()?;
        let by = i64::try_from(self.left).map_err(|_| io::ErrorKind::InvalidInput)?;
        self.inner.seek(SeekFrom::Current(by))?;
        self.left = 0;
        Ok(at)
    }
}

/// The current entry's content, holes as zeros.
impl<R: Read> Read for TarStream<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let stretch = match &mut self.sparse {
            Some(map) => map.at(self.position),
            None => (self.left > 0).then_some(Stretch::Data(self.left)),
        };
        let bounded = |most: u64| buf.len().min(usize::try_from(most).unwrap_or(usize::MAX));
        let got = match stretch {
            None => return Ok(0),
            Some(Stretch::Hole(most)) => {
                let zeros = bounded(most);
                buf[..zeros].fill(0);
                zeros
            }
            Some(Stretch::Data(most)) => {
                let length = bounded(most);
                let got = self.inner.read(&mut buf[..length])?;
                if got == 0 && length > 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                self.left -= got as u64;
                got
            }
        };
        self.position += got as u64;
        Ok(got)
    }
}
