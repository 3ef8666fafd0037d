//! A digest in a cached table of chunks, so that a damaged one is noticed.
//!
//! The table says where chunks are and has no checksum: with a damaged one a read may give other bytes than the
//! image's. Its digest goes into the reserved part of its header, at the end of the file, which nydus keeps as it is
//! and does not look at. Next: `work_dir.rs` shares tables.

use std::ops::Range;

use nydus_utils::digest::{Algorithm, RafsDigest};

/// The second magic number, which ends the header, in bytes.
const MAGIC: usize = 4;
/// A digest, in bytes.
const DIGEST: usize = 32;
/// The least that has a header, in bytes.
const HEADER: usize = 4096;

/// What a table's digest says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seal {
    /// The table is as it was when it was sealed.
    Intact,
    /// It is not.
    Broken,
    /// It was not sealed.
    None,
}

fn place(table: &[u8]) -> Option<Range<usize>> {
    let end = table.len().checked_sub(MAGIC)?;
    (table.len() >= HEADER).then(|| end - DIGEST..end)
}

fn digest(table: &[u8], place: &Range<usize>) -> [u8; DIGEST] {
    RafsDigest::from_buf(&table[..place.start], Algorithm::Blake3).data
}

/// Puts a table's digest into it.
pub(super) fn seal(table: &mut [u8]) {
    if let Some(place) = place(table) {
        let digest = digest(table, &place);
        table[place].copy_from_slice(&digest);
    }
}

/// Compares a table with the digest in it.
pub(super) fn look(table: &[u8]) -> Seal {
    match place(table) {
        None => Seal::None,
        Some(place) if table[place.clone()] == [0; DIGEST] => Seal::None,
        Some(place) if table[place.clone()] == digest(table, &place) => Seal::Intact,
        Some(_) => Seal::Broken,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_changed_or_missing_byte_before_the_magic_breaks_the_seal() {
        let mut table: Vec<u8> = (0..8192_u32).map(|n| n.to_le_bytes()[0]).collect();
        let end = table.len() - MAGIC;
        table[end - DIGEST..end].fill(0);
        assert_eq!(look(&table), Seal::None);
        seal(&mut table);
        assert_eq!(look(&table), Seal::Intact);
        for at in [0, 1, 4095, 4096, 8000, end - 1] {
            table[at] ^= 1;
            assert_eq!(look(&table), Seal::Broken, "{at}");
            table[at] ^= 1;
        }
        assert_eq!(look(&table[..8191]), Seal::Broken);
        assert_eq!(look(&table[..100]), Seal::None, "is no table");
        assert_eq!(look(&[0; 8192]), Seal::None);
    }
}
