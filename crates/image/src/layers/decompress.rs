//! The uncompressed archive of a layer, whichever way it is compressed: seen from its first bytes, because
//! media types are not always true.

use std::io::{self, BufReader, Chain, Cursor, Read};

use flate2::read::MultiGzDecoder;

/// First bytes of a gzip member with the deflate method, RFC 1952 section 2.3.1.
const GZIP_MAGIC: [u8; 3] = [0x1f, 0x8b, 0x08];
/// First bytes of a Zstandard frame, RFC 8878 section 3.1.1, and of a skippable one less its lowest half-byte.
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
const ZSTD_SKIPPABLE: [u8; 3] = [0x2a, 0x4d, 0x18];
const BUFFER_BYTES: usize = 256 << 10;

/// How an archive is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

/// A stream of which the first bytes were looked at.
pub(crate) type Sniffed<R> = Chain<Cursor<Vec<u8>>, BufReader<R>>;

/// How `stream` is compressed, and all of it.
pub(crate) fn sniff<R: Read>(stream: R) -> io::Result<(Compression, Sniffed<R>)> {
    let mut stream = BufReader::with_capacity(BUFFER_BYTES, stream);
    let mut magic = Vec::with_capacity(ZSTD_MAGIC.len());
    (&mut stream)
        .take(ZSTD_MAGIC.len() as u64)
        .read_to_end(&mut magic)?;
    let is_gzip = magic.starts_with(&GZIP_MAGIC);
    let is_zstd = magic == ZSTD_MAGIC || magic.get(1..) == Some(&ZSTD_SKIPPABLE) && magic[0] >> 4 == 5;
    let compression = if is_gzip {
        Compression::Gzip
    } else if is_zstd {
        Compression::Zstd
    } else {
        Compression::None
    };
    Ok((compression, Cursor::new(magic).chain(stream)))
}

/// What is compressed in `stream`, or `stream` itself.
pub(crate) fn decompressed<'a>(stream: impl Read + Send + 'a) -> io::Result<Box<dyn Read + Send + 'a>> {
    let (compression, whole) = sniff(stream)?;
    decompress(compression, whole)
}

/// What is compressed in `stream`.
pub(crate) fn decompress<'a>(
    compression: Compression,
    stream: impl Read + Send + 'a,
) -> io::Result<Box<dyn Read + Send + 'a>> {
    Ok(match compression {
        Compression::None => Box::new(stream),
        Compression::Gzip => Box::new(BufReader::with_capacity(
            BUFFER_BYTES,
            MultiGzDecoder::new(stream),
        )),
        Compression::Zstd => Box::new(zstd::stream::read::Decoder::new(stream)?),
    })
}
