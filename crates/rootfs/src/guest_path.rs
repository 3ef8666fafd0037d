//! A path inside the guest.
//!
//! Absolute and already normalised, so that two equal places compare equal and none of them climbs with `..`.

use std::fmt;
use std::str::FromStr;

/// Why a text is not a usable guest path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GuestPathError {
    /// Not starting with `/`.
    #[error("guest path {path:?} is not absolute")]
    NotAbsolute {
        /// The refused text.
        path: String,
    },
    /// A component `.` or `..`.
    #[error("guest path {path:?} has the component {component:?}")]
    Relative {
        /// The refused text.
        path: String,
        /// The component.
        component: String,
    },
    /// A control character; it could not be told to the guest on one line.
    #[error("guest path {path:?} has the control character {found:?} at byte {at}")]
    Control {
        /// The refused text.
        path: String,
        /// The character.
        found: char,
        /// Its byte offset.
        at: usize,
    },
    /// Longer than Linux' `PATH_MAX` allows.
    #[error("guest path is {len} bytes long, Linux allows 4095")]
    TooLong {
        /// Length in bytes.
        len: usize,
    },
}

/// An absolute, normalised path in the guest. Repeated and trailing slashes are removed on construction.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GuestPath(String);

impl GuestPath {
    /// Parses and normalises a path.
    ///
    /// # Errors
    /// [`GuestPathError`] when it is relative, climbs, has control characters or is too long.
    pub fn new(path: impl AsRef<str>) -> Result<Self, GuestPathError> {
        let path = path.as_ref();
        if path.len() > 4095 {
            return Err(GuestPathError::TooLong { len: path.len() });
        }
        if !path.starts_with('/') {
            return Err(GuestPathError::NotAbsolute {
                path: path.to_owned(),
            });
        }
        if let Some((at, found)) = path.char_indices().find(|(_, c)| c.is_control()) {
            return Err(GuestPathError::Control {
                path: path.to_owned(),
                found,
                at,
            });
        }
        let mut normal = String::with_capacity(path.len());
        for component in path.split('/').filter(|c| !c.is_empty()) {
            if matches!(component, "." | "..") {
                return Err(GuestPathError::Relative {
                    path: path.to_owned(),
                    component: component.to_owned(),
                });
            }
            normal.push('/');
            normal.push_str(component);
        }
        if normal.is_empty() {
            normal.push('/');
        }
        Ok(Self(normal))
    }

    /// A path this crate assembled from constants and container ids, which need no check.
    pub(crate) fn assembled(path: String) -> Self {
        debug_assert_eq!(Self::new(&path).as_ref().map(Self::as_str), Ok(path.as_str()));
        Self(path)
    }

    /// The path as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is the root directory.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.0 == "/"
    }
}

impl fmt::Display for GuestPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for GuestPath {
    type Err = GuestPathError;
    fn from_str(s: &str) -> Result<Self, GuestPathError> {
        Self::new(s)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn normalises_slashes() {
        for (given, normal) in [("/", "/"), ("//", "/"), ("/a//b/", "/a/b"), ("/a b,c", "/a b,c")] {
            assert_eq!(GuestPath::new(given).unwrap().as_str(), normal);
        }
    }

    #[test]
    fn refuses_what_climbs_or_breaks_a_line() {
        let bad = |path: &str| GuestPath::new(path).unwrap_err();
        assert!(matches!(bad(""), GuestPathError::NotAbsolute { .. }));
        assert!(matches!(bad("a"), GuestPathError::NotAbsolute { .. }));
        assert!(matches!(bad("/a/../b"), GuestPathError::Relative { .. }));
        assert!(matches!(bad("/./b"), GuestPathError::Relative { .. }));
        assert!(matches!(bad("/a\nb"), GuestPathError::Control { at: 2, .. }));
        assert!(matches!(
            bad(&"/x".repeat(3000)),
            GuestPathError::TooLong { len: 6000 }
        ));
    }

    proptest! {
        #[test]
        fn parsing_is_idempotent_and_never_climbs(path in "[/a.b\n ]{0,40}") {
            if let Ok(once) = GuestPath::new(&path) {
                prop_assert_eq!(GuestPath::new(once.as_str()), Ok(once.clone()));
                prop_assert!(once.as_str().split('/').all(|c| c != ".."));
                prop_assert!(once.is_root() || !once.as_str().ends_with('/'));
            }
        }
    }
}
