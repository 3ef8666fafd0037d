//! What a mount request says about a shared directory.

use std::path::Path;
use std::sync::Arc;

use nydusbox_protocol::{MountCommand, MountPoint, ShareConfig};

use super::error::MountError;
use crate::passthrough::{Common, Share, ShareOptions, XattrMapError};

/// The configuration of a share is a JSON object. nydusd has none and takes any text, so other text is ignored.
fn parse(at: &MountPoint, text: &str) -> Result<ShareOptions, MountError> {
    if !text.trim_start().starts_with('{') {
        return Ok(ShareOptions::default());
    }
    let bad = |why| MountError::BadConfig {
        mount_point: at.clone(),
        why,
    };
    let config: ShareConfig = serde_json::from_str(text)
        .map_err(|error| bad(format!("is not that of a shared directory: {error}")))?;
    let xattrmap = config.xattrmap.as_deref().map(str::parse).transpose();
    Ok(ShareOptions {
        read_only: config.read_only,
        xattrmap: xattrmap.map_err(|error: XattrMapError| bad(format!("has a bad `xattrmap`: {error}")))?,
    })
}

pub(super) fn build(
    at: &MountPoint,
    command: &MountCommand,
    common: &Arc<Common>,
) -> Result<Share, MountError> {
    let options = parse(at, &command.config)?;
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
        let mapped = parse(&at, r#"{"xattrmap":":map::user.guest.:"}"#).unwrap();
        assert!(mapped.xattrmap.is_some() && !mapped.read_only);
        let bad = parse(&at, r#"{"xattrmap":":map"}"#).unwrap_err().to_string();
        assert!(bad.contains("xattrmap") && bad.contains("rule 1"), "{bad}");
    }
}
