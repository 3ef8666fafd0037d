//! One 512-byte header of a tar archive: POSIX ustar, GNU, and the older format before them.
//!
//! Pure: bytes in, fields or a [`TarProblem`] out. Our own instead of the `tar` crate's, because that one has
//! no negative times and numbers. Read `tar_stream.rs` for what makes entries of headers.

use super::error::TarProblem;

/// A header, and the unit in which archives grow.
pub(crate) const BLOCK_BYTES: usize = 512;

pub(super) type Block = [u8; BLOCK_BYTES];

/// Offsets and lengths of a sparse file's data.
pub(super) type Pieces = Vec<(u64, u64)>;

const CHECKSUM: std::ops::Range<usize> = 148..156;

/// Which fields a header has beyond the first 257 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    /// Before POSIX: none.
    V7,
    /// POSIX: a prefix of the name.
    Ustar,
    /// GNU: times and a map of holes where POSIX has the prefix.
    Gnu,
}

/// A header whose checksum is right.
#[derive(Debug)]
pub(super) struct Header<'a> {
    block: &'a Block,
    format: Format,
}

impl<'a> Header<'a> {
    pub(super) fn new(block: &'a Block) -> Result<Self, TarProblem> {
        let stored = number(&block[CHECKSUM])?;
        // The sum of the bytes, its own field read as spaces; old archivers took bytes for signed.
        let (mut unsigned, mut signed) = (0_i64, 0_i64);
        for (at, byte) in block.iter().enumerate() {
            let byte = if CHECKSUM.contains(&at) { b' ' } else { *byte };
            unsigned += i64::from(byte);
            signed += i64::from(byte.cast_signed());
        }
        if stored != unsigned && stored != signed {
            return Err(TarProblem::Checksum);
        }
        let format = match &block[257..265] {
            b"ustar  \0" => Format::Gnu,
            magic if magic.starts_with(b"ustar") => Format::Ustar,
            _ => Format::V7,
        };
        Ok(Self { block, format })
    }

    pub(super) fn type_flag(&self) -> u8 {
        self.block[156]
    }

    /// The name with its prefix.
    pub(super) fn name(&self) -> Vec<u8> {
        let name = text(&self.block[..100]);
        match (self.format, text(&self.block[345..500])) {
            (Format::Ustar, prefix) if !prefix.is_empty() => [prefix, b"/", name].concat(),
            _ => name.to_vec(),
        }
    }

    pub(super) fn link_name(&self) -> &'a [u8] {
        text(&self.block[157..257])
    }

    pub(super) fn mode(&self) -> Result<i64, TarProblem> {
        number(&self.block[100..108])
    }

    pub(super) fn uid(&self) -> Result<i64, TarProblem> {
        number(&self.block[108..116])
    }

    pub(super) fn gid(&self) -> Result<i64, TarProblem> {
        number(&self.block[116..124])
    }

    /// Bytes of content in the archive.
    pub(super) fn size(&self) -> Result<u64, TarProblem> {
        size(&self.block[124..136])
    }

    /// Seconds since the epoch.
    pub(super) fn mtime(&self) -> Result<i64, TarProblem> {
        number(&self.block[136..148])
    }

    /// Major and minor number; zero where the format has none.
    pub(super) fn device(&self) -> Result<(i64, i64), TarProblem> {
        match self.format {
            Format::V7 => Ok((0, 0)),
            Format::Ustar | Format::Gnu => {
                Ok((number(&self.block[329..337])?, number(&self.block[337..345])?))
            }
        }
    }

    /// Of an old GNU sparse file: the first pieces of its map, whether more follow, and the file's size.
    pub(super) fn gnu_sparse(&self) -> Result<(Pieces, bool, u64), TarProblem> {
        let pieces = sparse_pieces(&self.block[386..482])?;
        Ok((pieces, self.block[482] != 0, size(&self.block[483..495])?))
    }
}

/// The pieces in a further block of an old GNU sparse file's map, and whether more follow.
pub(super) fn gnu_sparse_more(block: &Block) -> Result<(Pieces, bool), TarProblem> {
    Ok((sparse_pieces(&block[..504])?, block[504] != 0))
}

fn sparse_pieces(bytes: &[u8]) -> Result<Pieces, TarProblem> {
    let mut pieces = Vec::new();
    for piece in bytes.chunks_exact(24) {
        // Unused places are zero.
        if piece[0] == 0 {
            break;
        }
        pieces.push((size(&piece[..12])?, size(&piece[12..])?));
    }
    Ok(pieces)
}

fn size(field: &[u8]) -> Result<u64, TarProblem> {
    u64::try_from(number(field)?).map_err(|_| TarProblem::Number)
}

/// Up to the first NUL.
fn text(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    &field[..end]
}

/// Octal digits between blanks and NULs, or, when the first bit is set, a two's complement number (GNU's
/// "base-256").
fn number(field: &[u8]) -> Result<i64, TarProblem> {
    if field[0] & 0x80 != 0 {
        let negative = field[0] & 0x40 != 0;
        let mut value = if negative { -1_i128 } else { 0 };
        for (at, byte) in field.iter().enumerate() {
            let byte = match (at, negative) {
                (0, true) => byte | 0x80,
                (0, false) => byte & 0x7f,
                _ => *byte,
            };
            value = (value << 8) | i128::from(byte);
        }
        return i64::try_from(value).map_err(|_| TarProblem::Number);
    }
    let blank = |byte: &u8| *byte == b' ' || *byte == 0;
    let digits = field.iter().skip_while(|byte| blank(byte));
    let mut value = 0_i64;
    for byte in digits.take_while(|byte| !blank(byte)) {
        match byte {
            // Twelve digits at most: 36 bits.
            b'0'..=b'7' => value = (value << 3) | i64::from(byte - b'0'),
            _ => return Err(TarProblem::Number),
        }
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

    use super::*;

    #[test]
    fn numbers_are_octal_or_twos_complement() {
        assert_eq!(number(b"0000755\0").unwrap(), 0o755);
        assert_eq!(number(b"   755 \0").unwrap(), 0o755);
        assert_eq!(number(&[0; 8]).unwrap(), 0);
        assert_eq!(number(&[0xff; 12]).unwrap(), -1);
        assert_eq!(number(&[0x80, 0, 0, 0, 1, 0, 0, 0]).unwrap(), 1 << 24);
        let mut large = [0; 12];
        large[0] = 0x80;
        large[4..].copy_from_slice(&(10_u64 << 30).to_be_bytes());
        assert_eq!(number(&large).unwrap(), 10 << 30);
        assert!(number(b"12x4567\0").is_err());
        assert!(number(&[0x80, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).is_err());
    }

    #[test]
    fn a_wrong_checksum_is_seen() {
        let mut header = tar::Header::new_ustar();
        header.set_path("some/name").unwrap();
        header.set_size(7);
        header.set_cksum();
        let mut block = *header.as_bytes();
        let read = Header::new(&block).unwrap();
        assert_eq!(read.name(), b"some/name");
        assert_eq!(read.size().unwrap(), 7);
        block[0] ^= 1;
        assert!(matches!(Header::new(&block), Err(TarProblem::Checksum)));
    }
}
