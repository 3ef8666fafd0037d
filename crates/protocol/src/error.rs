//! Error codes of the API and the HTTP status each is answered with.

use serde::{Deserialize, Serialize};

/// The `code` of an error answer. nydusd always says `UNDEFINED`; the embedded daemon says what it is.
///
/// Statuses follow nydusd's where it has one for the case (400 for a request that cannot be understood, 404 for
/// what is not there to be measured, 500 for a mount that failed, 501 for what this daemon has not), so that
/// clients that look only at the status decide as before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ErrorCode {
    /// Method, query or body cannot be understood.
    BadRequest,
    /// No such path.
    NoRoute,
    /// The body is larger than the daemon accepts.
    TooLarge,
    /// Something is mounted there, inside it or around it.
    AlreadyMounted,
    /// Nothing is mounted there.
    NotMounted,
    /// Every slot of the VFS is in use.
    SlotsExhausted,
    /// The type of file system is unknown.
    BadFsType,
    /// The bootstrap is missing, unreadable or not RAFS.
    BadImage,
    /// The mount's configuration is not understood or names what is not there.
    BadConfig,
    /// The directory to share is missing or unreadable.
    BadSource,
    /// No counters under that id.
    NoCounter,
    /// Known to nydusd's API, not available from this daemon.
    Unsupported,
    /// Not possible in the daemon's present state.
    WrongState,
    /// Anything else; the message says what.
    Internal,
    /// What nydusd sends for everything.
    #[serde(rename = "UNDEFINED")]
    Undefined,
    /// A code this version does not know.
    #[serde(other)]
    Unknown,
}

impl ErrorCode {
    /// The HTTP status an answer with this code carries.
    #[must_use]
    pub const fn status(self) -> u16 {
        match self {
            Self::BadRequest | Self::WrongState => 400,
            Self::NoRoute | Self::NoCounter => 404,
            Self::TooLarge => 413,
            Self::Unsupported => 501,
            Self::AlreadyMounted
            | Self::NotMounted
            | Self::SlotsExhausted
            | Self::BadFsType
            | Self::BadImage
            | Self::BadConfig
            | Self::BadSource
            | Self::Internal
            | Self::Undefined
            | Self::Unknown => 500,
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn codes_are_words_on_the_wire_and_unknown_ones_are_tolerated() {
        assert_eq!(
            serde_json::to_string(&ErrorCode::AlreadyMounted).unwrap(),
            "\"AlreadyMounted\""
        );
        assert_eq!(
            serde_json::from_str::<ErrorCode>("\"UNDEFINED\"").unwrap(),
            ErrorCode::Undefined
        );
        assert_eq!(
            serde_json::from_str::<ErrorCode>("\"FromTheFuture\"").unwrap(),
            ErrorCode::Unknown
        );
    }
}
