//! What the images of a cache's readers say of where its chunks are, noted in its map.
//!
//! A blob goes by a name that an image chooses. Were two images to say different things of where its chunks are, a chunk
//! that only one of them has read would be written over what the other one has. So the first one to use a cache notes a
//! digest of all places at the end of the map's header, and for another one it is another blob's cache. Of RAFS v5
//! nobody knows all places of a blob, but an image of one version never has a blob of the other's.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use nydus_utils::digest::{Algorithm, DigestHasher, RafsDigest};

use super::range_lock::RangeLock;
use super::settled;

const LENGTH: usize = 16;
/// A cache whose readers have noted nothing, a nydusd's or an earlier one of ours.
const NOTHING: [u8; LENGTH] = [0; LENGTH];

/// Where all chunks of a blob are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LayoutNote([u8; LENGTH]);

impl LayoutNote {
    /// What is noted of blobs without a table of chunks, RAFS v5's.
    pub(super) const V5: Self = Self(*b"chunks of RAFSv5");

    /// That of a table of chunks: number, offset and size of each, in bytes.
    pub(super) fn of(places: impl Iterator<Item = (u32, u64, u32)>) -> Self {
        let mut hasher = RafsDigest::hasher(Algorithm::Blake3);
        for (id, offset, size) in places {
            let mut place = [0; 16];
            place[..4].copy_from_slice(&id.to_le_bytes());
            place[4..12].copy_from_slice(&offset.to_le_bytes());
            place[12..].copy_from_slice(&size.to_le_bytes());
            hasher.digest_update(&place);
        }
        let mut note = [0; LENGTH];
        note.copy_from_slice(&hasher.digest_finalize().data[..LENGTH]);
        Self(note)
    }

    /// Whether a map is that of a cache with this layout; it is from now on, if nothing is noted.
    ///
    /// # Errors
    /// What the file system said.
    pub(super) fn is_of(self, map: &File) -> io::Result<bool> {
        let noted = || {
            let mut note = NOTHING;
            map.read_exact_at(&mut note, settled::END)?;
            io::Result::Ok(note)
        };
        if noted()? == NOTHING {
            let _alone = RangeLock::take(map, 0, settled::HEADER).ok();
            if noted()? == NOTHING {
                map.write_all_at(&self.0, settled::END)?;
            }
        }
        Ok(noted()? == self.0)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_cache_is_of_the_layout_that_was_noted_first() {
        let map = tempfile::tempfile().unwrap();
        map.set_len(settled::HEADER).unwrap();
        let places = |offset| [(0, 0, 10), (1, offset, 10)].into_iter();
        let (one, other) = (LayoutNote::of(places(4096)), LayoutNote::of(places(8192)));
        for (note, is_of) in [(one, true), (other, false), (LayoutNote::V5, false), (one, true)] {
            assert_eq!(note.is_of(&map).unwrap(), is_of);
        }
        assert_eq!(settled::END + LENGTH as u64, settled::HEADER, "it has a place");
    }
}
