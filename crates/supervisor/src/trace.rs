//! What guests read of an image, recorded by its daemon.
//!
//! Asked on a connection of its own, like counters. A stock nydusd has no such record.

use nydusbox_protocol::{ErrorCode, MountPoint, ReadTrace};

use crate::client::{ApiClient, CallError};

/// Why what is read of an image is not recorded, or the record is not to be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TraceError {
    /// The daemon does not know how; a stock nydusd doesn't.
    #[error("record what is read at {at}: the daemon cannot")]
    Unsupported {
        /// Where the image is mounted.
        at: MountPoint,
    },
    /// Recording was not begun, or the daemon is another one since.
    #[error("get what was read at {at}: it was not recorded")]
    NotRecorded {
        /// Where the image is mounted.
        at: MountPoint,
    },
    /// The daemon refused or could not be asked.
    #[error("record what is read at {at}")]
    Call {
        /// Where the image is mounted.
        at: MountPoint,
        /// What it said.
        #[source]
        source: CallError,
    },
}

impl TraceError {
    fn new(at: &MountPoint, source: CallError) -> Self {
        let at = at.clone();
        match source {
            // A path that a stock nydusd has no endpoint for.
            CallError::Refused {
                status: 404,
                code: ErrorCode::Undefined | ErrorCode::NoRoute,
                ..
            } => Self::Unsupported { at },
            CallError::Refused {
                code: ErrorCode::NoCounter,
                ..
            } => Self::NotRecorded { at },
            source => Self::Call { at, source },
        }
    }
}

pub(crate) async fn record(mut client: ApiClient, at: &MountPoint, on: bool) -> Result<(), TraceError> {
    client
        .record_trace(at, on)
        .await
        .map_err(|e| TraceError::new(at, e))
}

pub(crate) async fn read(mut client: ApiClient, at: &MountPoint) -> Result<ReadTrace, TraceError> {
    client.trace(at).await.map_err(|e| TraceError::new(at, e))
}
