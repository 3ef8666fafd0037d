//! Who a command runs as, in the container's terms: what OCI's image configuration calls `User`.
//!
//! Says only what can be said without the image. What the names mean is looked up in the guest, in the container's
//! own files: `initramfs/container.sh`.

use std::fmt;
use std::str::FromStr;

/// The largest number that names a user or a group; what is above, OCI runtimes refuse, too.
const MAX_ID: u64 = i32::MAX as u64;

/// Why a text names no user.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ContainerUserError {
    /// Not of the form `USER[:GROUP]`.
    #[error("user {text:?} is not of the form USER[:GROUP]")]
    Form {
        /// The refused text.
        text: String,
    },
    /// A control character; no name has one.
    #[error("user {text:?} has a control character")]
    Control {
        /// The refused text.
        text: String,
    },
    /// A number that is none of a user or a group.
    #[error("user {text:?}: the largest user and group is {MAX_ID}")]
    TooLarge {
        /// The refused text.
        text: String,
    },
}

/// A user and a group, each a name or a number. The default is the user 0 with the groups it has in the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerUser {
    user: String,
    group: Option<String>,
}

impl ContainerUser {
    /// Reads `USER[:GROUP]`; no user is the user 0, no group are those the container's files give the user.
    ///
    /// # Errors
    /// See [`ContainerUserError`].
    pub fn new(text: &str) -> Result<Self, ContainerUserError> {
        let text_of = || text.to_owned();
        if text.chars().any(char::is_control) {
            return Err(ContainerUserError::Control { text: text_of() });
        }
        let (user, group) = text.split_once(':').unwrap_or((text, ""));
        if group.contains(':') {
            return Err(ContainerUserError::Form { text: text_of() });
        }
        for part in [user, group] {
            let is_number = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
            if is_number && part.parse().map_or(true, |id: u64| id > MAX_ID) {
                return Err(ContainerUserError::TooLarge { text: text_of() });
            }
        }
        Ok(Self {
            user: if user.is_empty() { "0" } else { user }.to_owned(),
            group: (!group.is_empty()).then(|| group.to_owned()),
        })
    }

    /// The user's name or number.
    #[must_use]
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The group's name or number; none means those the container's files give the user.
    #[must_use]
    pub fn group(&self) -> Option<&str> {
        self.group.as_deref()
    }
}

impl Default for ContainerUser {
    fn default() -> Self {
        Self {
            user: "0".to_owned(),
            group: None,
        }
    }
}

impl FromStr for ContainerUser {
    type Err = ContainerUserError;

    fn from_str(text: &str) -> Result<Self, ContainerUserError> {
        Self::new(text)
    }
}

impl fmt::Display for ContainerUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.user)?;
        match &self.group {
            Some(group) => write!(f, ":{group}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn users_and_groups_are_names_or_numbers() {
        for (text, user, group) in [
            ("", "0", None),
            ("nobody", "nobody", None),
            ("nobody:", "nobody", None),
            (":staff", "0", Some("staff")),
            ("1000:2147483647", "1000", Some("2147483647")),
        ] {
            let parsed = ContainerUser::new(text).unwrap();
            assert_eq!((parsed.user(), parsed.group()), (user, group), "{text:?}");
            assert_eq!(parsed.to_string().parse(), Ok(parsed), "{text:?}");
        }
        assert_eq!(ContainerUser::new("").unwrap(), ContainerUser::default());
    }

    #[test]
    fn what_is_no_user_is_refused() {
        let refused = |text: &str| ContainerUser::new(text).unwrap_err();
        assert!(matches!(refused("a:b:c"), ContainerUserError::Form { .. }));
        assert!(matches!(refused("a\nb"), ContainerUserError::Control { .. }));
        for text in ["2147483648", "0:2147483648", "99999999999999999999"] {
            assert!(
                matches!(refused(text), ContainerUserError::TooLarge { .. }),
                "{text}"
            );
        }
    }
}
