//! What a guest calls itself.

use std::fmt;
use std::str::FromStr;

/// As many bytes as Linux has for it (`__NEW_UTS_LEN`).
const MAX_LEN: usize = 64;

/// Why a text is no host name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("host name {text:?} is not 1 to {MAX_LEN} letters, digits, dots and hyphens")]
pub struct HostnameError {
    /// The refused text.
    pub text: String,
}

/// A guest's host name. The default is `nydusbox`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hostname(String);

impl Hostname {
    /// Takes a text that is one.
    ///
    /// # Errors
    /// [`HostnameError`] if it has another character, too many, or none.
    pub fn new(text: &str) -> Result<Self, HostnameError> {
        let in_a_name = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
        if (1..=MAX_LEN).contains(&text.len()) && text.chars().all(in_a_name) {
            Ok(Self(text.to_owned()))
        } else {
            Err(HostnameError {
                text: text.to_owned(),
            })
        }
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Hostname {
    fn default() -> Self {
        Self("nydusbox".to_owned())
    }
}

impl FromStr for Hostname {
    type Err = HostnameError;

    fn from_str(text: &str) -> Result<Self, HostnameError> {
        Self::new(text)
    }
}

impl fmt::Display for Hostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_name_has_letters_digits_dots_and_hyphens() {
        let long = "a".repeat(MAX_LEN);
        for text in ["a", "run-17-2", "Db1.example.org", &long] {
            assert_eq!(
                Hostname::new(text).map(|name| name.to_string()),
                Ok(text.to_owned())
            );
        }
        let longer = "a".repeat(MAX_LEN + 1);
        for text in ["", "a b", "a_b", "caf\u{e9}", "a\n", &longer] {
            assert!(Hostname::new(text).is_err(), "{text:?}");
        }
        assert_eq!(Hostname::new("nydusbox"), Ok(Hostname::default()));
    }
}
