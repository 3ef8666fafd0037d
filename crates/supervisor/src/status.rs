//! What anyone may know about a sandbox at any time: a value, published whenever it changes.

use std::path::PathBuf;

use nydusbox_protocol::{FsType, MountPoint};
use serde::Serialize;

use crate::exit::Exit;
use crate::health::HealthReport;

/// The state of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Grows by one with each change.
    pub generation: u64,
    /// What it is doing.
    pub phase: StatusPhase,
    /// The daemon's process id, for people; it may be gone.
    pub pid: u32,
    /// The cgroup (v2) the daemon has to itself, if it has one.
    pub cgroup: Option<PathBuf>,
    /// The version the daemon names in its answers; `unknown` when it was built outside its repository.
    pub program_version: String,
    /// Whether a VMM is connected to the vhost-user socket; `None` when that is not known. Our daemon is asked, with
    /// its health; at a stock nydusd, which does not tell, it is looked from outside.
    pub vmm_attached: Option<bool>,
    /// How well it is, as observed last.
    pub health: HealthReport,
    /// What is mounted, in the order in which it was.
    pub mounts: Vec<MountStatus>,
}

/// What a sandbox is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum StatusPhase {
    /// The daemon serves.
    Serving,
    /// The sandbox is being stopped.
    Stopping,
    /// The daemon ended, and another one is being put in its place. Mounts and unmounts wait meanwhile.
    Recovering {
        /// The how manieth attempt in a row, from 1.
        attempt: u32,
    },
    /// The daemon ended without being asked to, and is not replaced.
    Exited(Exit),
    /// Stopped; the directory is gone, unless a mount or a process is left ([`crate::StopOutcome::leftovers`]). `None`
    /// when the daemon was killed and would not end.
    Stopped(Option<Exit>),
}

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MountStatus {
    /// Where.
    pub at: MountPoint,
    /// What kind.
    pub fs_type: FsType,
    /// The bootstrap or the directory.
    pub source: String,
    /// The snapshot's directory that is bound to `snapshotdir` in the container's directory of the share.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshotdir: Option<PathBuf>,
    /// Whether the daemon has confirmed it. Otherwise the call is under way, or its answer was lost.
    pub confirmed: bool,
}
