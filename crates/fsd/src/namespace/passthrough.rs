//! What a mount request says about a shared directory.

use std::path::Path;
use std::sync::Arc;

use nydusbox_protocol::{MountCommand, MountPoint};
use serde::Deserialize;

use super::error::MountError;
use crate::passthrough::{Common, Share, ShareOptions};

/// The configuration of a share: a JSON object. nydusd has none and takes any text, so other text is ignored.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ShareConfig {
    read_only: bool,
}

fn parse(at: &MountPoint, text: &str) -> Result<ShareConfig, MountError> {
    if !text.trim_start().starts_with('{') {
        return Ok(ShareConfig::default());
    }
    serde_json::from_str(text).map_err(|error| MountError::BadConfig {
        mount_point: at.clone(),
        why: format!("is not that of a shared directory: {error}"),
    })
}

pub(super) fn build(
    at: &MountPoint,
    command: &MountCommand,
    common: &Arc<Common>,
) -> Result<Share, MountError> {
    let config = parse(at, &command.config)?;
    let options = ShareOptions {
        read_only: config.read_only,
    };
    let path = Path::new(&command.source);
    Share::new(path, options, Arc::clone(common)).map_err(|errno| MountError::BadSource {
        path: path.to_owned(),
        source: errno.into(),
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_writable_unless_its_configuration_says_otherwise() {
        let at = MountPoint::new("/m").unwrap();
        for (text, read_only) in [
            ("", false),
            ("none", false),
            ("{}", false),
            (r#"{"read_only":true,"x":1}"#, true),
        ] {
            assert_eq!(parse(&at, text).unwrap().read_only, read_only, "{text}");
        }
        assert!(matches!(
            parse(&at, "{read_only"),
            Err(MountError::BadConfig { .. })
        ));
    }
}
