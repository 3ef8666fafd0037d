//! What can be asked of a build. Every value here is valid once it exists.
//!
//! Never touches the file system except in [`Source::detect`]. Read `build.rs` next.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::error::BuildError;

/// Where the files come from.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Source {
    /// A directory tree, taken as it is: owners, modes, times, extended attributes, devices, hard links.
    Directory(PathBuf),
    /// A tar archive, plain or compressed with gzip or Zstandard; which, is seen from its content.
    Tar(PathBuf),
    /// The layers of an image as archives, the lowest first; plain or compressed with gzip or Zstandard. What
    /// the OCI image specification says of layers holds for them: whiteouts hide what lower layers have.
    Layers(Vec<PathBuf>),
}

impl Source {
    /// Looks at `path` (following symbolic links): a directory is a [`Source::Directory`], a regular file
    /// a [`Source::Tar`]. Whether the file really is an archive is found out by the build.
    ///
    /// # Errors
    /// [`BuildError::SourceMissing`], [`BuildError::SourceUnsupported`] for devices, sockets and the like,
    /// [`BuildError::Unreadable`] when the path can't be looked at.
    pub fn detect(path: &Path) -> Result<Self, BuildError> {
        let meta = fs::metadata(path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => BuildError::SourceMissing {
                path: path.to_owned(),
            },
            _ => BuildError::Unreadable {
                path: path.to_owned(),
                source,
            },
        })?;
        if meta.is_dir() {
            Ok(Self::Directory(path.to_owned()))
        } else if meta.is_file() {
            Ok(Self::Tar(path.to_owned()))
        } else {
            Err(BuildError::SourceUnsupported {
                path: path.to_owned(),
            })
        }
    }

    /// The path the files come from; of layers, the uppermost's.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Directory(path) | Self::Tar(path) => path,
            Self::Layers(paths) => paths.last().map_or(Path::new(""), PathBuf::as_path),
        }
    }
}

/// A name that an option doesn't know.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{found:?} is none of {expected}")]
pub struct UnknownName {
    /// What was given.
    pub found: String,
    /// The names that would have done.
    pub expected: &'static str,
}

/// Version of the RAFS format.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum FsVersion {
    /// RAFS v5, the older format of its own.
    V5,
    /// RAFS v6, which is EROFS on disk.
    #[default]
    V6,
}

impl fmt::Display for FsVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V5 => "5",
            Self::V6 => "6",
        })
    }
}

impl FromStr for FsVersion {
    type Err = UnknownName;

    fn from_str(s: &str) -> Result<Self, UnknownName> {
        match s {
            "5" => Ok(Self::V5),
            "6" => Ok(Self::V6),
            _ => Err(UnknownName {
                found: s.to_owned(),
                expected: "5, 6",
            }),
        }
    }
}

/// How chunks are compressed. A chunk that would grow is stored as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Compressor {
    /// Not at all.
    None,
    /// LZ4 blocks: larger than zstd, cheaper to read.
    Lz4Block,
    /// Zstandard.
    #[default]
    Zstd,
}

impl fmt::Display for Compressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Lz4Block => "lz4_block",
            Self::Zstd => "zstd",
        })
    }
}

impl FromStr for Compressor {
    type Err = UnknownName;

    fn from_str(s: &str) -> Result<Self, UnknownName> {
        match s {
            "none" => Ok(Self::None),
            "lz4_block" => Ok(Self::Lz4Block),
            "zstd" => Ok(Self::Zstd),
            _ => Err(UnknownName {
                found: s.to_owned(),
                expected: "none, lz4_block, zstd",
            }),
        }
    }
}

/// Size of a chunk, the unit of compression, deduplication and fetching: a power of two from 4 KiB to
/// 16 MiB. 1 MiB unless said otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct ChunkSize(u32);

impl ChunkSize {
    /// The smallest chunk, in bytes; a block of RAFS v6.
    pub const MIN_BYTES: u32 = 4 << 10;
    /// The largest chunk, in bytes; RAFS has no larger ones.
    pub const MAX_BYTES: u32 = 16 << 20;

    /// A chunk size of `bytes`.
    ///
    /// # Errors
    /// When `bytes` isn't a power of two between [`Self::MIN_BYTES`] and [`Self::MAX_BYTES`].
    pub fn new(bytes: u64) -> Result<Self, ChunkSizeError> {
        match u32::try_from(bytes) {
            Ok(size) if size.is_power_of_two() && (Self::MIN_BYTES..=Self::MAX_BYTES).contains(&size) => {
                Ok(Self(size))
            }
            _ => Err(ChunkSizeError::OutOfRange { bytes }),
        }
    }

    /// The size in bytes.
    #[must_use]
    pub fn bytes(self) -> u32 {
        self.0
    }
}

impl Default for ChunkSize {
    fn default() -> Self {
        Self(1 << 20)
    }
}

impl TryFrom<u64> for ChunkSize {
    type Error = ChunkSizeError;

    fn try_from(bytes: u64) -> Result<Self, ChunkSizeError> {
        Self::new(bytes)
    }
}

impl From<ChunkSize> for u64 {
    fn from(size: ChunkSize) -> Self {
        Self::from(size.0)
    }
}

impl fmt::Display for ChunkSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            mib if mib >= 1 << 20 => write!(f, "{}M", mib >> 20),
            kib => write!(f, "{}K", kib >> 10),
        }
    }
}

/// A number of bytes, or of KiB or MiB with the suffix `K` or `M`.
impl FromStr for ChunkSize {
    type Err = ChunkSizeError;

    fn from_str(s: &str) -> Result<Self, ChunkSizeError> {
        let (digits, shift) = match s.as_bytes().last() {
            Some(b'K' | b'k') => (&s[..s.len() - 1], 10),
            Some(b'M' | b'm') => (&s[..s.len() - 1], 20),
            _ => (s, 0),
        };
        let unreadable = || ChunkSizeError::NotASize { found: s.to_owned() };
        let number: u64 = digits.parse().map_err(|_| unreadable())?;
        Self::new(number.checked_mul(1 << shift).ok_or_else(unreadable)?)
    }
}

/// Why a chunk size was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ChunkSizeError {
    /// Not a power of two, or too small, or too large.
    #[error("chunk size of {bytes} bytes is not a power of two from 4K to 16M")]
    OutOfRange {
        /// The size that was asked for.
        bytes: u64,
    },
    /// Not a number with an optional suffix.
    #[error("{found:?} is not a size: a number of bytes, or one ending in K or M")]
    NotASize {
        /// What was given.
        found: String,
    },
}

/// How files become RAFS: version 6 with zstd and chunks of 1 MiB, unless said otherwise.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RafsFormat {
    pub(crate) fs_version: FsVersion,
    pub(crate) compressor: Compressor,
    pub(crate) chunk_size: ChunkSize,
}

impl RafsFormat {
    /// Sets the version of the format.
    #[must_use]
    pub fn fs_version(mut self, version: FsVersion) -> Self {
        self.fs_version = version;
        self
    }

    /// Sets how chunks are compressed.
    #[must_use]
    pub fn compressor(mut self, compressor: Compressor) -> Self {
        self.compressor = compressor;
        self
    }

    /// Sets the size of chunks.
    #[must_use]
    pub fn chunk_size(mut self, size: ChunkSize) -> Self {
        self.chunk_size = size;
        self
    }
}

/// What to build, from what, and where to. See [`build`](crate::build()).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildConfig {
    pub(crate) source: Source,
    pub(crate) out_dir: PathBuf,
    pub(crate) format: RafsFormat,
    pub(crate) replace: bool,
}

impl BuildConfig {
    /// A build of `source` into the image directory `out_dir`, in RAFS v6 with zstd and chunks of 1 MiB.
    pub fn new(source: Source, out_dir: impl Into<PathBuf>) -> Self {
        Self {
            source,
            out_dir: out_dir.into(),
            format: RafsFormat::default(),
            replace: false,
        }
    }

    /// Sets the format; RAFS v6 with zstd and chunks of 1 MiB unless set.
    #[must_use]
    pub fn format(mut self, format: RafsFormat) -> Self {
        self.format = format;
        self
    }

    /// Sets whether an image that is already at the output directory is replaced (at the very end, in one
    /// step) instead of refused. Anything else found there is refused either way.
    #[must_use]
    pub fn force(mut self, force: bool) -> Self {
        self.replace = force;
        self
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

    use super::*;

    #[test]
    fn chunk_size_is_a_power_of_two_in_range() {
        for bytes in [4096, 65536, 1 << 20, 16 << 20] {
            assert_eq!(u64::from(ChunkSize::new(bytes).unwrap()), bytes);
        }
        for bytes in [0, 1, 2048, 4097, 3 << 20, 32 << 20, u64::MAX] {
            assert_eq!(ChunkSize::new(bytes), Err(ChunkSizeError::OutOfRange { bytes }));
        }
    }

    #[test]
    fn chunk_size_is_read_with_and_without_suffix_and_shown_the_same_way() {
        for (text, bytes) in [
            ("4096", 4096),
            ("4K", 4096),
            ("512k", 512 << 10),
            ("1M", 1 << 20),
            ("16m", 16 << 20),
        ] {
            let size: ChunkSize = text.parse().unwrap();
            assert_eq!(u64::from(size), bytes, "{text}");
            assert_eq!(size.to_string().parse(), Ok(size), "{text}");
        }
        for text in ["", "K", "x", "-1", "1G", "18446744073709551615M"] {
            assert!(
                matches!(text.parse::<ChunkSize>(), Err(ChunkSizeError::NotASize { .. })),
                "{text}"
            );
        }
    }

    #[test]
    fn names_are_read_as_they_are_shown() {
        for compressor in [Compressor::None, Compressor::Lz4Block, Compressor::Zstd] {
            assert_eq!(compressor.to_string().parse(), Ok(compressor));
        }
        for version in [FsVersion::V5, FsVersion::V6] {
            assert_eq!(version.to_string().parse(), Ok(version));
        }
        assert_eq!(
            "7".parse::<FsVersion>().unwrap_err().to_string(),
            "\"7\" is none of 5, 6"
        );
    }
}
