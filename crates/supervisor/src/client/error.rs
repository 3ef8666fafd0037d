//! Why a call to the daemon failed.

use std::io;
use std::time::Duration;

use nydusbox_protocol::ErrorCode;

use crate::binds::BindError;

/// Why a call to the daemon failed. Where the daemon explained itself, `message` is its own text.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// Something is mounted at that place, inside it or around it.
    #[error("mount there: something is mounted already")]
    AlreadyMounted,
    /// Nothing is mounted at that place.
    #[error("find a mount there: nothing is mounted")]
    NotMounted,
    /// Every slot of the daemon's VFS is in use.
    #[error("mount: every slot of the daemon's VFS is in use")]
    SlotsExhausted,
    /// The bootstrap is missing, unreadable or not RAFS.
    #[error("read the image: {message}")]
    BadImage {
        /// The daemon's words.
        message: String,
    },
    /// The configuration is not understood or names what is not there.
    #[error("use the mount's configuration: {message}")]
    BadConfig {
        /// The daemon's words.
        message: String,
    },
    /// The directory to share is missing or unreadable.
    #[error("open the directory to share: {message}")]
    BadSource {
        /// The daemon's words.
        message: String,
    },
    /// Refused for another reason.
    #[error("get the daemon to do it: status {status}, {message}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// The daemon's code.
        code: ErrorCode,
        /// The daemon's words.
        message: String,
    },
    /// An answer that is no API answer.
    #[error("understand the daemon's answer: status {status}, body {body_prefix:?}")]
    UnexpectedResponse {
        /// HTTP status.
        status: u16,
        /// The beginning of the body.
        body_prefix: String,
    },
    /// Bytes that are not HTTP.
    #[error("understand the daemon's answer: it is not HTTP")]
    NotHttp {
        /// What is wrong with them.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// An answer larger than is read.
    #[error("read the daemon's answer: its body is larger than {limit_bytes} bytes")]
    BodyTooLarge {
        /// What is read at most.
        limit_bytes: usize,
    },
    /// What has to be done before the call failed, and the daemon was not asked.
    #[error("prepare the call")]
    NotAsked {
        /// What failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The same, where it was the snapshot's directory that could not be bound.
    #[error("bind the snapshot's directory")]
    NotBound {
        /// Why.
        #[source]
        source: BindError,
    },
    /// The request cannot be written as JSON.
    #[error("write the request")]
    Unencodable {
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// No complete answer in time.
    #[error("get an answer from the daemon within {after:?}")]
    TimedOut {
        /// The call's deadline.
        after: Duration,
    },
    /// Nobody listens, or the connection broke.
    #[error("reach the daemon")]
    Unreachable {
        /// What the system says.
        #[source]
        source: io::Error,
    },
}

impl CallError {
    /// Whether the daemon is known not to have done what was asked. Otherwise it may have, or may yet.
    #[must_use]
    pub fn is_definite(&self) -> bool {
        match self {
            Self::AlreadyMounted
            | Self::NotMounted
            | Self::SlotsExhausted
            | Self::BadImage { .. }
            | Self::BadConfig { .. }
            | Self::BadSource { .. }
            | Self::Refused { .. }
            | Self::NotAsked { .. }
            | Self::NotBound { .. }
            | Self::Unencodable { .. } => true,
            Self::UnexpectedResponse { .. }
            | Self::NotHttp { .. }
            | Self::BodyTooLarge { .. }
            | Self::TimedOut { .. }
            | Self::Unreachable { .. } => false,
        }
    }
}
