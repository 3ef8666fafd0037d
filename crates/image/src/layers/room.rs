//! What names, attributes and lists of chunks of the files in an image's layers may take in memory, where they are until
//! all layers are read: a multiple of what the layers are as they are stored, so that no small archive takes all there
//! is. Directories that no entry describes, and only its path asks for, are counted by the tree that makes them.
//!
//! Never looks into an archive: `layers.rs` says what it keeps. `rafs/bounds.rs` does the same for bootstraps.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::sync::atomic::{AtomicU64, Ordering};

use super::LayerError;
use crate::rafs::chunks::ChunkRef;
use crate::tree::{Action, Chunk, Entry, Inode, Kind};

/// Bytes in memory for each byte of the layers. Empty files in one directory, packed by gzip, have some 60. Zeros packed
/// by gzip have 22 in the smallest chunks there are.
const BYTES_FOR_A_BYTE: u64 = 64;
/// What the layers of any image may take. Half a million of the same files packed by zstd, which can make less of them.
const BASE_BYTES: u64 = 128 << 20;
/// What an entry takes beside its names and attributes: itself, its inode, and a place in maps.
const ENTRY_BYTES: usize = 256;

/// The room for all layers that are converted at once.
#[derive(Debug)]
pub(crate) struct Room<'a> {
    /// Bytes that were read of the layers.
    read: &'a AtomicU64,
    base: u64,
    taken: AtomicU64,
}

impl<'a> Room<'a> {
    /// For layers of which so many bytes are read, each counted once.
    pub(crate) fn new(read: &'a AtomicU64) -> Self {
        Self {
            read,
            base: BASE_BYTES,
            taken: AtomicU64::new(0),
        }
    }

    /// A layer's share, which is nothing yet.
    pub(super) fn share(&'a self) -> Share<'a> {
        Share { room: self, taken: 0 }
    }
}

/// What one layer has taken. Given back unless it is [kept](Self::keep).
#[derive(Debug)]
pub(super) struct Share<'a> {
    room: &'a Room<'a>,
    taken: u64,
}

impl Share<'_> {
    /// Takes what an entry needs.
    pub(super) fn take_entry(&mut self, entry: &Entry) -> Result<(), LayerError> {
        let said = match &entry.action {
            Action::Put(inode) => of_inode(inode),
            Action::Link(target) => target.as_os_str().len(),
            Action::Whiteout | Action::Opaque => 0,
        };
        self.take(ENTRY_BYTES + entry.path.as_os_str().len() + said)
    }

    /// Takes what a chunk of a file needs, be it in a hole, one that was there before, or one of its own.
    pub(super) fn take_chunk(&mut self) -> Result<(), LayerError> {
        self.take(size_of::<Chunk>() + size_of::<ChunkRef>())
    }

    /// Takes what directories need that are asked for by a path only.
    pub(super) fn take_directories(&mut self, bytes: u64) -> Result<(), LayerError> {
        self.take(usize::try_from(bytes).unwrap_or(usize::MAX))
    }

    fn take(&mut self, bytes: usize) -> Result<(), LayerError> {
        let bytes = bytes as u64;
        self.taken += bytes;
        let taken = self.room.taken.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let read = self.room.read.load(Ordering::Relaxed);
        if taken
            > read
                .saturating_mul(BYTES_FOR_A_BYTE)
                .saturating_add(self.room.base)
        {
            return Err(LayerError::TooMuch);
        }
        Ok(())
    }

    /// The layer is converted, and its entries stay.
    pub(super) fn keep(mut self) {
        self.taken = 0;
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        self.room.taken.fetch_sub(self.taken, Ordering::Relaxed);
    }
}

fn of_inode(inode: &Inode) -> usize {
    let target = match &inode.kind {
        Kind::Symlink(target) => target.len(),
        _ => 0,
    };
    target + of_xattrs(&inode.xattrs)
}

/// Each is an allocation for its name, another for its value, and a place in a map.
fn of_xattrs(xattrs: &BTreeMap<OsString, Vec<u8>>) -> usize {
    let place = size_of::<(OsString, Vec<u8>)>();
    xattrs
        .iter()
        .map(|(name, value)| name.len() + value.len() + place)
        .sum()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

    use std::io::{self, Read};
    use std::path::PathBuf;
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    use super::super::{LayerTools, Names, convert_layer};
    use super::*;
    use crate::config::{ChunkSize, RafsFormat};
    use crate::rafs::chunks::Dictionary;
    use crate::rafs::compress::Compressors;

    fn entry(path: &str, action: Action) -> Entry {
        let path = PathBuf::from(path);
        Entry { path, action }
    }

    #[test]
    fn every_text_that_an_entry_keeps_takes_room() {
        let long = "x".repeat(4000);
        let inode = |xattrs: &[(&str, &str)], kind| {
            let xattrs = xattrs
                .iter()
                .map(|(name, value)| (OsString::from(name), value.as_bytes().to_vec()));
            Action::Put(Arc::new(Inode {
                xattrs: xattrs.collect(),
                kind,
                ..Inode::marker()
            }))
        };
        for entry in [
            entry(&long, Action::Whiteout),
            entry("a", Action::Link(PathBuf::from(&long))),
            entry("a", inode(&[], Kind::Symlink(OsString::from(&long)))),
            entry("a", inode(&[(&long, "")], Kind::Fifo)),
            entry("a", inode(&[("user.a", &long)], Kind::Directory)),
        ] {
            let read = AtomicU64::new(0);
            let room = Room {
                base: 3999,
                ..Room::new(&read)
            };
            let refused = room.share().take_entry(&entry);
            assert!(matches!(refused, Err(LayerError::TooMuch)), "{entry:?}");
        }
    }

    /// Converts `archive` with nothing read of it and this base, or the usual one.
    fn convert(archive: &[u8], base: u64, cancelled: bool) -> Result<(), LayerError> {
        let dir = tempfile::tempdir().unwrap();
        let read = AtomicU64::new(0);
        let tools = LayerTools {
            format: RafsFormat::default()
                .chunk_size(ChunkSize::new(4096).unwrap())
                .into(),
            compressors: &Compressors::start().unwrap(),
            dictionary: &Dictionary::default(),
            names: Names::OfLayer,
            room: &Room {
                base,
                ..Room::new(&read)
            },
            cancelled: &AtomicBool::new(cancelled),
        };
        convert_layer(archive, &dir.path().join("blob"), tools).map(drop)
    }

    #[test]
    fn directories_that_only_a_path_asks_for_take_room() {
        let archive = |entries: u8| {
            let mut archive = tar::Builder::new(Vec::new());
            for entry in 0..entries {
                let path = format!("{entry}/{}x", "d/".repeat(2000));
                let mut header = tar::Header::new_gnu();
                header.set_size(0);
                archive.append_data(&mut header, path, io::empty()).unwrap();
            }
            archive.into_inner().unwrap()
        };
        convert(&archive(1), BASE_BYTES, false).unwrap();
        let refused = convert(&archive(30), BASE_BYTES, false);
        assert!(matches!(refused, Err(LayerError::TooMuch)), "{refused:?}");
    }

    #[test]
    fn who_stops_a_conversion_need_not_wait_for_its_bootstrap() {
        let empty = tar::Builder::new(Vec::new()).into_inner().unwrap();
        convert(&empty, BASE_BYTES, false).unwrap();
        let stopped = convert(&empty, BASE_BYTES, true);
        assert!(matches!(stopped, Err(LayerError::Cancelled)), "{stopped:?}");
    }

    #[test]
    fn every_chunk_of_a_file_takes_room() {
        let chunks = 100;
        let mut archive = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_path("zeros").unwrap();
        header.set_size(chunks * 4096);
        header.set_cksum();
        let content = io::repeat(0).take(header.size().unwrap());
        archive.append(&header, content).unwrap();
        let archive = archive.into_inner().unwrap();
        let needed = chunks * (size_of::<Chunk>() + size_of::<ChunkRef>()) as u64;
        let refused = convert(&archive, needed, false);
        assert!(matches!(refused, Err(LayerError::TooMuch)), "{refused:?}");
        convert(&archive, needed + ENTRY_BYTES as u64 + 5, false).unwrap();
    }

    #[test]
    fn room_grows_with_what_is_read_and_is_shared_by_those_that_stay() {
        let read = AtomicU64::new(0);
        let room = Room {
            base: 600,
            ..Room::new(&read)
        };
        let whiteout = entry("a", Action::Whiteout);
        let mut first = room.share();
        first.take_entry(&whiteout).unwrap();
        first.take_entry(&whiteout).unwrap();
        room.share().take_entry(&whiteout).unwrap_err();
        drop(first);
        let mut second = room.share();
        second.take_entry(&whiteout).unwrap();
        second.take_entry(&whiteout).unwrap();
        second.keep();
        room.share().take_entry(&whiteout).unwrap_err();
        read.fetch_add(10, Ordering::Relaxed);
        room.share().take_entry(&whiteout).unwrap();
    }
}
