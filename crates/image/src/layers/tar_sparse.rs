//! Sparse files in GNU tar's formats: where the pieces of data belong, with zeros between them.
//!
//! Pure. A map that is accepted is in order, inside the file, and accounts for every byte in the archive. Read
//! `tar_stream.rs` for how the pieces are read.

use super::error::TarProblem;
use super::tar_pax::integer;

/// Most pieces a map may have: what fits into an extended header of the largest size.
const MAX_PIECES: usize = 1 << 17;

/// What pax records say of a sparse file: formats 0.0, 0.1 and 1.0.
#[derive(Debug, Default)]
pub(super) struct SparseHeader {
    major: Option<i64>,
    minor: Option<i64>,
    pub(super) name: Option<Vec<u8>>,
    pub(super) real_size: Option<u64>,
    numbers: Vec<u64>,
    seen: bool,
}

/// Where the map of a sparse file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MapAt {
    /// In the records: formats 0.0 and 0.1.
    Records,
    /// Before the data: format 1.0.
    Data,
}

impl SparseHeader {
    pub(super) fn apply(&mut self, key: &[u8], value: &[u8]) -> Result<(), TarProblem> {
        self.seen = true;
        let size = |value| {
            let number = integer(value)?.ok_or(TarProblem::Sparse)?;
            u64::try_from(number).map_err(|_| TarProblem::Sparse)
        };
        match key {
            b"major" => self.major = integer(value)?,
            b"minor" => self.minor = integer(value)?,
            b"name" => self.name = Some(value.to_vec()),
            b"size" | b"realsize" => self.real_size = Some(size(value)?),
            b"offset" | b"numbytes" => self.push(size(value)?)?,
            b"map" => {
                self.numbers.clear();
                for number in value.split(|byte| *byte == b',').filter(|n| !n.is_empty()) {
                    self.push(size(number)?)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn push(&mut self, number: u64) -> Result<(), TarProblem> {
        if self.numbers.len() >= 2 * MAX_PIECES {
            return Err(TarProblem::Sparse);
        }
        self.numbers.push(number);
        Ok(())
    }

    /// Whether the entry is sparse, and where its map is.
    pub(super) fn map_at(&self) -> Result<Option<MapAt>, TarProblem> {
        match (self.seen, self.major, self.minor) {
            (false, _, _) => Ok(None),
            (true, Some(1), Some(0)) => Ok(Some(MapAt::Data)),
            (true, None | Some(0), _) => Ok(Some(MapAt::Records)),
            (true, Some(_), _) => Err(TarProblem::Sparse),
        }
    }

    /// The pieces in the records.
    pub(super) fn pieces(&self) -> Result<Vec<(u64, u64)>, TarProblem> {
        let pairs = self.numbers.chunks_exact(2);
        if !pairs.remainder().is_empty() {
            return Err(TarProblem::Sparse);
        }
        Ok(pairs.map(|pair| (pair[0], pair[1])).collect())
    }
}

/// Reads the map of format 1.0: decimal numbers, one a line, how many pieces and then the pieces.
#[derive(Debug, Default)]
pub(super) struct MapReader {
    numbers: Vec<u64>,
    digits: Option<u64>,
}

impl MapReader {
    /// Takes a block of it; the pieces when it is complete.
    pub(super) fn block(&mut self, block: &[u8]) -> Result<Option<Vec<(u64, u64)>>, TarProblem> {
        for byte in block {
            match byte {
                b'0'..=b'9' => {
                    let value = self.digits.unwrap_or(0).checked_mul(10);
                    self.digits = value.and_then(|v| v.checked_add(u64::from(byte - b'0')));
                    if self.digits.is_none() {
                        return Err(TarProblem::Sparse);
                    }
                }
                b'\n' => {
                    self.numbers.push(self.digits.take().ok_or(TarProblem::Sparse)?);
                    let count = usize::try_from(self.numbers[0]).unwrap_or(usize::MAX);
                    if count > MAX_PIECES {
                        return Err(TarProblem::Sparse);
                    }
                    if self.numbers.len() == 1 + 2 * count {
                        let pairs = self.numbers[1..].chunks_exact(2);
                        return Ok(Some(pairs.map(|pair| (pair[0], pair[1])).collect()));
                    }
                }
                _ => return Err(TarProblem::Sparse),
            }
        }
        Ok(None)
    }
}

/// A map that was found in order: its pieces, and the size of the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct SparseMap {
    pieces: Vec<(u64, u64)>,
    size: u64,
}

/// What comes next at a position of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stretch {
    /// So many bytes from the archive.
    Data(u64),
    /// So many zeros.
    Hole(u64),
}

impl SparseMap {
    /// `stored` is how many bytes of data the archive has.
    pub(super) fn new(mut pieces: Vec<(u64, u64)>, size: u64, stored: u64) -> Result<Self, TarProblem> {
        pieces.retain(|(_, length)| *length > 0);
        let (mut end, mut sum) = (0, 0);
        for (offset, length) in &pieces {
            if *offset < end {
                return Err(TarProblem::Sparse);
            }
            end = offset.checked_add(*length).ok_or(TarProblem::Sparse)?;
            sum += length;
        }
        if end > size || sum != stored {
            return Err(TarProblem::Sparse);
        }
        // Consumed from the end.
        pieces.reverse();
        Ok(Self { pieces, size })
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// What comes at `position`, which never goes back; nothing at the end.
    pub(super) fn at(&mut self, position: u64) -> Option<Stretch> {
        while let Some((offset, length)) = self.pieces.last().copied() {
            if position < offset {
                return Some(Stretch::Hole(offset - position));
            }
            if position < offset + length {
                return Some(Stretch::Data(offset + length - position));
            }
            self.pieces.pop();
        }
        (position < self.size).then(|| Stretch::Hole(self.size - position))
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

    use super::*;

    #[test]
    fn data_and_holes_alternate() {
        let mut map = SparseMap::new(vec![(2, 3), (5, 1), (10, 2), (20, 0)], 20, 6).unwrap();
        assert_eq!(map.at(0), Some(Stretch::Hole(2)));
        assert_eq!(map.at(2), Some(Stretch::Data(3)));
        assert_eq!(map.at(4), Some(Stretch::Data(1)));
        assert_eq!(map.at(5), Some(Stretch::Data(1)));
        assert_eq!(map.at(6), Some(Stretch::Hole(4)));
        assert_eq!(map.at(10), Some(Stretch::Data(2)));
        assert_eq!(map.at(12), Some(Stretch::Hole(8)));
        assert_eq!(map.at(20), None);
    }

    #[test]
    fn maps_that_lie_are_refused() {
        for (pieces, size, stored) in [
            (vec![(0, 4), (2, 4)], 10, 8),
            (vec![(4, 4), (0, 4)], 10, 8),
            (vec![(8, 4)], 10, 4),
            (vec![(0, 4)], 10, 5),
            (vec![(u64::MAX, 2)], u64::MAX, 2),
        ] {
            assert!(SparseMap::new(pieces, size, stored).is_err());
        }
    }

    #[test]
    fn a_map_before_the_data_ends_where_it_says() {
        let mut reader = MapReader::default();
        assert_eq!(reader.block(b"2\n0\n5\n1").unwrap(), None);
        assert_eq!(
            reader.block(b"0\n7\n\0\0\0").unwrap(),
            Some(vec![(0, 5), (10, 7)])
        );
        assert!(MapReader::default().block(b"99999999\n").is_err());
        assert!(MapReader::default().block(b"\n").is_err());
        assert!(MapReader::default().block(b"99999999999999999999999\n").is_err());
    }
}
