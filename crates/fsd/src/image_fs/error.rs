//! Why a chunk could not be had.

use std::io;

use super::retry::Cause;

/// Why a blob gave no usable chunk.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum FetchError {
    /// The backend said no, or nothing.
    #[error("backend gives no data of blob {blob} at {offset}: {why}")]
    Backend { blob: String, offset: u64, why: String },
    /// The blob is shorter than its image says, or the backend broke off.
    #[error("blob {blob} has {got} of {wanted} bytes at {offset}")]
    Short {
        blob: String,
        offset: u64,
        wanted: u64,
        got: u64,
    },
    /// The data do not decompress.
    #[error("chunk {chunk} of blob {blob} is damaged")]
    Damaged {
        blob: String,
        chunk: u32,
        #[source]
        source: io::Error,
    },
    /// The data are not those the image was built with.
    #[error("chunk {chunk} of blob {blob} has the wrong digest")]
    Digest { blob: String, chunk: u32 },
    /// The bootstrap's table of chunks cannot be read.
    #[error("bootstrap does not say what chunk {chunk} of blob {blob} has to be")]
    Unknown {
        blob: String,
        chunk: u32,
        #[source]
        source: io::Error,
    },
    /// There is nowhere to unpack to.
    #[error("there is no room to unpack chunks of blob {blob}")]
    NoRoom {
        blob: String,
        #[source]
        source: io::Error,
    },
    /// The cache lost the chunk as often as it was fetched.
    #[error("cache of blob {blob} does not keep chunk {chunk}")]
    Cache { blob: String, chunk: u32 },
}

impl FetchError {
    /// Whether the backend gave something, and not what was asked for.
    pub(super) fn is_about_content(&self) -> bool {
        matches!(
            self,
            Self::Short { .. } | Self::Damaged { .. } | Self::Digest { .. }
        )
    }

    /// What a retry has to expect.
    pub(super) fn cause(&self) -> Cause {
        match self {
            Self::Backend { .. } => Cause::Unreachable,
            Self::NoRoom { .. } => Cause::NoRoom,
            Self::Short { .. }
            | Self::Damaged { .. }
            | Self::Digest { .. }
            | Self::Unknown { .. }
            | Self::Cache { .. } => Cause::WrongContent,
        }
    }
}
