//! Why a mount, remount or unmount failed: the code for programs, a sentence for people.

use std::io;
use std::path::PathBuf;

use nydusbox_protocol::{ErrorCode, MountPoint};

/// Slots of the VFS that can hold a mount; index 0 is the namespace itself.
pub const MAX_MOUNTS: usize = 255;

/// A failed operation on the namespace. Sources may quote a configuration's structure, never its values.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MountError {
    /// Something is mounted there already. The last words are nydusd's: clients look for them.
    #[error("a mount at {mount_point} already exists")]
    AlreadyMounted {
        /// Where.
        mount_point: MountPoint,
    },
    /// The VFS has no nested mounts.
    #[error("{mount_point} cannot be mounted: {existing} is mounted and one lies inside the other")]
    Nested {
        /// What was asked for.
        mount_point: MountPoint,
        /// What is there.
        existing: MountPoint,
    },
    /// Nothing is mounted there. The last words are nydusd's: clients look for them.
    #[error("a mount at {mount_point} doesn't exist")]
    NotMounted {
        /// Where.
        mount_point: MountPoint,
    },
    /// Another operation on the same mount has not finished.
    #[error("{mount_point} is being mounted or unmounted by another request")]
    Busy {
        /// Where.
        mount_point: MountPoint,
    },
    /// Every slot is taken.
    #[error(
        "{mount_point} cannot be mounted: all {MAX_MOUNTS} slots are in use; unmount something or use another daemon"
    )]
    SlotsExhausted {
        /// What was asked for.
        mount_point: MountPoint,
    },
    /// The bootstrap cannot be opened.
    #[error("bootstrap {path:?} cannot be read")]
    BootstrapUnreadable {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is no bootstrap at all.
    #[error("{path:?} is not a RAFS bootstrap: {why}")]
    NotABootstrap {
        /// Its path.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// It looks like a bootstrap, but cannot be used.
    #[error("bootstrap {path:?} is damaged or of a version that is not supported: {why}")]
    BadBootstrap {
        /// Its path.
        path: PathBuf,
        /// What RAFS says.
        why: String,
    },
    /// The configuration is not understood.
    #[error("configuration for {mount_point} {why}")]
    BadConfig {
        /// Whose.
        mount_point: MountPoint,
        /// What is wrong with it, worded to follow "configuration …".
        why: String,
    },
    /// The blob backend or its cache cannot be set up.
    #[error("blobs for {mount_point} cannot be reached: {why}")]
    BadBackend {
        /// Whose.
        mount_point: MountPoint,
        /// Why.
        why: String,
    },
    /// The directory to share cannot be used.
    #[error("directory {path:?} cannot be shared")]
    BadSource {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The list of files to fetch ahead has a relative path.
    #[error("prefetch file {path:?} must be an absolute path inside the image")]
    BadPrefetch {
        /// The entry.
        path: String,
    },
    /// The operation exists for RAFS only.
    #[error("{mount_point} is a shared directory, not a RAFS image")]
    NotRafs {
        /// Where.
        mount_point: MountPoint,
    },
    /// A failure nobody foresaw.
    #[error("{mount_point} could not be mounted because of an internal failure: {why}")]
    Internal {
        /// Where.
        mount_point: MountPoint,
        /// What is known.
        why: String,
    },
}

impl MountError {
    /// The code for the API.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::AlreadyMounted { .. } | Self::Nested { .. } => ErrorCode::AlreadyMounted,
            Self::NotMounted { .. } => ErrorCode::NotMounted,
            Self::Busy { .. } => ErrorCode::WrongState,
            Self::SlotsExhausted { .. } => ErrorCode::SlotsExhausted,
            Self::BootstrapUnreadable { .. } | Self::NotABootstrap { .. } | Self::BadBootstrap { .. } => {
                ErrorCode::BadImage
            }
            Self::BadConfig { .. } | Self::BadBackend { .. } => ErrorCode::BadConfig,
            Self::BadSource { .. } => ErrorCode::BadSource,
            Self::BadPrefetch { .. } => ErrorCode::BadRequest,
            // nydusd answers 500 here too.
            Self::NotRafs { .. } | Self::Internal { .. } => ErrorCode::Internal,
        }
    }

    /// The whole chain in one sentence, for the API's `message`.
    #[must_use]
    pub fn sentence(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(cause) = source {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            source = cause.source();
        }
        text
    }
}
