//! A path on the host that came from outside.
//!
//! Absolute and normalised, so that it names one place whatever the working directory is and never climbs. Its
//! errors quote nothing: the document a path was read from may hold credentials in the wrong field.

use std::fmt;
use std::path::Path;

/// The longest path Linux takes, in bytes, without the terminating NUL.
const MAX_LEN: usize = 4095;

/// Why a text is not a path on the host. The text itself is never part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HostPathError {
    /// Empty.
    #[error("is empty")]
    Empty,
    /// Not starting with `/`.
    #[error("is not an absolute path")]
    NotAbsolute,
    /// A component `.` or `..`.
    #[error("has a component `.` or `..`")]
    Climbs,
    /// A control character or NUL.
    #[error("has a control character at byte {at}")]
    Control {
        /// Its byte offset.
        at: usize,
    },
    /// Longer than Linux allows.
    #[error("is {len} bytes long, Linux allows {MAX_LEN}")]
    TooLong {
        /// Length in bytes.
        len: usize,
    },
}

/// An absolute, normalised path on the host. Repeated and trailing slashes are removed on construction.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPath(String);

impl HostPath {
    /// Parses and normalises a path.
    ///
    /// # Errors
    /// [`HostPathError`] names the first rule the text breaks.
    pub fn new(path: impl AsRef<str>) -> Result<Self, HostPathError> {
        let path = path.as_ref();
        if path.is_empty() {
            return Err(HostPathError::Empty);
        }
        if path.len() > MAX_LEN {
            return Err(HostPathError::TooLong { len: path.len() });
        }
        if let Some((at, _)) = path.char_indices().find(|(_, c)| c.is_control()) {
            return Err(HostPathError::Control { at });
        }
        if !path.starts_with('/') {
            return Err(HostPathError::NotAbsolute);
        }
        let mut normal = String::with_capacity(path.len());
        for component in path.split('/').filter(|c| !c.is_empty()) {
            if matches!(component, "." | "..") {
                return Err(HostPathError::Climbs);
            }
            normal.push('/');
            normal.push_str(component);
        }
        if normal.is_empty() {
            normal.push('/');
        }
        Ok(Self(normal))
    }

    /// The path as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The path.
    #[must_use]
    pub fn as_path(&self) -> &Path {
        Path::new(&self.0)
    }
}

impl AsRef<Path> for HostPath {
    fn as_ref(&self) -> &Path {
        self.as_path()
    }
}

impl fmt::Display for HostPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn slashes_are_normalised_and_nothing_else() {
        for (given, normal) in [("/", "/"), ("//a///b/", "/a/b"), ("/a b/é:,", "/a b/é:,")] {
            assert_eq!(HostPath::new(given).unwrap().as_str(), normal);
        }
    }

    #[test]
    fn what_names_no_place_is_refused() {
        for (given, error) in [
            ("", HostPathError::Empty),
            ("a/b", HostPathError::NotAbsolute),
            ("/a/../b", HostPathError::Climbs),
            ("/a/.", HostPathError::Climbs),
            ("/a\0", HostPathError::Control { at: 2 }),
            ("/a\nb", HostPathError::Control { at: 2 }),
        ] {
            assert_eq!(HostPath::new(given), Err(error), "{given:?}");
        }
        assert_eq!(
            HostPath::new("/x".repeat(2048)),
            Err(HostPathError::TooLong { len: 4096 })
        );
    }
}
