//! Where the bytes of a file are: which chunks, and where these are in the cache.
//!
//! nydus computes this from the image for each request. Here it is computed once for a segment of a file and kept:
//! the warm path is then a look-up and a read.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::io;
use std::ops::Deref;
use std::sync::{Arc, PoisonError, RwLock};

use arc_swap::{ArcSwapOption, Guard};
use rustix::io::Errno;

use super::Served;
use super::chunk::Chunk;
use super::events::report;

/// The part of a file that is laid out at once, in bytes.
pub(super) const SEGMENT: u64 = 16 << 20;
const SHARDS: usize = 16;
/// Pieces kept, about 100 bytes each, in each shard.
const PIECES_PER_SHARD: usize = 4096;

/// A part of a file that is a part of one chunk.
#[derive(Debug)]
pub(super) struct Piece {
    /// Where it begins in the file.
    pub(super) at: u64,
    /// Its length in bytes, not 0.
    pub(super) length: u32,
    /// The blob's place in the image's table.
    pub(super) blob: usize,
    /// Where it begins in the chunk's content.
    pub(super) within: u32,
    pub(super) chunk: Chunk,
}

impl Piece {
    /// The first byte of the file after it.
    pub(super) fn end(&self) -> u64 {
        self.at + u64::from(self.length)
    }

    /// Where it begins in the cache file.
    pub(super) fn offset(&self) -> u64 {
        self.chunk.offset + u64::from(self.within)
    }
}

/// Segments found without a lock and without hashing: the one last read of all that have the same place.
const RECENT: u64 = 256;
/// The most pieces that one of them has: 16 MiB in pieces of 64 KiB.
const RECENT_PIECES: usize = 256;

/// A file's segment: pieces without gaps, in order.
#[derive(Debug)]
pub(super) struct Segment {
    key: Key,
    /// Which metadata say so.
    version: u64,
    /// The length of the whole file, in bytes.
    pub(super) file_size: u64,
    pub(super) pieces: Vec<Piece>,
}

impl Segment {
    fn is(&self, key: Key, version: u64) -> bool {
        self.key == key && self.version == version
    }

    /// The pieces from the one with this byte on.
    pub(super) fn from(&self, offset: u64) -> &[Piece] {
        &self.pieces[self.pieces.partition_point(|p| p.end() <= offset)..]
    }
}

/// Inode and the segment's number in it.
type Key = (u64, u64);
type Shard = RwLock<HashMap<Key, Arc<Segment>>>;

/// A segment that stays for as long as this is held.
pub(super) struct Found(Guard<Option<Arc<Segment>>>);

impl Deref for Found {
    type Target = Segment;

    fn deref(&self) -> &Segment {
        self.0.as_ref().expect("`Layouts::segment` holds segments only")
    }
}

/// Segments of files that have been read.
#[derive(Debug)]
pub(super) struct Layouts {
    recent: Box<[ArcSwapOption<Segment>]>,
    shards: [Shard; SHARDS],
    hasher: RandomState,
}

impl Default for Layouts {
    fn default() -> Self {
        Self {
            recent: (0..RECENT).map(|_| ArcSwapOption::empty()).collect(),
            shards: Default::default(),
            hasher: RandomState::new(),
        }
    }
}

impl Layouts {
    /// The segment of a file that has `offset`.
    ///
    /// # Errors
    /// ENOENT and the like from the image's metadata, EIO if they cannot be.
    pub(super) fn segment(&self, served: &Served, ino: u64, offset: u64) -> io::Result<Found> {
        let key = (ino, offset / SEGMENT);
        let recent = &self.recent[usize::try_from((ino ^ key.1) % RECENT).unwrap_or(0)];
        let found = recent.load();
        if found
            .as_ref()
            .is_some_and(|segment| segment.is(key, served.version))
        {
            return Ok(Found(found));
        }
        let segment = self.kept(served, key)?;
        // These are beside what the shards may hold.
        if segment.pieces.len() <= RECENT_PIECES {
            recent.store(Some(Arc::clone(&segment)));
        }
        Ok(Found(Guard::from(Some(segment))))
    }

    fn kept(&self, served: &Served, key: Key) -> io::Result<Arc<Segment>> {
        let shard = usize::try_from(self.hasher.hash_one(key)).unwrap_or(0) % SHARDS;
        let shard = &self.shards[shard];
        let kept = shard
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&key)
            .cloned();
        if let Some(segment) = kept.filter(|segment| segment.is(key, served.version)) {
            return Ok(segment);
        }
        let segment = Arc::new(lay_out(served, key)?);
        let mut shard = shard.write().unwrap_or_else(PoisonError::into_inner);
        // Started anew rather than aged: laying out again is cheap, a list of uses would cost every read.
        if shard.values().map(|s| s.pieces.len() + 1).sum::<usize>() + segment.pieces.len() > PIECES_PER_SHARD
        {
            shard.clear();
        }
        shard.insert(key, Arc::clone(&segment));
        Ok(segment)
    }

    /// Forgets everything: the image has changed. What is only being found out now has its version, and is not found later.
    pub(super) fn clear(&self) {
        for shard in &self.shards {
            shard.write().unwrap_or_else(PoisonError::into_inner).clear();
        }
        for recent in &self.recent {
            recent.store(None);
        }
    }
}

/// An image whose metadata contradict themselves.
#[derive(Debug, thiserror::Error)]
#[error("image describes the data of inode {ino} at {offset} in a way that cannot be")]
struct BadLayout {
    ino: u64,
    offset: u64,
}

fn lay_out(served: &Served, key: Key) -> io::Result<Segment> {
    let storage = &served.storage;
    let (ino, from) = (key.0, key.1 * SEGMENT);
    let inode = served.sb.get_inode(ino, false)?;
    let file_size = inode.size();
    let mut segment = Segment {
        key,
        version: served.version,
        file_size,
        pieces: Vec::new(),
    };
    let length = file_size.saturating_sub(from).min(SEGMENT);
    if length == 0 {
        return Ok(segment);
    }
    let bad = || {
        report(&BadLayout { ino, offset: from });
        io::Error::from(Errno::IO)
    };
    let vectors = inode.alloc_bio_vecs(
        &storage.device,
        from,
        usize::try_from(length).unwrap_or_default(),
        true,
    )?;
    let mut at = from;
    for vector in &vectors {
        let index = usize::try_from(vector.blob_index()).unwrap_or(usize::MAX);
        let blob = storage.blobs.get(index).ok_or_else(bad)?;
        for part in (0..vector.len()).filter_map(|n| vector.blob_io_desc(n)) {
            let number = usize::try_from(nydus_storage::device::BlobChunkInfo::id(&part.chunkinfo))
                .unwrap_or(usize::MAX);
            let chunk = match blob.table() {
                Some(table) => table.get(number).cloned(),
                None => blob.copy(&part.chunkinfo),
            };
            let chunk = chunk.ok_or_else(bad)?;
            if part.size == 0 || u64::from(part.offset) + u64::from(part.size) > u64::from(chunk.size) {
                return Err(bad());
            }
            segment.pieces.push(Piece {
                at,
                length: part.size,
                blob: index,
                within: part.offset,
                chunk,
            });
            at += u64::from(part.size);
        }
    }
    if at == from + length {
        Ok(segment)
    } else {
        Err(bad())
    }
}
