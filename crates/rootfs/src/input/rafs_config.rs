//! The configuration an image is mounted with: checked for a backend, kept as it came, never shown.
//!
//! Snapshotters send version 1 (`device.backend`), newer tools version 2 (`"version": 2` and `backend`); nydusd takes
//! both. What the backend needs is the daemon's to judge. That there is one is judged here, because a daemon says
//! of its absence only that the configuration is invalid.

use std::fmt;

use serde_json::{Map, Value};

/// Which of nydus' two configuration formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RafsConfigVersion {
    /// With a section `device`.
    V1,
    /// With `"version": 2`.
    V2,
}

/// Why a text is not a configuration that can mount an image. Nothing of the text is part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RafsConfigError {
    /// Nothing in it.
    #[error("is empty")]
    Empty,
    /// Not JSON.
    #[error("is not JSON (line {line}, column {column})")]
    NotJson {
        /// From 1.
        line: usize,
        /// From 1; 0 at the start of a line.
        column: usize,
    },
    /// JSON, but something else than an object.
    #[error("is JSON that is not an object")]
    NotAnObject,
    /// `version` is something else than 2.
    #[error("has a `version` other than 2")]
    UnknownVersion,
    /// Neither version 2 nor version 1.
    #[error("has neither `\"version\": 2` nor version 1's section `device`")]
    NoVersion,
    /// Made for the kernel's fscache, which has no part in a microVM's share.
    #[error("is for fscache; set `fs_driver = \"fusedev\"` in the snapshotter's configuration")]
    Fscache,
    /// The backend is missing or not an object.
    #[error("lacks the section `{section}`")]
    NoBackend {
        /// `backend` or `device.backend`.
        section: &'static str,
    },
    /// The backend doesn't say what it is.
    #[error("has a section `{section}` without `type`")]
    NoBackendType {
        /// `backend` or `device.backend`.
        section: &'static str,
    },
}

/// A configuration with a backend. Its text holds credentials: `Debug` shows its size only.
#[derive(Clone, PartialEq, Eq)]
pub struct RafsConfig {
    text: String,
    version: RafsConfigVersion,
}

impl RafsConfig {
    /// Checks that `text` is JSON of version 1 or 2 and names a backend.
    ///
    /// # Errors
    /// [`RafsConfigError`] says what is missing.
    pub fn new(text: impl Into<String>) -> Result<Self, RafsConfigError> {
        let text = text.into();
        let version = version_of(&text)?;
        Ok(Self { text, version })
    }

    /// The text, unchanged. **It holds credentials**: for the daemon's API only.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.text
    }

    /// Its format.
    #[must_use]
    pub fn version(&self) -> RafsConfigVersion {
        self.version
    }
}

impl fmt::Debug for RafsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RafsConfig")
            .field("version", &self.version)
            .field("len", &self.text.len())
            .finish_non_exhaustive()
    }
}

fn version_of(text: &str) -> Result<RafsConfigVersion, RafsConfigError> {
    if text.trim_ascii().is_empty() {
        return Err(RafsConfigError::Empty);
    }
    let value: Value = serde_json::from_str(text).map_err(|error| RafsConfigError::NotJson {
        line: error.line(),
        column: error.column(),
    })?;
    let Value::Object(config) = value else {
        return Err(RafsConfigError::NotAnObject);
    };
    if let Some(version) = config.get("version") {
        if version.as_u64() != Some(2) {
            return Err(RafsConfigError::UnknownVersion);
        }
        check_backend(&config, "backend")?;
        return Ok(RafsConfigVersion::V2);
    }
    let Some(device) = config.get("device") else {
        // The snapshotter's fscache form: `{"type": "bootstrap", "config": {"backend_type": …}}`.
        let fscache = config.get("config").and_then(|c| c.get("backend_type")).is_some();
        return Err(if fscache {
            RafsConfigError::Fscache
        } else {
            RafsConfigError::NoVersion
        });
    };
    let empty = Map::new();
    check_backend(device.as_object().unwrap_or(&empty), "device.backend")?;
    Ok(RafsConfigVersion::V1)
}

fn check_backend(parent: &Map<String, Value>, section: &'static str) -> Result<(), RafsConfigError> {
    let Some(Value::Object(backend)) = parent.get("backend") else {
        return Err(RafsConfigError::NoBackend { section });
    };
    match backend.get("type").and_then(Value::as_str) {
        None | Some("") => Err(RafsConfigError::NoBackendType { section }),
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn both_versions_are_known_by_their_backend() {
        let v1 = RafsConfig::new(r#"{"device":{"backend":{"type":"registry","config":{}}},"mode":"direct"}"#);
        assert_eq!(v1.unwrap().version(), RafsConfigVersion::V1);
        let v2 = RafsConfig::new(r#"{"version":2,"backend":{"type":"localfs"},"device":null}"#);
        assert_eq!(v2.unwrap().version(), RafsConfigVersion::V2);
    }

    #[test]
    fn what_is_missing_is_named() {
        use RafsConfigError as E;
        for (text, error) in [
            ("", E::Empty),
            (" \n", E::Empty),
            ("{", E::NotJson { line: 1, column: 1 }),
            ("[]", E::NotAnObject),
            ("{}", E::NoVersion),
            (r#"{"version":1,"backend":{"type":"x"}}"#, E::UnknownVersion),
            (r#"{"version":"2","backend":{"type":"x"}}"#, E::UnknownVersion),
            (r#"{"version":2}"#, E::NoBackend { section: "backend" }),
            (
                r#"{"version":2,"backend":null}"#,
                E::NoBackend { section: "backend" },
            ),
            (
                r#"{"version":2,"backend":{}}"#,
                E::NoBackendType { section: "backend" },
            ),
            (
                r#"{"device":null}"#,
                E::NoBackend {
                    section: "device.backend",
                },
            ),
            (
                r#"{"device":{"backend":{"type":""}}}"#,
                E::NoBackendType {
                    section: "device.backend",
                },
            ),
            (
                r#"{"type":"bootstrap","config":{"id":"x","backend_type":"registry"}}"#,
                E::Fscache,
            ),
        ] {
            assert_eq!(RafsConfig::new(text), Err(error), "{text}");
        }
    }

    #[test]
    fn the_text_is_kept_and_not_shown() {
        let text = r#"{"version":2,"backend":{"type":"registry","registry":{"auth":"SECRET"}}}"#;
        let config = RafsConfig::new(text).unwrap();
        assert_eq!(config.expose(), text);
        assert!(!format!("{config:?}").contains("SECRET"));
    }
}
