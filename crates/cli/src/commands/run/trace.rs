//! `--record-trace`: what the run reads of its image, as a file for `nydusbox image optimize`.

use std::path::PathBuf;

use nydusbox::Sandbox;
use nydusbox_image::{StartupTrace, TraceRead};
use nydusbox_protocol::MountPoint;

use crate::error::Failure;

/// Where a run's trace goes.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) file: PathBuf,
    /// The image's.
    pub(super) bootstrap: PathBuf,
}

impl Record {
    /// Has the daemon record. The guest must not be there yet.
    pub(super) async fn begin(&self, sandbox: &Sandbox, at: &MountPoint) -> Result<(), Failure> {
        sandbox.start_trace(at).await.map_err(|e| {
            Failure::new("record a trace", &e).hint("only the built-in daemon records what is read")
        })
    }

    /// Writes the file.
    pub(super) async fn end(&self, sandbox: &Sandbox, at: &MountPoint) -> Result<(), Failure> {
        let recorded = sandbox
            .trace(at)
            .await
            .map_err(|e| Failure::new("record a trace", &e))?;
        let reads = recorded
            .reads
            .iter()
            .map(|read| TraceRead::of_encoded(&read.path, read.offset, read.length, read.ms));
        StartupTrace::of_image(&self.bootstrap, recorded.complete, reads.collect())
            .and_then(|trace| trace.write(&self.file))
            .map_err(|e| Failure::new("record a trace", &e))
    }
}
