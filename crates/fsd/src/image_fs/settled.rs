//! What of a blob's cache is known to be on the disk, noted in its map.
//!
//! Content, and the bits that say that it is there, reach the disk when the kernel likes. After a power cut a bit may be
//! there and its chunk not, which reads as zeros then. So there is a note in that part of the map's header that nydus
//! keeps free and never looks at: the boot of the machine that the bits are of, and a digest of each part of them for
//! which all content was on the disk. Whoever opens the map in the same boot believes it. The first one in another boot
//! believes those parts that are still as they were noted, and clears the others: their chunks are fetched again.
//!
//! A map without a note is a nydusd's, or lost it; it is believed if it was made since the machine was started.
//! Next: `settling.rs` decides when content is written to the disk.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use nydus_utils::digest::{Algorithm, RafsDigest};
use rustix::time::{ClockId, clock_gettime};

use super::range_lock::RangeLock;

/// Where the bits begin in a map, after its header, in bytes.
pub(super) const HEADER: u64 = 4096;
/// Where the note is in the header: not at its beginning, where nydus may come to need more.
const AT: u64 = 512;
const MAGIC: [u8; 8] = *b"on disk1";
/// Parts of the bits that have a digest of their own: as many as there is room for.
const PARTS: usize = 440;
const DIGESTS: usize = MAGIC.len() + size_of::<Boot>();
const LENGTH: usize = DIGESTS + PARTS * size_of::<Digest>();
/// Where the note ends, and the header has room for what `layout_note.rs` keeps.
pub(super) const END: u64 = AT + LENGTH as u64;
/// Nydus' "all bits are set", in the header.
const ALL_READY: (u64, [u8; 4]) = (12, [0; 4]);

/// Of one part; 0 if nothing is noted of it.
type Digest = u64;

/// From one start of the machine to the next, as the kernel names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Boot([u8; 40]);

impl Boot {
    /// The present one; `None` where the kernel doesn't say.
    pub(super) fn present() -> Option<Self> {
        static PRESENT: LazyLock<Option<Boot>> = LazyLock::new(|| {
            let id = std::fs::read("/proc/sys/kernel/random/boot_id").ok()?;
            Boot::named(id.trim_ascii())
        });
        *PRESENT
    }

    fn named(id: &[u8]) -> Option<Self> {
        let mut boot = [0; 40];
        boot.get_mut(..id.len())?.copy_from_slice(id);
        (!id.is_empty()).then_some(Self(boot))
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Note {
    boot: Boot,
    digests: Vec<Digest>,
}

impl Note {
    fn read(map: &File) -> io::Result<Option<Self>> {
        let mut raw = [0; LENGTH];
        map.read_exact_at(&mut raw, AT)?;
        if raw[..MAGIC.len()] != MAGIC {
            return Ok(None);
        }
        let mut boot = Boot([0; 40]);
        boot.0.copy_from_slice(&raw[MAGIC.len()..DIGESTS]);
        let digests = raw[DIGESTS..].as_chunks().0;
        Ok(Some(Self {
            boot,
            digests: digests.iter().map(|raw| Digest::from_le_bytes(*raw)).collect(),
        }))
    }

    fn bytes(&self) -> Vec<u8> {
        let digests = self.digests.iter().flat_map(|digest| digest.to_le_bytes());
        [&MAGIC[..], &self.boot.0[..]]
            .concat()
            .into_iter()
            .chain(digests)
            .collect()
    }
}

/// The bits, in parts that have a digest each.
fn parts(bits: &[u8]) -> impl Iterator<Item = &[u8]> {
    bits.chunks(bits.len().div_ceil(PARTS).max(1))
}

fn digest(part: &[u8]) -> Digest {
    let whole = RafsDigest::from_buf(part, Algorithm::Blake3).data;
    let first = whole
        .first_chunk()
        .map_or(0, |first| Digest::from_le_bytes(*first));
    first.max(1)
}

/// Says in the header of a map that is being made that its bits will be of this boot.
pub(super) fn begin(header: &mut [u8], boot: Option<Boot>) {
    if let Some(boot) = boot {
        let digests = Vec::new();
        let note = Note { boot, digests }.bytes();
        let at = usize::try_from(AT).unwrap_or_default();
        header[at..at + note.len()].copy_from_slice(&note);
    }
}

/// Clears the bits of a map that may be of chunks that never came to be on the disk. `bytes` is the length of the bits.
///
/// # Errors
/// What the file system said.
pub(super) fn believe(map: &File, bytes: usize, boot: Option<Boot>) -> io::Result<()> {
    let Some(boot) = boot else { return Ok(()) };
    let is_of_this_boot = |note: &Option<Note>| note.as_ref().is_some_and(|note| note.boot == boot);
    if is_of_this_boot(&Note::read(map)?) {
        return Ok(());
    }
    // Without the lock, on a file system that has none, somebody might clear what another has just fetched: no harm.
    let _alone = RangeLock::take(map, 0, HEADER).ok();
    let note = Note::read(map)?;
    if is_of_this_boot(&note) {
        return Ok(());
    }
    let mut bits = vec![0; bytes];
    map.read_exact_at(&mut bits, HEADER)?;
    let mut digests: Vec<Digest> = parts(&bits).map(digest).collect();
    if note.is_some() || !is_of_now(map)? {
        let noted = note.map(|note| note.digests).unwrap_or_default();
        let mut at = HEADER;
        let mut cleared = 0;
        map.write_all_at(&ALL_READY.1, ALL_READY.0)?;
        for (number, part) in parts(&bits).enumerate() {
            if noted.get(number) != digests.get(number) && part.iter().any(|byte| *byte != 0) {
                map.write_all_at(&vec![0; part.len()], at)?;
                digests[number] = 0;
                cleared += part.iter().map(|byte| byte.count_ones()).sum::<u32>();
            }
            at += part.len() as u64;
        }
        if cleared > 0 {
            tracing::info!(
                chunks = cleared,
                "what may not have reached the disk before the machine's restart is fetched again"
            );
        }
    } else {
        digests.clear();
    }
    map.write_all_at(&Note { boot, digests }.bytes(), AT)
}

/// Whether a file was made since the machine was started, as far as clocks can tell.
fn is_of_now(file: &File) -> io::Result<bool> {
    let up = clock_gettime(ClockId::Boottime);
    let up = Duration::from_secs(u64::try_from(up.tv_sec).unwrap_or_default());
    // Where files have no time of birth, nobody knows.
    Ok(file.metadata()?.created().is_ok_and(|made| {
        SystemTime::now()
            .checked_sub(up)
            .is_some_and(|start| made >= start)
    }))
}

/// Has content written to the disk, and notes for which bits that is so. `bits` gives them.
///
/// # Errors
/// What the file system said; nothing is noted then.
pub(super) fn settle(
    data: &File,
    map: &File,
    bits: impl FnOnce() -> io::Result<Vec<u8>>,
    boot: Option<Boot>,
) -> io::Result<()> {
    let Some(boot) = boot else { return Ok(()) };
    // Before the data: what is marked is written.
    let bits = bits()?;
    let mut digests: Vec<Digest> = parts(&bits).map(digest).collect();
    digests.resize(PARTS, 0);
    let note = Note { boot, digests };
    if Note::read(map)?.as_ref() == Some(&note) {
        return Ok(());
    }
    data.sync_data()?;
    let alone = RangeLock::take(map, 0, HEADER).ok();
    map.write_all_at(&note.bytes(), AT)?;
    drop(alone);
    map.sync_data()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    const BYTES: usize = 1000;

    struct Map {
        file: File,
        data: File,
    }

    impl Map {
        fn new(made_in: Option<Boot>) -> Self {
            let mut header = vec![0; 4096];
            begin(&mut header, made_in);
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(&header, 0).unwrap();
            file.set_len(HEADER + BYTES as u64).unwrap();
            Self {
                file,
                data: tempfile::tempfile().unwrap(),
            }
        }

        fn bits(&self) -> Vec<u8> {
            let mut bits = vec![0; BYTES];
            self.file.read_exact_at(&mut bits, HEADER).unwrap();
            bits
        }

        fn set(&self, at: usize, byte: u8) {
            self.file.write_all_at(&[byte], HEADER + at as u64).unwrap();
        }

        fn settle(&self, boot: &str) {
            settle(&self.data, &self.file, || Ok(self.bits()), named(boot)).unwrap();
        }

        fn believe(&self, boot: &str) -> Vec<u8> {
            believe(&self.file, BYTES, named(boot)).unwrap();
            self.bits()
        }
    }

    fn named(id: &str) -> Option<Boot> {
        Boot::named(id.as_bytes())
    }

    fn only(bytes: &[(usize, u8)]) -> Vec<u8> {
        let mut bits = vec![0; BYTES];
        bytes.iter().for_each(|(at, byte)| bits[*at] = *byte);
        bits
    }

    #[test]
    fn what_was_not_settled_is_believed_in_its_own_boot_only() {
        let map = Map::new(named("one"));
        map.set(3, 0x80);
        assert_eq!(map.believe("one"), only(&[(3, 0x80)]));
        assert_eq!(map.believe("two"), only(&[]));
        map.set(3, 0x40);
        assert_eq!(
            map.believe("two"),
            only(&[(3, 0x40)]),
            "it is of the new boot now"
        );
    }

    #[test]
    fn what_was_settled_is_believed_until_it_changes() {
        let map = Map::new(named("one"));
        map.set(3, 0x80);
        map.set(500, 0xff);
        map.settle("one");
        assert_eq!(map.believe("two"), only(&[(3, 0x80), (500, 0xff)]));
        assert_eq!(
            map.believe("three"),
            only(&[(3, 0x80), (500, 0xff)]),
            "and for ever"
        );
        map.set(500, 0x7f);
        map.set(900, 1);
        assert_eq!(map.believe("four"), only(&[(3, 0x80)]));
    }

    #[test]
    fn a_map_without_a_note_is_believed_if_it_is_new() {
        let map = Map::new(None);
        if map.file.metadata().unwrap().created().is_err() {
            return eprintln!("skipped: files here have no time of birth");
        }
        map.set(3, 0x80);
        assert_eq!(map.believe("one"), only(&[(3, 0x80)]));
        assert_eq!(map.believe("two"), only(&[]), "it has a note now");
    }

    #[test]
    fn nydus_is_not_told_that_all_is_there_when_it_is_not() {
        let map = Map::new(named("one"));
        map.file.write_all_at(b"PAMM", 12).unwrap();
        map.believe("two");
        let mut all_ready = [1; 4];
        map.file.read_exact_at(&mut all_ready, 12).unwrap();
        assert_eq!(all_ready, [0; 4]);
    }

    #[test]
    fn few_bits_and_many_have_a_place() {
        for bytes in [1, PARTS, PARTS + 1, 1 << 21] {
            assert!(parts(&vec![0; bytes]).count() <= PARTS);
        }
        assert!(AT + (LENGTH as u64) <= HEADER);
        assert!(Boot::present().is_some());
    }
}
