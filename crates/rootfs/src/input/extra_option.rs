//! `extraoption=`: how nydus-snapshotter tells a runtime which image to mount.
//!
//! The value is base64 of `{"source", "config", "snapshotdir", "fs_version"}`, `config` being JSON inside a string.

use serde::Deserialize;

use super::document::{DocumentError, decode};
use super::rafs_image::{Fields, RafsImage, RafsImageError};

/// Why an `extraoption` is refused. Nothing of its content is part of it: the configuration holds credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExtraOptionError {
    /// Not a JSON object in base64.
    #[error("extraoption cannot be read")]
    Document(#[source] DocumentError),
    /// A field is missing or unusable.
    #[error("extraoption describes no image")]
    Image(#[source] RafsImageError),
}

#[derive(Deserialize)]
struct ExtraOption {
    source: Option<String>,
    config: Option<String>,
    snapshotdir: Option<String>,
    fs_version: Option<String>,
}

/// Reads the value of one `extraoption=`.
///
/// # Errors
/// [`ExtraOptionError`], without anything of the value.
pub fn parse_extra_option(value: &str) -> Result<RafsImage, ExtraOptionError> {
    let option: ExtraOption = decode(value).map_err(ExtraOptionError::Document)?;
    RafsImage::from_fields(Fields {
        source: option.source,
        config: option.config,
        snapshot_dir: ("snapshotdir", option.snapshotdir),
        version: ("fs_version", option.fs_version),
        versions: ["v5", "v6"],
    })
    .map_err(ExtraOptionError::Image)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::HostPathError;
    use crate::input::fixtures::{self, encoded, without};
    use crate::input::{RafsConfigError, RafsConfigVersion, RafsVersion};
    use serde_json::json;

    #[test]
    fn what_the_snapshotter_writes_is_read() {
        let image = parse_extra_option(&encoded(&fixtures::extra_option())).unwrap();
        assert_eq!(image.source().as_str(), fixtures::BOOTSTRAP);
        assert_eq!(image.snapshot_dir().as_str(), fixtures::SNAPSHOT_DIR);
        assert_eq!(image.version(), RafsVersion::V6);
        assert_eq!(image.config().version(), RafsConfigVersion::V1);
        assert_eq!(image.config().expose(), fixtures::config_v1());
        let mut v5 = fixtures::extra_option();
        v5["fs_version"] = json!("v5");
        v5["config"] = json!(fixtures::config_v2());
        let image = parse_extra_option(&encoded(&v5)).unwrap();
        assert_eq!(
            (image.version(), image.config().version()),
            (RafsVersion::V5, RafsConfigVersion::V2)
        );
    }

    #[test]
    fn every_field_is_needed_and_checked() {
        for field in ["source", "config", "snapshotdir", "fs_version"] {
            let error = parse_extra_option(&encoded(&without(fixtures::extra_option(), field))).unwrap_err();
            assert_eq!(error, ExtraOptionError::Image(RafsImageError::Missing { field }));
        }
        let with = |field: &str, value: &str| {
            let mut option = fixtures::extra_option();
            option[field] = json!(value);
            match parse_extra_option(&encoded(&option)).unwrap_err() {
                ExtraOptionError::Image(error) => error,
                ExtraOptionError::Document(error) => panic!("{error}"),
            }
        };
        let path = |field, source| RafsImageError::Path { field, source };
        assert_eq!(
            with("source", "image.boot"),
            path("source", HostPathError::NotAbsolute)
        );
        assert_eq!(
            with("snapshotdir", "/a/../b"),
            path("snapshotdir", HostPathError::Climbs)
        );
        assert_eq!(with("config", ""), RafsImageError::Config(RafsConfigError::Empty));
        for version in ["", "v4", "V6", "rafsv6", "6"] {
            assert!(
                matches!(with("fs_version", version), RafsImageError::Version { .. }),
                "{version:?}"
            );
        }
    }
}
