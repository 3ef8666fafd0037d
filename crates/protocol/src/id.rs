//! Names of sandboxes and containers.
//!
//! Both become one component of paths on the host, in the daemon's namespace and in the guest, so the grammar is
//! the one containerd uses for identifiers, widened by `+` (runc accepts it): nothing in it needs quoting in a
//! path, a mount option or a log line. What cannot be a component cannot be built. Next: [`crate::mount_point`].

use std::fmt;
use std::str::FromStr;

/// The longest identifier accepted, in bytes. A `sun_path` and a directory entry both leave room for it.
pub const MAX_ID_LEN: usize = 128;

/// Why a text is not an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IdError {
    /// The text is empty.
    #[error("{what} id is empty")]
    Empty {
        /// `sandbox` or `container`.
        what: &'static str,
    },
    /// The text is longer than [`MAX_ID_LEN`].
    #[error("{what} id is {len} bytes long, at most {MAX_ID_LEN} are allowed (it starts with {start:?})")]
    TooLong {
        /// `sandbox` or `container`.
        what: &'static str,
        /// Length in bytes.
        len: usize,
        /// The first characters, for recognising it.
        start: String,
    },
    /// The text does not begin with a letter or digit.
    #[error("{what} id {id:?} must begin with a letter or a digit")]
    BadStart {
        /// `sandbox` or `container`.
        what: &'static str,
        /// The refused text.
        id: String,
    },
    /// A character outside the grammar.
    #[error("{what} id {id:?} has {found:?} at byte {at}; letters, digits and `_.+-` are allowed")]
    BadCharacter {
        /// `sandbox` or `container`.
        what: &'static str,
        /// The refused text.
        id: String,
        /// The first offending character.
        found: char,
        /// Its byte offset.
        at: usize,
    },
}

fn parse(what: &'static str, id: &str) -> Result<String, IdError> {
    if id.is_empty() {
        return Err(IdError::Empty { what });
    }
    if id.len() > MAX_ID_LEN {
        return Err(IdError::TooLong {
            what,
            len: id.len(),
            start: id.chars().take(16).collect(),
        });
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '+' | '-');
    if let Some((at, found)) = id.char_indices().find(|&(_, c)| !allowed(c)) {
        return Err(IdError::BadCharacter {
            what,
            id: id.to_owned(),
            found,
            at,
        });
    }
    if !id.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return Err(IdError::BadStart {
            what,
            id: id.to_owned(),
        });
    }
    Ok(id.to_owned())
}

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Parses an identifier.
            ///
            /// # Errors
            /// [`IdError`] names the first rule the text breaks.
            pub fn new(id: impl AsRef<str>) -> Result<Self, IdError> {
                parse($what, id.as_ref()).map(Self)
            }

            /// The identifier as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(s: &str) -> Result<Self, IdError> {
                Self::new(s)
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(s: String) -> Result<Self, IdError> {
                Self::new(s)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

id_type!(
    /// Names one sandbox: one VM and the daemon that serves it.
    SandboxId,
    "sandbox"
);
id_type!(
    /// Names one container inside a sandbox: one image mount.
    ContainerId,
    "container"
);

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn accepts_what_runtimes_use() {
        for id in [
            "a",
            "0",
            "c1",
            "a.b_c-d+e",
            &"f".repeat(64),
            &"g".repeat(MAX_ID_LEN),
        ] {
            assert_eq!(ContainerId::new(id).unwrap().as_str(), id);
        }
    }

    #[test]
    fn refuses_what_could_leave_its_directory_or_a_line() {
        assert_eq!(ContainerId::new(""), Err(IdError::Empty { what: "container" }));
        assert!(matches!(SandboxId::new(".."), Err(IdError::BadStart { .. })));
        assert!(matches!(SandboxId::new(".hidden"), Err(IdError::BadStart { .. })));
        assert!(matches!(SandboxId::new("-rf"), Err(IdError::BadStart { .. })));
        assert!(matches!(
            ContainerId::new("a/b"),
            Err(IdError::BadCharacter {
                found: '/',
                at: 1,
                ..
            })
        ));
        assert!(matches!(
            ContainerId::new("x\ny"),
            Err(IdError::BadCharacter { found: '\n', .. })
        ));
        assert!(matches!(
            ContainerId::new("ä"),
            Err(IdError::BadCharacter { found: 'ä', .. })
        ));
        assert!(matches!(
            ContainerId::new("x".repeat(4096)),
            Err(IdError::TooLong { len: 4096, .. })
        ));
    }

    #[test]
    fn an_error_is_one_line_whatever_the_input() {
        let text = ContainerId::new("x\ny").unwrap_err().to_string();
        assert!(!text.contains('\n'), "{text}");
    }

    #[test]
    fn serde_goes_through_the_same_grammar() {
        assert!(serde_json::from_str::<ContainerId>("\"a/b\"").is_err());
        assert_eq!(
            serde_json::to_string(&ContainerId::new("ab").unwrap()).unwrap(),
            "\"ab\""
        );
    }
}
