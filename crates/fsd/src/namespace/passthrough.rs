//! Makes the file system that shares a host directory.

use std::path::Path;
use std::time::Duration;

use fuse_backend_rs::passthrough::{CachePolicy, Config};

use super::error::MountError;
use super::guarded::GuardedPassthrough;

/// How long a guest may believe attributes and names. The host may change the directory at any time, so it is
/// short; virtiofsd has the same for its `auto` cache mode.
const CACHE_TIMEOUT: Duration = Duration::from_secs(1);

pub(super) fn build(source: &str) -> Result<GuardedPassthrough, MountError> {
    let path = Path::new(source);
    let refused = |source| MountError::BadSource {
        path: path.to_owned(),
        source,
    };
    if !std::fs::metadata(path).map_err(refused)?.is_dir() {
        return Err(refused(rustix::io::Errno::NOTDIR.into()));
    }
    // Whether it can be listed shows now, not when the guest looks.
    std::fs::read_dir(path).map_err(refused)?;
    let config = Config {
        root_dir: source.to_owned(),
        do_import: false,
        // The host works on the same files: a guest that kept writes to itself would show old data to it, and
        // would not see what it appends.
        writeback: false,
        no_open: false,
        no_opendir: false,
        xattr: true,
        killpriv_v2: true,
        cache_policy: CachePolicy::Auto,
        entry_timeout: CACHE_TIMEOUT,
        attr_timeout: CACHE_TIMEOUT,
        // A guest's O_DIRECT is about its own cache; on the host it would only demand alignment.
        allow_direct_io: false,
        ..Config::default()
    };
    GuardedPassthrough::new(config).map_err(refused)
}
