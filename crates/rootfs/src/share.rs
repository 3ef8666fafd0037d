//! The virtio-fs device that carries the share, independent of the VMM.
//!
//! Every limit is checked here, so that a VMM never sees a value it would refuse after it has started.
//! [`crate::qemu`] and `cloud_hypervisor` turn a [`ShareDevice`] into arguments.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use crate::layout::SHARE_TAG;

/// The longest tag, in bytes (virtio 1.2, 5.11.4: `tag[36]`).
pub const MAX_TAG_LEN: usize = 36;
/// The largest queue: nydusd's rings have 1024 entries, and a VMM must not offer more than the backend has.
pub const MAX_QUEUE_SIZE: u16 = 1024;
/// The longest path of a unix socket, in bytes: `sun_path` has 108, the last is the terminating NUL.
pub const MAX_SOCKET_PATH_LEN: usize = 107;

/// Why a text is not a tag.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ShareTagError {
    /// The text is empty.
    #[error("virtio-fs tag is empty")]
    Empty,
    /// Longer than [`MAX_TAG_LEN`].
    #[error("virtio-fs tag {tag:?} is {len} bytes long, at most {MAX_TAG_LEN} are allowed")]
    TooLong {
        /// The refused text.
        tag: String,
        /// Its length in bytes.
        len: usize,
    },
    /// A space, a control character or a NUL: the guest names the tag in a mount command.
    #[error("virtio-fs tag {tag:?} has {found:?} at byte {at}")]
    BadCharacter {
        /// The refused text.
        tag: String,
        /// The character.
        found: char,
        /// Its byte offset.
        at: usize,
    },
}

/// The name by which the guest mounts the share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShareTag(String);

impl ShareTag {
    /// Checks a tag.
    ///
    /// # Errors
    /// [`ShareTagError`] when it is empty, too long, or can't be written in a mount command.
    pub fn new(tag: impl Into<String>) -> Result<Self, ShareTagError> {
        let tag = tag.into();
        if tag.is_empty() {
            return Err(ShareTagError::Empty);
        }
        if tag.len() > MAX_TAG_LEN {
            return Err(ShareTagError::TooLong { len: tag.len(), tag });
        }
        if let Some((at, found)) = tag
            .char_indices()
            .find(|(_, c)| c.is_control() || c.is_whitespace())
        {
            return Err(ShareTagError::BadCharacter { tag, found, at });
        }
        Ok(Self(tag))
    }

    /// The tag as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for ShareTag {
    /// Kata's tag, [`SHARE_TAG`].
    fn default() -> Self {
        Self(SHARE_TAG.to_owned())
    }
}

/// Why a number is not a queue size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("queue size {size} is not a power of two between 1 and {MAX_QUEUE_SIZE}")]
pub struct QueueSizeError {
    /// The refused number of entries.
    pub size: u16,
}

/// Entries in each virtqueue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueSize(u16);

impl QueueSize {
    /// Checks a queue size.
    ///
    /// # Errors
    /// [`QueueSizeError`] unless it is a power of two no larger than [`MAX_QUEUE_SIZE`].
    pub fn new(size: u16) -> Result<Self, QueueSizeError> {
        if size.is_power_of_two() && size <= MAX_QUEUE_SIZE {
            Ok(Self(size))
        } else {
            Err(QueueSizeError { size })
        }
    }

    /// The number of entries.
    #[must_use]
    pub fn entries(self) -> u16 {
        self.0
    }
}

impl Default for QueueSize {
    /// [`MAX_QUEUE_SIZE`]: the guest sends 1 MiB in one request only with at least 512 entries.
    fn default() -> Self {
        Self(MAX_QUEUE_SIZE)
    }
}

/// Why a path is not the daemon's socket.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ShareSocketError {
    /// Longer than a unix socket's path may be.
    #[error("socket path {path:?} is {len} bytes long, unix sockets allow at most {MAX_SOCKET_PATH_LEN}")]
    TooLong {
        /// The path.
        path: PathBuf,
        /// Its length in bytes.
        len: usize,
    },
    /// Empty or with a NUL byte.
    #[error("socket path {path:?} is empty or has a NUL byte")]
    Unusable {
        /// The path.
        path: PathBuf,
    },
}

/// The vhost-user socket of a daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShareSocket(PathBuf);

impl ShareSocket {
    /// Checks a socket's path.
    ///
    /// # Errors
    /// [`ShareSocketError`] when no unix socket can have it.
    pub fn new(path: impl Into<PathBuf>) -> Result<Self, ShareSocketError> {
        let path = path.into();
        let bytes = path.as_os_str().as_encoded_bytes();
        if bytes.len() > MAX_SOCKET_PATH_LEN {
            return Err(ShareSocketError::TooLong {
                len: bytes.len(),
                path,
            });
        }
        if bytes.is_empty() || bytes.contains(&0) {
            return Err(ShareSocketError::Unusable { path });
        }
        Ok(Self(path))
    }

    /// The path.
    #[must_use]
    pub fn as_path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn as_os_str(&self) -> &OsStr {
        self.0.as_os_str()
    }
}

/// The share's virtio-fs device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShareDevice {
    /// Where the daemon listens.
    pub socket: ShareSocket,
    /// The name the guest mounts.
    pub tag: ShareTag,
    /// Entries in each queue.
    pub queue_size: QueueSize,
}

impl ShareDevice {
    /// A share with Kata's tag and the largest queue.
    #[must_use]
    pub fn on(socket: ShareSocket) -> Self {
        Self {
            socket,
            tag: ShareTag::default(),
            queue_size: QueueSize::default(),
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn queue_sizes_are_powers_of_two_up_to_1024() {
        let good: Vec<u16> = (0..=u16::MAX).filter(|&n| QueueSize::new(n).is_ok()).collect();
        assert_eq!(good, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]);
        assert_eq!(
            QueueSize::new(1000).unwrap_err().to_string(),
            "queue size 1000 is not a power of two between 1 and 1024"
        );
    }

    #[test]
    fn tags_fit_the_devices_field() {
        assert_eq!(ShareTag::new("x".repeat(36)).unwrap().as_str().len(), 36);
        assert!(matches!(
            ShareTag::new("x".repeat(37)),
            Err(ShareTagError::TooLong { len: 37, .. })
        ));
        // 36 characters, 37 bytes: the field counts bytes.
        let two_bytes = format!("{}ä", "x".repeat(35));
        assert!(matches!(
            ShareTag::new(two_bytes),
            Err(ShareTagError::TooLong { len: 37, .. })
        ));
        assert_eq!(ShareTag::new(""), Err(ShareTagError::Empty));
        assert!(matches!(
            ShareTag::new("a b"),
            Err(ShareTagError::BadCharacter { at: 1, .. })
        ));
    }

    #[test]
    fn socket_paths_fit_sun_path() {
        assert!(ShareSocket::new("/".repeat(107)).is_ok());
        let error = ShareSocket::new("/".repeat(108)).unwrap_err();
        assert!(matches!(error, ShareSocketError::TooLong { len: 108, .. }));
        assert!(matches!(
            ShareSocket::new(""),
            Err(ShareSocketError::Unusable { .. })
        ));
    }
}
