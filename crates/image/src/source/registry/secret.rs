//! Credentials, which nothing ever shows.

use std::fmt;

/// A password or token. Its `Debug` text says only that there is one, and there is no `Display`.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Secret(String);

impl Secret {
    /// Keeps `secret` from being shown.
    pub(super) fn new(secret: String) -> Self {
        Self(secret)
    }

    /// The secret itself, for a request that has to have it.
    pub(super) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Credentials {
    /// A user and a password.
    Basic {
        /// The user.
        user: String,
        /// The password.
        password: Secret,
    },
    /// A refresh token, which a token server takes instead of a password.
    IdentityToken(Secret),
}
