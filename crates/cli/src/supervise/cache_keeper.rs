//! Which blob caches a sandbox's images use: those are kept within their quotas as long as the sandbox lives.
//!
//! It is the daemon that says so: it knows of images whoever mounted them. It is asked only when something has changed:
//! an idle daemon is left alone. What keeping means is in `cache_quota.rs`.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nydusbox_protocol::{DaemonInfo, Endpoint, SocketPath};
use serde_json::Value;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use crate::cache_quota::keep;
use crate::control::ask_daemon;

/// How long the daemon may take to say what it has mounted.
const ANSWERS_WITHIN: Duration = Duration::from_secs(1);

/// Who is told that something was mounted or unmounted.
#[derive(Debug, Default)]
pub(super) struct CacheKeeper {
    changed: Notify,
}

impl CacheKeeper {
    pub(super) fn changed(&self) {
        self.changed.notify_one();
    }

    /// Keeps at it. The directories are added to `known` as they are seen.
    pub(super) async fn run(&self, api: &SocketPath, known: &mut BTreeSet<PathBuf>) -> Infallible {
        loop {
            let pause = keep(known).await.pause();
            tokio::select! {
                () = self.changed.notified() => known.extend(caches(api).await),
                () = sleep(pause) => {}
            }
        }
    }
}

/// The directories of the caches of all images that are mounted; none if the daemon does not say.
async fn caches(api: &SocketPath) -> Vec<PathBuf> {
    let asked = ask_daemon::<DaemonInfo>(api, Endpoint::DaemonInfo.path());
    let Ok(Some(info)) = timeout(ANSWERS_WITHIN, asked).await else {
        return Vec::new();
    };
    let images = info.backend_collection.iter().flat_map(|all| all.values());
    images
        .filter_map(|image| work_dir(image.config.as_ref()?))
        .collect()
}

/// The cache's directory in a configuration as the daemon shows it.
fn work_dir(config: &Value) -> Option<PathBuf> {
    let dir = Path::new(config["cache"]["filecache"]["work_dir"].as_str()?);
    // A relative one is the daemon's to find.
    dir.is_absolute().then(|| dir.to_owned())
}
