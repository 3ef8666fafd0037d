//! Paths of unix sockets.

use std::path::{Path, PathBuf};

/// The longest path `bind(2)` takes: `sun_path` has 108 bytes, the last is the terminating NUL.
pub const MAX_SOCKET_PATH_LEN: usize = 107;

/// Why a path cannot be a unix socket's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SocketPathError {
    /// Longer than [`MAX_SOCKET_PATH_LEN`].
    #[error("socket path {path:?} is {len} bytes long, unix sockets allow at most {MAX_SOCKET_PATH_LEN}")]
    TooLong {
        /// The path.
        path: PathBuf,
        /// Its length in bytes.
        len: usize,
    },
    /// Empty, or without a file name.
    #[error("socket path {path:?} names no file")]
    NoFileName {
        /// The path.
        path: PathBuf,
    },
    /// Contains a NUL byte.
    #[error("socket path {path:?} contains a NUL byte")]
    Nul {
        /// The path.
        path: PathBuf,
    },
}

/// A path short enough to be bound as a unix socket.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "PathBuf", into = "PathBuf")]
pub struct SocketPath(PathBuf);

impl SocketPath {
    /// Checks the length and that a file is named.
    ///
    /// # Errors
    /// [`SocketPathError`] says which path it was and how long.
    pub fn new(path: impl Into<PathBuf>) -> Result<Self, SocketPathError> {
        let path = path.into();
        let len = path.as_os_str().len();
        if len > MAX_SOCKET_PATH_LEN {
            return Err(SocketPathError::TooLong { path, len });
        }
        if path.as_os_str().as_encoded_bytes().contains(&0) {
            return Err(SocketPathError::Nul { path });
        }
        if path.file_name().is_none() {
            return Err(SocketPathError::NoFileName { path });
        }
        Ok(Self(path))
    }

    /// The path.
    #[must_use]
    pub fn as_path(&self) -> &Path {
        &self.0
    }
}

impl AsRef<Path> for SocketPath {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

impl std::str::FromStr for SocketPath {
    type Err = SocketPathError;
    fn from_str(s: &str) -> Result<Self, SocketPathError> {
        Self::new(s)
    }
}

impl TryFrom<PathBuf> for SocketPath {
    type Error = SocketPathError;
    fn try_from(p: PathBuf) -> Result<Self, SocketPathError> {
        Self::new(p)
    }
}

impl From<SocketPath> for PathBuf {
    fn from(p: SocketPath) -> PathBuf {
        p.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_inclusive_and_the_error_says_how_long() {
        let at_limit = format!("/{}", "s".repeat(106));
        assert!(SocketPath::new(&at_limit).is_ok());
        let over = format!("/{}", "s".repeat(107));
        let error = SocketPath::new(&over)
            .err()
            .map(|e| e.to_string())
            .unwrap_or_default();
        assert!(error.contains("108 bytes") && error.contains(&over), "{error}");
    }

    #[test]
    fn names_a_file() {
        assert!(matches!(
            SocketPath::new(""),
            Err(SocketPathError::NoFileName { .. })
        ));
        assert!(matches!(
            SocketPath::new("/"),
            Err(SocketPathError::NoFileName { .. })
        ));
        assert!(matches!(
            SocketPath::new("/run/.."),
            Err(SocketPathError::NoFileName { .. })
        ));
    }
}
