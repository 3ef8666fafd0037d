//! The name of a container, as one component of a path.
//!
//! The grammar is containerd's for identifiers widened by `+`, which runc accepts. Nothing in it needs quoting in a
//! path, in a mount option or in a shell. The crate knows no other crate of this project, so it has its own type.

use std::fmt;
use std::str::FromStr;

/// The longest container id, in bytes.
pub const MAX_CONTAINER_ID_LEN: usize = 128;

/// Why a text is not a container id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ContainerIdError {
    /// The text is empty.
    #[error("container id is empty")]
    Empty,
    /// The text is longer than [`MAX_CONTAINER_ID_LEN`].
    #[error(
        "container id is {len} bytes long, at most {MAX_CONTAINER_ID_LEN} are allowed (it starts with {start:?})"
    )]
    TooLong {
        /// Length in bytes.
        len: usize,
        /// The first characters, for recognising it.
        start: String,
    },
    /// The text does not begin with a letter or a digit; this excludes `.`, `..` and what looks like an option.
    #[error("container id {id:?} must begin with a letter or a digit")]
    BadStart {
        /// The refused text.
        id: String,
    },
    /// A character outside the grammar.
    #[error("container id {id:?} has {found:?} at byte {at}; letters, digits and `_.+-` are allowed")]
    BadCharacter {
        /// The refused text.
        id: String,
        /// The first offending character.
        found: char,
        /// Its byte offset.
        at: usize,
    },
}

/// Names one container inside a sandbox: one image mount.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContainerId(String);

impl ContainerId {
    /// Parses a container id: 1 to 128 bytes, the first a letter or digit, the rest of `[A-Za-z0-9_.+-]`.
    ///
    /// # Errors
    /// [`ContainerIdError`] names the first rule the text breaks.
    pub fn new(id: impl AsRef<str>) -> Result<Self, ContainerIdError> {
        let id = id.as_ref();
        if id.is_empty() {
            return Err(ContainerIdError::Empty);
        }
        if id.len() > MAX_CONTAINER_ID_LEN {
            return Err(ContainerIdError::TooLong {
                len: id.len(),
                start: id.chars().take(16).collect(),
            });
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '+' | '-');
        if let Some((at, found)) = id.char_indices().find(|&(_, c)| !allowed(c)) {
            return Err(ContainerIdError::BadCharacter {
                id: id.to_owned(),
                found,
                at,
            });
        }
        if !id.starts_with(|c: char| c.is_ascii_alphanumeric()) {
            return Err(ContainerIdError::BadStart { id: id.to_owned() });
        }
        Ok(Self(id.to_owned()))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ContainerId {
    type Err = ContainerIdError;
    fn from_str(s: &str) -> Result<Self, ContainerIdError> {
        Self::new(s)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn accepts_what_runtimes_use() {
        for id in ["a", "0", "a.b_c-d+e", "a..b", &"f".repeat(64), &"g".repeat(128)] {
            assert_eq!(ContainerId::new(id).unwrap().as_str(), id);
        }
    }

    #[test]
    fn says_what_is_wrong_and_where() {
        let bad = |id: &str| ContainerId::new(id).unwrap_err();
        assert_eq!(bad(""), ContainerIdError::Empty);
        for start in [".", "..", "../x", ".hidden", "-rf", "_x", "+x"] {
            assert!(!matches!(bad(start), ContainerIdError::Empty), "{start}");
        }
        assert!(matches!(bad(".."), ContainerIdError::BadStart { .. }));
        assert!(matches!(
            bad("a/b"),
            ContainerIdError::BadCharacter {
                found: '/',
                at: 1,
                ..
            }
        ));
        assert!(matches!(
            bad("x\ny"),
            ContainerIdError::BadCharacter {
                found: '\n',
                at: 1,
                ..
            }
        ));
        assert!(matches!(
            bad("x\0"),
            ContainerIdError::BadCharacter { found: '\0', .. }
        ));
        assert!(matches!(
            bad("bé"),
            ContainerIdError::BadCharacter {
                found: 'é',
                at: 1,
                ..
            }
        ));
        assert!(matches!(
            bad(&"x".repeat(129)),
            ContainerIdError::TooLong { len: 129, .. }
        ));
        assert!(!bad("x\ny").to_string().contains('\n'), "an error is one line");
    }

    proptest! {
        /// The model is the grammar read byte by byte, not the code's order of checks.
        #[test]
        fn agrees_with_the_grammar(id in "[a-zA-Z0-9_.+/,:\\\\ \n-]{0,140}") {
            let bytes = id.as_bytes();
            let model = (1..=128).contains(&bytes.len())
                && bytes[0].is_ascii_alphanumeric()
                && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"_.+-".contains(b));
            prop_assert_eq!(ContainerId::new(&id).is_ok(), model);
        }
    }
}
