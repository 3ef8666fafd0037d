//! Places in the daemon's namespace of mounts.
//!
//! A mount point is absolute and normalised by construction: no empty, `.` or `..` component, no trailing slash,
//! no control characters. nydusd walks what it is given component by component and form-decodes the query, so
//! the text must go through [`MountPoint::query`] on its way out.

use std::fmt;
use std::str::FromStr;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::id::ContainerId;

/// The longest mount point accepted, in bytes. nydusd reads request lines of at most 1024 bytes, the rest of the
/// line takes 60, and percent-encoding may triple any byte outside the unreserved set.
pub const MAX_MOUNT_POINT_LEN: usize = 320;

/// What may stand unencoded in a query value (RFC 3986 unreserved, and `/`, which needs no encoding there).
pub(crate) const QUERY_VALUE: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'/');

/// Why a text is not a mount point.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MountPointError {
    /// Does not begin with `/`.
    #[error("mount point {path:?} must be absolute")]
    NotAbsolute {
        /// The refused text.
        path: String,
    },
    /// Longer than [`MAX_MOUNT_POINT_LEN`].
    #[error("mount point is {len} bytes long, at most {MAX_MOUNT_POINT_LEN} are allowed")]
    TooLong {
        /// Length in bytes.
        len: usize,
    },
    /// `.`, `..`, or an empty component.
    #[error("mount point {path:?} has the component {component:?}")]
    BadComponent {
        /// The refused text.
        path: String,
        /// The offending component.
        component: String,
    },
    /// A control character.
    #[error("mount point {path:?} has the control character {found:?}")]
    ControlCharacter {
        /// The refused text.
        path: String,
        /// The character.
        found: char,
    },
}

/// An absolute, normalised path in the daemon's namespace, such as `/containers`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MountPoint(String);

impl MountPoint {
    /// Parses a mount point. `/` is accepted: it is where `--virtual-mountpoint` puts the initial mount.
    ///
    /// # Errors
    /// [`MountPointError`] names the rule that is broken.
    pub fn new(path: impl AsRef<str>) -> Result<Self, MountPointError> {
        let path = path.as_ref();
        if path.len() > MAX_MOUNT_POINT_LEN {
            return Err(MountPointError::TooLong { len: path.len() });
        }
        let Some(rest) = path.strip_prefix('/') else {
            return Err(MountPointError::NotAbsolute {
                path: path.to_owned(),
            });
        };
        if let Some(found) = path.chars().find(|c| c.is_control()) {
            return Err(MountPointError::ControlCharacter {
                path: path.to_owned(),
                found,
            });
        }
        if !rest.is_empty() {
            for component in rest.split('/') {
                if matches!(component, "" | "." | "..") {
                    return Err(MountPointError::BadComponent {
                        path: path.to_owned(),
                        component: component.to_owned(),
                    });
                }
            }
        }
        Ok(Self(path.to_owned()))
    }

    /// `/containers`, where Kata has the sandbox's shared directory.
    #[must_use]
    pub fn containers() -> Self {
        Self("/containers".to_owned())
    }

    /// `/rafs/<container>/lowerdir`, where Kata has a container's image.
    #[must_use]
    pub fn rafs_lowerdir(container: &ContainerId) -> Self {
        Self(format!("/rafs/{container}/lowerdir"))
    }

    /// One of a container's layers, counted from 0 at the top: [`MountPoint::rafs_lowerdir`], then
    /// `/rafs/<container>/lowerdir1` and so on.
    #[must_use]
    pub fn rafs_layer(container: &ContainerId, layer: usize) -> Self {
        match layer {
            0 => Self::rafs_lowerdir(container),
            layer => Self(format!("/rafs/{container}/lowerdir{layer}")),
        }
    }

    /// Whether this is where a container's image or one of its layers is.
    #[must_use]
    pub fn is_layer_of(&self, container: &ContainerId) -> bool {
        self.0
            .strip_prefix(Self::rafs_lowerdir(container).as_str())
            .is_some_and(|number| number.is_empty() || number.bytes().all(|b| b.is_ascii_digit()))
    }

    /// The path as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is the root of the namespace.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.0 == "/"
    }

    /// Whether one of the two lies inside the other (or they are equal). The daemon's VFS has no nested mounts.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        let inside = |outer: &str, inner: &str| {
            outer == "/"
                || inner
                    .strip_prefix(outer)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        inside(&self.0, &other.0) || inside(&other.0, &self.0)
    }

    /// The query string `mountpoint=…`, percent-encoded.
    #[must_use]
    pub fn query(&self) -> String {
        let mut query = "mountpoint=".to_owned();
        query.extend(utf8_percent_encode(&self.0, QUERY_VALUE));
        query
    }
}

impl fmt::Display for MountPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for MountPoint {
    type Err = MountPointError;
    fn from_str(s: &str) -> Result<Self, MountPointError> {
        Self::new(s)
    }
}

impl TryFrom<String> for MountPoint {
    type Error = MountPointError;
    fn try_from(s: String) -> Result<Self, MountPointError> {
        Self::new(s)
    }
}

impl From<MountPoint> for String {
    fn from(m: MountPoint) -> String {
        m.0
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn kata_places() {
        let cid = ContainerId::new("c1").unwrap();
        assert_eq!(MountPoint::rafs_lowerdir(&cid).as_str(), "/rafs/c1/lowerdir");
        assert_eq!(MountPoint::containers(), MountPoint::new("/containers").unwrap());
    }

    #[test]
    fn layers_are_numbered_from_the_top() {
        let (c1, c11) = (ContainerId::new("c1").unwrap(), ContainerId::new("c11").unwrap());
        assert_eq!(MountPoint::rafs_layer(&c1, 0), MountPoint::rafs_lowerdir(&c1));
        assert_eq!(MountPoint::rafs_layer(&c1, 12).as_str(), "/rafs/c1/lowerdir12");
        assert!(MountPoint::rafs_layer(&c1, 12).is_layer_of(&c1));
        assert!(!MountPoint::rafs_layer(&c11, 0).is_layer_of(&c1));
        assert!(!MountPoint::new("/rafs/c1/lowerdir/x").unwrap().is_layer_of(&c1));
        assert!(!MountPoint::rafs_layer(&c1, 0).overlaps(&MountPoint::rafs_layer(&c1, 1)));
    }

    #[test]
    fn refuses_what_is_not_normalised() {
        for bad in [
            "",
            "containers",
            "//",
            "/a/",
            "/a//b",
            "/./a",
            "/a/..",
            "/a\nb",
            "/a\0",
        ] {
            assert!(MountPoint::new(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn nested_places_overlap() {
        let m = |s| MountPoint::new(s).unwrap();
        assert!(m("/a").overlaps(&m("/a/b")));
        assert!(m("/a/b").overlaps(&m("/a")));
        assert!(m("/").overlaps(&m("/a")));
        assert!(!m("/a").overlaps(&m("/ab")));
    }

    #[test]
    fn a_plus_survives_form_decoding() {
        assert_eq!(
            MountPoint::new("/rafs/a+b/lowerdir").unwrap().query(),
            "mountpoint=/rafs/a%2Bb/lowerdir"
        );
    }

    proptest! {
        #[test]
        fn whatever_is_accepted_has_only_real_components(text in "[/a.\\-+ ]{0,12}") {
            if let Ok(m) = MountPoint::new(&text) {
                prop_assert!(m.as_str().starts_with('/'));
                let normal = std::path::Path::new(m.as_str()).components()
                    .all(|c| matches!(c, std::path::Component::RootDir | std::path::Component::Normal(_)));
                prop_assert!(normal);
                let text_again: std::path::PathBuf = std::path::Path::new(m.as_str()).components().collect();
                prop_assert_eq!(text_again.to_str().unwrap(), m.as_str());
            }
        }
    }
}
