//! What a mount request can ask for besides the directory it shares.

use serde::{Deserialize, Serialize};

/// Configuration of a share, as JSON in [`MountCommand::config`](crate::MountCommand). The embedded daemon's own:
/// nydusd has none and ignores what stands there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ShareConfig {
    /// The guest can change nothing: every attempt is EROFS.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// Extended attributes have other names on the host: virtiofsd's `--xattrmap` rules.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub xattrmap: Option<String>,
}

impl ShareConfig {
    /// The text for a mount command: nothing where nothing is asked for, which is what nydusd is sent.
    #[must_use]
    pub fn to_text(&self) -> String {
        if *self == Self::default() {
            return String::new();
        }
        // A flag and a string always serialise.
        serde_json::to_string(self).unwrap_or_default()
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_read_back_and_nothing_is_no_text() {
        assert_eq!(ShareConfig::default().to_text(), "");
        let config = ShareConfig {
            read_only: true,
            xattrmap: Some(":map::user.\"x\".:".into()),
        };
        let read: ShareConfig = serde_json::from_str(&config.to_text()).unwrap();
        assert_eq!(read, config);
        let newer: ShareConfig = serde_json::from_str(r#"{"read_only":true,"x":1}"#).unwrap();
        assert_eq!((newer.read_only, newer.xattrmap), (true, None));
    }
}
