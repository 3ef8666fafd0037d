//! One image to mount, whichever option described it.

use crate::host_path::{HostPath, HostPathError};
use crate::input::rafs_config::{RafsConfig, RafsConfigError};

/// `"RAFS"`, first word of a v5 superblock, and the version behind it.
const V5_HEAD: [u8; 8] = [0x53, 0x46, 0x41, 0x52, 0x00, 0x05, 0x00, 0x00];
/// EROFS' magic; a v6 bootstrap is an EROFS image, whose superblock is at [`V6_AT`].
const V6_MAGIC: [u8; 4] = [0xe2, 0xe1, 0xf5, 0xe0];
const V6_AT: usize = 1024;

/// How much of a bootstrap [`RafsImage::check_header`] wants to see, in bytes.
pub const BOOTSTRAP_HEADER_LEN: usize = V6_AT + V6_MAGIC.len();

/// The format of a bootstrap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RafsVersion {
    /// RAFS v5.
    V5,
    /// RAFS v6, which is EROFS.
    V6,
}

impl RafsVersion {
    /// The version a bootstrap that begins with `header` has; `None` when it is no bootstrap.
    #[must_use]
    pub fn of_header(header: &[u8]) -> Option<Self> {
        if header.starts_with(&V5_HEAD) {
            Some(Self::V5)
        } else if header
            .get(V6_AT..)
            .is_some_and(|rest| rest.starts_with(&V6_MAGIC))
        {
            Some(Self::V6)
        } else {
            None
        }
    }

    /// `v5` or `v6`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V5 => "v5",
            Self::V6 => "v6",
        }
    }
}

/// A bootstrap of another version than its description says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RafsVersionError {
    /// Neither magic number is there.
    #[error("bootstrap {path} has the magic number of neither RAFS v5 nor v6")]
    NotABootstrap {
        /// The file.
        path: HostPath,
    },
    /// The other version.
    #[error("bootstrap {path} is RAFS {}, the mount says {}", found.as_str(), said.as_str())]
    Other {
        /// The file.
        path: HostPath,
        /// What the mount says.
        said: RafsVersion,
        /// What the file is.
        found: RafsVersion,
    },
}

/// A field that does not describe an image. Never has its value in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RafsImageError {
    /// Not there, or `null`.
    #[error("lacks `{field}`")]
    Missing {
        /// The field's name.
        field: &'static str,
    },
    /// Not a path on the host.
    #[error("`{field}` cannot be used")]
    Path {
        /// The field's name.
        field: &'static str,
        /// What is wrong with it.
        #[source]
        source: HostPathError,
    },
    /// Another version than the two there are.
    #[error("`{field}` is neither {} nor {}", known[0], known[1])]
    Version {
        /// The field's name.
        field: &'static str,
        /// How the two are written there.
        known: [&'static str; 2],
    },
    /// Not a configuration.
    #[error("`config` cannot be used")]
    Config(#[source] RafsConfigError),
}

/// An image: what to mount, with which configuration, and where the container's writes go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RafsImage {
    source: HostPath,
    config: RafsConfig,
    snapshot_dir: HostPath,
    version: RafsVersion,
}

/// The fields as they came, with the names their document gives them.
pub(super) struct Fields {
    pub(super) source: Option<String>,
    pub(super) config: Option<String>,
    pub(super) snapshot_dir: (&'static str, Option<String>),
    pub(super) version: (&'static str, Option<String>),
    /// How v5 and v6 are written.
    pub(super) versions: [&'static str; 2],
}

impl RafsImage {
    pub(super) fn from_fields(fields: Fields) -> Result<Self, RafsImageError> {
        let (field, version) = fields.version;
        let version = present(field, version)?;
        let [v5, v6] = fields.versions;
        let version = match version {
            v if v == v5 => RafsVersion::V5,
            v if v == v6 => RafsVersion::V6,
            _ => {
                return Err(RafsImageError::Version {
                    field,
                    known: fields.versions,
                });
            }
        };
        let (dir_field, dir) = fields.snapshot_dir;
        Ok(Self {
            source: path("source", fields.source)?,
            config: RafsConfig::new(present("config", fields.config)?).map_err(RafsImageError::Config)?,
            snapshot_dir: path(dir_field, dir)?,
            version,
        })
    }

    /// The bootstrap.
    #[must_use]
    pub fn source(&self) -> &HostPath {
        &self.source
    }

    /// The configuration to mount it with. **Holds credentials.**
    #[must_use]
    pub fn config(&self) -> &RafsConfig {
        &self.config
    }

    /// The snapshot's directory, with `fs` and `work` in it.
    #[must_use]
    pub fn snapshot_dir(&self) -> &HostPath {
        &self.snapshot_dir
    }

    /// The bootstrap's format, as its description says.
    #[must_use]
    pub fn version(&self) -> RafsVersion {
        self.version
    }

    /// Compares the description with the file: `header` is its first [`BOOTSTRAP_HEADER_LEN`] bytes, or all of it.
    ///
    /// # Errors
    /// [`RafsVersionError`] when the file is of the other version, or no bootstrap.
    pub fn check_header(&self, header: &[u8]) -> Result<(), RafsVersionError> {
        let path = self.source.clone();
        match RafsVersion::of_header(header) {
            None => Err(RafsVersionError::NotABootstrap { path }),
            Some(found) if found == self.version => Ok(()),
            Some(found) => Err(RafsVersionError::Other {
                path,
                said: self.version,
                found,
            }),
        }
    }
}

fn present(field: &'static str, value: Option<String>) -> Result<String, RafsImageError> {
    value.ok_or(RafsImageError::Missing { field })
}

fn path(field: &'static str, value: Option<String>) -> Result<HostPath, RafsImageError> {
    HostPath::new(present(field, value)?).map_err(|source| RafsImageError::Path { field, source })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn image(version: &str) -> RafsImage {
        RafsImage::from_fields(Fields {
            source: Some("/i/image.boot".into()),
            config: Some(r#"{"version":2,"backend":{"type":"localfs"}}"#.into()),
            snapshot_dir: ("snapshotdir", Some("/s/1".into())),
            version: ("fs_version", Some(version.into())),
            versions: ["v5", "v6"],
        })
        .unwrap()
    }

    #[test]
    fn a_bootstrap_of_the_other_version_is_told() {
        let v5: Vec<u8> = [0x5241_4653u32.to_le_bytes(), 0x500u32.to_le_bytes()].concat();
        let mut v6 = vec![0; BOOTSTRAP_HEADER_LEN];
        v6[1024..].copy_from_slice(&0xe0f5_e1e2_u32.to_le_bytes());
        assert_eq!(image("v5").check_header(&v5), Ok(()));
        assert_eq!(image("v6").check_header(&v6), Ok(()));
        assert_eq!(
            image("v6").check_header(&v5).unwrap_err().to_string(),
            "bootstrap /i/image.boot is RAFS v5, the mount says v6"
        );
        assert!(image("v5").check_header(&v6).is_err());
        for no in [&v6[..1027], &v5[..7], &[]] {
            assert!(matches!(
                image("v6").check_header(no),
                Err(RafsVersionError::NotABootstrap { .. })
            ));
        }
    }
}
