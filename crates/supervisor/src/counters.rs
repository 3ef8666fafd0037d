//! How much of an image was read, from the daemon's own counters.
//!
//! Asked on a connection of its own: reading counters never waits for a mount, and changes nothing.

use nydusbox_protocol::{Endpoint, MountPoint};
use serde::Deserialize;

use crate::client::{ApiClient, CallError};

/// Bytes read of one image since it was mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageCounters {
    /// What the guest read from the image's files, in bytes.
    pub guest_bytes: u64,
    /// What was fetched from where the blobs are, in bytes. Images that share a first blob share this count.
    pub backend_bytes: u64,
}

#[derive(Deserialize)]
struct FsCounters {
    data_read: u64,
}

#[derive(Deserialize)]
struct BackendCounters {
    read_amount_total: u64,
}

pub(crate) async fn read(mut client: ApiClient, at: &MountPoint) -> Result<ImageCounters, CallError> {
    let fs: FsCounters = client.counters(Endpoint::Metrics, Some(at.as_str())).await?;
    let backend: BackendCounters = client
        .counters(Endpoint::MetricsBackend, Some(at.as_str()))
        .await?;
    Ok(ImageCounters {
        guest_bytes: fs.data_read,
        backend_bytes: backend.read_amount_total,
    })
}
