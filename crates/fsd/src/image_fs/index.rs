//! What requests have asked of an image's metadata, kept so that asking again costs little: attributes by inode
//! number, names by directory, listings of directories.
//!
//! nydus-rafs makes an inode on the heap for each question and a string for each name. What is kept here are its
//! answers, up to about 1 MiB for an image; which answers those are is decided in `inodes.rs`.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use fuse_backend_rs::abi::fuse_abi::Attr;
use fuse_backend_rs::api::filesystem::DirEntry;

use super::kept::Kept;

/// Attributes that are kept: about 110 bytes each.
const MOST: usize = 3072;
/// Bytes of all names.
const NAMES: usize = 320 << 10;
/// Bytes of all listings, and so of one.
const LISTINGS: usize = 256 << 10;

/// What is known of an image.
#[derive(Debug)]
pub(super) struct Index {
    pub(super) attributes: Kept<Attr>,
    pub(super) names: Kept<Name>,
    pub(super) listings: Kept<Arc<Listing>>,
    /// A guest chooses names, and may want them all to have one place.
    hasher: RandomState,
}

impl Default for Index {
    fn default() -> Self {
        Self {
            attributes: Kept::new(MOST),
            names: Kept::new(NAMES),
            listings: Kept::new(LISTINGS),
            hasher: RandomState::new(),
        }
    }
}

impl Index {
    /// The number under which a name is kept.
    pub(super) fn key(&self, parent: u64, name: &[u8]) -> u64 {
        self.hasher.hash_one((parent, name))
    }

    /// Forgets everything: the image has changed.
    pub(super) fn clear(&self) {
        self.attributes.clear();
        self.names.clear();
        self.listings.clear();
    }
}

/// A name that was looked up.
#[derive(Debug, Clone)]
pub(super) struct Name {
    pub(super) parent: u64,
    pub(super) name: Arc<[u8]>,
    /// The inode's number, `None` if there is no such name.
    pub(super) child: Option<u64>,
}

impl Name {
    /// Bytes it takes: itself, its text with the counts before that, and its slot.
    pub(super) fn weight(&self) -> usize {
        2 * size_of::<Self>() + self.name.len()
    }

    /// Two names may have one number.
    pub(super) fn is(&self, parent: u64, name: &[u8]) -> bool {
        self.parent == parent && *self.name == *name
    }
}

/// A whole directory, with "." and "..".
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// One after the other.
    names: Vec<u8>,
    entries: Vec<Listed>,
}

#[derive(Debug)]
struct Listed {
    ino: u64,
    /// Where its name ends.
    end: usize,
}

impl Listing {
    /// Adds an entry; false if the listing is too large to be kept.
    pub(super) fn push(&mut self, name: &[u8], ino: u64) -> bool {
        self.names.extend_from_slice(name);
        let end = self.names.len();
        self.entries.push(Listed { ino, end });
        self.weight() <= LISTINGS
    }

    /// It will not grow any more.
    pub(super) fn finish(mut self) -> Arc<Self> {
        self.names.shrink_to_fit();
        self.entries.shrink_to_fit();
        Arc::new(self)
    }

    /// Bytes it takes.
    pub(super) fn weight(&self) -> usize {
        size_of::<Self>() + self.names.len() + self.entries.len() * size_of::<Listed>()
    }

    /// The entries from a cookie on: an entry's cookie is the number of those up to it.
    pub(super) fn from(&self, cookie: u64) -> impl Iterator<Item = DirEntry<'_>> {
        let skipped = usize::try_from(cookie)
            .unwrap_or(usize::MAX)
            .min(self.entries.len());
        let mut begin = skipped.checked_sub(1).map_or(0, |last| self.entries[last].end);
        self.entries[skipped..]
            .iter()
            .zip(skipped as u64 + 1..)
            .map(move |(entry, offset)| {
                let name = &self.names[std::mem::replace(&mut begin, entry.end)..entry.end];
                DirEntry {
                    ino: entry.ino,
                    offset,
                    type_: 0,
                    name,
                }
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_goes_on_behind_any_entry() {
        let mut listing = Listing::default();
        for (name, ino) in [(".", 1), ("..", 1), ("a", 7), ("", 8), ("long name", 9)] {
            assert!(listing.push(name.as_bytes(), ino));
        }
        let from = |cookie| {
            let entries = listing.from(cookie);
            entries.map(|e| (e.name, e.ino, e.offset)).collect::<Vec<_>>()
        };
        let all: [(&[u8], u64, u64); 5] = [
            (b".", 1, 1),
            (b"..", 1, 2),
            (b"a", 7, 3),
            (b"", 8, 4),
            (b"long name", 9, 5),
        ];
        for cookie in 0..=5_u64 {
            assert_eq!(from(cookie), all[usize::try_from(cookie).unwrap_or(0)..]);
        }
        assert_eq!((from(6), from(u64::MAX)), (Vec::new(), Vec::new()));
    }

    #[test]
    fn long_names_are_kept_within_the_same_memory() {
        let index = Index::default();
        let name = |n: u64| Name {
            parent: 1,
            name: vec![b'n'; usize::try_from(200 + n % 56).unwrap_or(200)].into(),
            child: None,
        };
        let names = &index.names;
        for n in 0..2900 {
            names.keep(names.epoch(), n, name(n), name(n).weight());
        }
        let kept = (0..2900).filter_map(|n| names.find(n, |kept| kept.name.len()));
        let bytes = kept.sum::<usize>();
        assert!((1..NAMES).contains(&bytes), "{bytes}");
    }

    #[test]
    fn a_directory_without_end_is_given_up() {
        let mut listing = Listing::default();
        let pushed = (0..).take_while(|ino| listing.push(b"a name", *ino)).count();
        assert!(pushed < LISTINGS / size_of::<Listed>(), "{pushed}");
    }
}
