//! What `nydusbox start` (or `adopt`) and the supervisor it has started say to each other, on a socket that is the supervisor's
//! standard input:
//!
//! ```text
//! start       -> task (one line of JSON)
//! supervisor  -> reply (one line of JSON), when the share is served or the start has failed and is undone
//! start       -> one byte: the reply has arrived
//! ```
//! The task travels here and not as arguments, because those can be read by everyone. Whoever of the two is gone
//! closes the socket: a supervisor that sees that before the last byte undoes the start. So a start that is
//! interrupted, or killed, leaves nothing.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nydusbox::{Limits, OnExit};
use nydusbox_protocol::{LogLevel, SandboxId, ShareConfig};
use serde::{Deserialize, Serialize};

use crate::control::wire::{ControlError, SandboxInfo};

/// The last byte.
pub(super) const ARRIVED: u8 = b'\n';

/// What a supervisor is begun for.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) enum Task {
    /// A new sandbox.
    Start(Box<Order>),
    /// One whose supervisor is gone.
    Adopt {
        id: SandboxId,
        state_dir: PathBuf,
        log_level: LogLevel,
    },
}

impl Task {
    pub(super) fn id(&self) -> &SandboxId {
        match self {
            Self::Start(order) => &order.id,
            Self::Adopt { id, .. } => id,
        }
    }

    pub(super) fn state_dir(&self) -> &Path {
        match self {
            Self::Start(order) => &order.state_dir,
            Self::Adopt { state_dir, .. } => state_dir,
        }
    }

    pub(super) fn log_level(&self) -> LogLevel {
        match self {
            Self::Start(order) => order.log_level,
            Self::Adopt { log_level, .. } => *log_level,
        }
    }
}

/// A sandbox to be started. `Debug` is not derived: arguments for the daemon may hold secrets.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) id: SandboxId,
    /// Absolute, like every path here: the supervisor works in the root directory.
    pub(crate) state_dir: PathBuf,
    pub(crate) share: PathBuf,
    #[serde(default)]
    pub(crate) share_config: ShareConfig,
    pub(crate) daemon: DaemonChoice,
    pub(crate) extra_args: Vec<OsString>,
    pub(crate) on_exit: OnExit,
    pub(crate) netns: NetnsChoice,
    pub(crate) limits: LimitsChoice,
    pub(crate) log_level: LogLevel,
    pub(crate) start_deadline: Duration,
    /// `None` for never.
    pub(crate) health_interval: Option<Duration>,
    pub(crate) stop_grace: Duration,
}

/// `--daemon`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum DaemonChoice {
    /// The daemon in this executable.
    Builtin,
    /// A nydusd.
    Stock(PathBuf),
}

/// `--netns`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum NetnsChoice {
    Host,
    /// That of `nydusbox start`, which its supervisor shares.
    Current,
    Path(PathBuf),
}

/// `--memory-max`, `--pids-max`, `--cgroup-parent`, `--require-limits`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LimitsChoice {
    pub(crate) memory_max_bytes: Option<u64>,
    pub(crate) pids_max: Option<u64>,
    pub(crate) cgroup_parent: Option<PathBuf>,
    pub(crate) required: bool,
}

impl LimitsChoice {
    pub(super) fn limits(&self) -> Limits {
        let mut limits = Limits::new();
        if let Some(bytes) = self.memory_max_bytes {
            limits = limits.memory_max_bytes(bytes);
        }
        if let Some(count) = self.pids_max {
            limits = limits.pids_max(count);
        }
        if let Some(parent) = &self.cgroup_parent {
            limits = limits.cgroup_parent(parent);
        }
        if self.required { limits.required() } else { limits }
    }
}

/// How the start went.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    /// The share is served.
    Serving(Box<SandboxInfo>),
    /// There was nothing to adopt but the remains of a sandbox, which are gone but for these.
    CleanedUp(Vec<String>),
    /// Nothing was started, or it is gone again.
    Failed(ControlError),
}
