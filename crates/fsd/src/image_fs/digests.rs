//! What a RAFS v6 bootstrap says of the chunks that its files have: their digests, and where their content belongs.
//!
//! Chunks, and the table that says where they are in a blob, come from a backend that anybody may be. The bootstrap is
//! what a manifest vouches for. So whatever is fetched is compared with it, once, before it is written to the cache.
//! Its table is read from the file, not out of the mapping: a file that is cut meanwhile is an error then, not zeros.
//! Next: `origin.rs` asks.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use nydus_rafs::metadata::RafsSuperMeta;
use nydus_utils::digest::{Algorithm, RafsDigest};

use super::chunk::Chunk;
use super::wholeness::Wholeness;

/// An entry of the bootstrap's table of chunks, RAFS v5's description of a chunk, in bytes.
const ENTRY: usize = 80;
/// How much of the table is read at once, in entries.
const AT_ONCE: u64 = 4096;

/// The table of chunks of a bootstrap.
#[derive(Debug)]
pub(super) struct Digests {
    bootstrap: Arc<Wholeness>,
    /// Where it begins, in bytes.
    start: u64,
    entries: u64,
    /// How many there can be.
    chunks: u64,
    /// Sorted; made when a chunk is first asked for.
    index: OnceLock<Box<[Place]>>,
}

/// Which entry is whose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    blob: u32,
    chunk: u32,
    entry: u32,
    /// The first bytes of its digest.
    begins: u32,
}

/// What an entry says of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    digest: [u8; 32],
    blob: u32,
    chunk: u32,
    /// Where its content is among the blob's, in bytes.
    offset: u64,
    size: u32,
    /// Where it is in the blob, as it is there, in bytes.
    blob_offset: u64,
    blob_size: u32,
}

impl Entry {
    /// The fields of nydus' `RafsV5ChunkInfo` that are looked at; little endian.
    fn parse(bytes: &[u8; ENTRY]) -> Self {
        let part = |at: usize| bytes[at..at + 4].try_into().map_or(0, u32::from_le_bytes);
        let long = |at: usize| u64::from(part(at)) | u64::from(part(at + 4)) << 32;
        let mut digest = [0; 32];
        digest.copy_from_slice(&bytes[..32]);
        Self {
            digest,
            blob: part(32),
            blob_size: part(40),
            size: part(44),
            blob_offset: long(48),
            offset: long(56),
            chunk: part(72),
        }
    }

    fn begins(&self) -> u32 {
        begins(&self.digest)
    }
}

fn begins(digest: &[u8; 32]) -> u32 {
    u32::from_le_bytes([digest[0], digest[1], digest[2], digest[3]])
}

impl Digests {
    /// Those of a bootstrap whose blobs have so many chunks in all; `None` if it has none.
    pub(super) fn of(meta: &RafsSuperMeta, bootstrap: &Arc<Wholeness>, chunks: u64) -> Option<Arc<Self>> {
        let entries = meta.chunk_table_size / ENTRY as u64;
        (meta.is_v6() && entries > 0).then(|| {
            Arc::new(Self {
                bootstrap: Arc::clone(bootstrap),
                start: meta.chunk_table_offset,
                entries,
                chunks,
                index: OnceLock::new(),
            })
        })
    }

    /// What is expected of the blob with this place in the bootstrap's table of blobs.
    pub(super) fn of_blob(self: &Arc<Self>, blob: usize, algorithm: Algorithm) -> BlobDigests {
        BlobDigests {
            all: Arc::clone(self),
            blob: u32::try_from(blob).unwrap_or(u32::MAX),
            algorithm,
            misled: Arc::default(),
        }
    }

    /// # Errors
    /// As `read_index`. The next one may be able to.
    fn index(&self) -> io::Result<&[Place]> {
        match self.index.get() {
            Some(index) => Ok(index),
            None => {
                let read = self.read_index()?;
                Ok(self.index.get_or_init(|| read))
            }
        }
    }

    fn read_index(&self) -> io::Result<Box<[Place]>> {
        let too_many = || io::Error::other("it has more chunks than the blobs");
        let entries = u32::try_from(self.entries.min(self.chunks + 1)).map_err(|_| too_many())?;
        if u64::from(entries) > self.chunks {
            return Err(too_many());
        }
        let mut places = Vec::new();
        let mut buf = Vec::new();
        let mut entry = 0;
        while entry < entries {
            let count = u64::from(entries - entry).min(AT_ONCE);
            buf.resize(usize::try_from(count).unwrap_or_default() * ENTRY, 0);
            self.bootstrap.read_at(&mut buf, self.at(entry))?;
            for bytes in buf.as_chunks::<ENTRY>().0 {
                let said = Entry::parse(bytes);
                places.push(Place {
                    blob: said.blob,
                    chunk: said.chunk,
                    entry,
                    begins: said.begins(),
                });
                entry += 1;
            }
        }
        places.sort_unstable();
        Ok(places.into_boxed_slice())
    }

    fn at(&self, entry: u32) -> u64 {
        self.start + u64::from(entry) * ENTRY as u64
    }

    fn entry(&self, place: Place) -> io::Result<Entry> {
        let mut bytes = [0; ENTRY];
        self.bootstrap.read_at(&mut bytes, self.at(place.entry))?;
        Ok(Entry::parse(&bytes))
    }
}

/// What is expected of one blob's chunks.
#[derive(Debug, Clone)]
pub(super) struct BlobDigests {
    all: Arc<Digests>,
    blob: u32,
    algorithm: Algorithm,
    /// The table that says where chunks are in the blob is not the image's.
    misled: Arc<AtomicBool>,
}

impl BlobDigests {
    fn places(&self) -> io::Result<&[Place]> {
        let index = self.all.index()?;
        let from = index.partition_point(|place| place.blob < self.blob);
        let to = index.partition_point(|place| place.blob <= self.blob);
        Ok(&index[from..to])
    }

    /// Whether the bootstrap has an entry for a chunk.
    ///
    /// # Errors
    /// Its table cannot be read.
    pub(super) fn lists(&self, chunk: u32) -> io::Result<bool> {
        let at = self.places()?.binary_search_by_key(&chunk, |place| place.chunk);
        Ok(at.is_ok())
    }

    /// Chunks were not to be had where they were said to be: whether the bootstrap says otherwise is noted.
    /// `is_unpacked` if they are not in the blob one by one.
    pub(super) fn suspect(&self, chunks: &[Chunk], is_unpacked: bool) {
        let Ok(places) = self.places() else { return };
        let is_elsewhere = |chunk: &Chunk| {
            let at = places.binary_search_by_key(&chunk.id, |place| place.chunk);
            let entry = at.ok().and_then(|at| self.all.entry(places[at]).ok());
            entry.is_some_and(|entry| {
                let in_blob = (entry.blob_offset, entry.blob_size) == (chunk.blob_offset, chunk.blob_size);
                (entry.offset, entry.size) != (chunk.offset, chunk.size) || !(is_unpacked || in_blob)
            })
        };
        if chunks.iter().any(is_elsewhere) {
            self.distrust();
        }
    }

    /// The table that the chunks are taken from can't be the image's.
    pub(super) fn distrust(&self) {
        self.misled.store(true, Ordering::Release);
    }

    /// Whether the table that the chunks were taken from is another image's.
    pub(super) fn are_misled(&self) -> bool {
        self.misled.load(Ordering::Acquire)
    }

    /// Whether `content` is what the image was built with, and `chunk` says rightly where it belongs.
    ///
    /// Of chunks with the same content in one blob a bootstrap lists the last only; of the others it is known that they
    /// have the content of some chunk of the blob.
    ///
    /// # Errors
    /// The bootstrap cannot be read, and nobody can say.
    pub(super) fn agree(&self, chunk: &Chunk, content: &[u8]) -> io::Result<bool> {
        let digest = RafsDigest::from_buf(content, self.algorithm).data;
        let places = self.places()?;
        let is_this = |entry: &Entry| entry.digest == digest && entry.size == chunk.size;
        if let Ok(at) = places.binary_search_by_key(&chunk.id, |place| place.chunk) {
            let entry = self.all.entry(places[at])?;
            return Ok(is_this(&entry) && entry.offset == chunk.offset);
        }
        let begins = begins(&digest);
        for place in places.iter().filter(|place| place.begins == begins) {
            if is_this(&self.all.entry(*place)?) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::super::runs::tests::chunk;
    use super::*;

    /// The table of a bootstrap that has it at this offset, in bytes.
    const START: u64 = 4096;

    fn digests(entries: &[(u32, u32, &[u8], u64)]) -> (tempfile::NamedTempFile, Arc<Digests>) {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut bytes = vec![0xee; usize::try_from(START).unwrap()];
        for (blob, chunk, content, offset) in entries {
            let mut entry = [0; ENTRY];
            entry[..32].copy_from_slice(&RafsDigest::from_buf(content, Algorithm::Blake3).data);
            entry[32..36].copy_from_slice(&blob.to_le_bytes());
            entry[44..48].copy_from_slice(&u32::try_from(content.len()).unwrap().to_le_bytes());
            entry[56..64].copy_from_slice(&offset.to_le_bytes());
            entry[72..76].copy_from_slice(&chunk.to_le_bytes());
            bytes.extend_from_slice(&entry);
        }
        std::fs::write(file.path(), bytes).unwrap();
        let digests = Digests {
            bootstrap: Arc::new(Wholeness::of(file.path()).unwrap()),
            start: START,
            entries: entries.len() as u64,
            chunks: 10_000,
            index: OnceLock::new(),
        };
        (file, Arc::new(digests))
    }

    fn content_of(id: u32, offset: u64, content: &[u8]) -> Chunk {
        chunk(id, 0, 1, offset, u32::try_from(content.len()).unwrap())
    }

    #[test]
    fn content_is_taken_where_it_belongs_and_nowhere_else() {
        let (_file, digests) = digests(&[
            (1, 7, b"the seventh", 8192),
            (0, 7, b"another blob's", 8192),
            (1, 2, b"the second!", 0),
        ]);
        let blob = digests.of_blob(1, Algorithm::Blake3);
        assert!(
            blob.agree(&content_of(7, 8192, b"the seventh"), b"the seventh")
                .unwrap()
        );
        assert!(
            blob.agree(&content_of(2, 0, b"the second!"), b"the second!")
                .unwrap()
        );
        for (what, id, offset, content) in [
            ("other bytes", 7, 8192, &b"the seventH"[..]),
            ("another chunk's", 7, 8192, b"the second!"),
            ("another place", 7, 0, b"the seventh"),
            ("beyond 4 GiB", 7, 8192 + (1 << 32), b"the seventh"),
            ("another blob's", 7, 8192, b"another blob's"),
        ] {
            assert!(
                !blob.agree(&content_of(id, offset, content), content).unwrap(),
                "{what}"
            );
        }
        let sha = digests.of_blob(1, Algorithm::Sha256);
        assert!(
            !sha.agree(&content_of(7, 8192, b"the seventh"), b"the seventh")
                .unwrap()
        );
        let listed: Vec<u32> = (0..9).filter(|id| blob.lists(*id).unwrap()).collect();
        assert_eq!(listed, [2, 7]);
    }

    #[test]
    fn a_table_that_has_a_chunk_elsewhere_is_another_images() {
        let (_file, digests) = digests(&[(0, 7, b"the seventh", 8192)]);
        let here = Chunk {
            blob_size: 0,
            ..content_of(7, 8192, b"the seventh")
        };
        let elsewhere = content_of(7, 4096, b"the seventh");
        let elsewhere_in_blob = Chunk {
            blob_offset: 1,
            ..here.clone()
        };
        let unlisted = content_of(8, 0, b"the eighth");
        for (chunk, is_unpacked, misled) in [
            (&here, false, false),
            (&unlisted, false, false),
            (&elsewhere_in_blob, true, false),
            (&elsewhere_in_blob, false, true),
            (&elsewhere, true, true),
        ] {
            let blob = digests.of_blob(0, Algorithm::Blake3);
            blob.clone().suspect(&[here.clone(), chunk.clone()], is_unpacked);
            assert_eq!(blob.are_misled(), misled, "{chunk:?} {is_unpacked}");
        }
    }

    #[test]
    fn a_chunk_that_is_not_listed_may_have_the_content_of_one_of_its_blob() {
        let (_file, digests) = digests(&[(0, 3, b"twice", 0), (1, 4, b"other", 0)]);
        let blob = digests.of_blob(0, Algorithm::Blake3);
        assert!(blob.agree(&content_of(9, 4096, b"twice"), b"twice").unwrap());
        assert!(!blob.agree(&content_of(9, 4096, b"Twice"), b"Twice").unwrap());
        assert!(
            !blob.agree(&content_of(9, 4096, b"other"), b"other").unwrap(),
            "another blob's"
        );
        let longer = Chunk {
            size: 6,
            ..content_of(9, 4096, b"twice")
        };
        assert!(!blob.agree(&longer, b"twice").unwrap());
    }

    #[test]
    fn tables_longer_than_what_is_read_at_once_are_read_whole() {
        let contents: Vec<[u8; 4]> = (0..10_000_u32).map(u32::to_le_bytes).collect();
        let entries: Vec<_> = (0..10_000_u32)
            .zip(&contents)
            .map(|(id, content)| (0, id, &content[..], u64::from(id) * 4096))
            .collect();
        let (_file, digests) = digests(&entries);
        let blob = digests.of_blob(0, Algorithm::Blake3);
        for (_, id, content, offset) in entries.into_iter().step_by(997) {
            assert!(blob.agree(&content_of(id, offset, content), content).unwrap());
        }
    }

    #[test]
    fn a_table_of_more_chunks_than_there_are_is_not_believed() {
        let (_file, digests) = digests(&[(0, 0, b"content", 0), (0, 1, b"other", 4096)]);
        let believed = |chunks| {
            let digests = Digests {
                bootstrap: Arc::clone(&digests.bootstrap),
                chunks,
                index: OnceLock::new(),
                ..*digests
            };
            let blob = Arc::new(digests).of_blob(0, Algorithm::Blake3);
            blob.agree(&content_of(0, 0, b"content"), b"content").ok()
        };
        assert_eq!([1, 2].map(believed), [None, Some(true)]);
    }

    #[test]
    fn nothing_is_taken_while_the_bootstrap_is_cut() {
        let (file, digests) = digests(&[(0, 0, b"content", 0)]);
        let agree = || {
            let blob = digests.of_blob(0, Algorithm::Blake3);
            blob.agree(&content_of(0, 0, b"content"), b"content").ok()
        };
        let whole = std::fs::read(file.path()).unwrap();
        file.as_file().set_len(START).unwrap();
        assert_eq!(agree(), None);
        std::fs::write(file.path(), &whole).unwrap();
        assert_eq!(agree(), Some(true), "what failed once is not kept");
        file.as_file().set_len(START).unwrap();
        assert_eq!(agree(), None);
    }
}
