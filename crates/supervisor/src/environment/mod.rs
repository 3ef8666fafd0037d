//! What a daemon runs in: its network namespace, its limits, and what becomes of it when the supervisor dies.
//!
//! Here is what a caller can ask for. It is made ready before the daemon is spawned (`prepared`), put round it while
//! it waits to be executed, and undone with it: a cgroup v2 leaf (`cgroup`), resource limits (`rlimit`), a network
//! namespace, the guardian (`guardian`). A limit that cannot be applied is reported and the daemon runs without it,
//! unless the caller requires it. Nothing here is paid for unless it is asked for, except the guardian.

mod cgroup;
mod guardian;
mod prepared;
mod rlimit;

use std::io;
use std::path::{Path, PathBuf};

use nydusbox_protocol::SandboxId;
use rustix::process::Resource;
use serde::{Deserialize, Serialize};

pub(crate) use cgroup::{leaf_of, remove_leaf};
pub(crate) use prepared::{Prepared, Surroundings};

/// The shell that runs the two one-line helpers.
const SHELL: &str = "/bin/sh";

/// The network namespace a daemon runs in. Its sockets are unix sockets and reachable from any.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Netns {
    /// That of the thread which starts the sandbox.
    #[default]
    Current,
    /// That of process 1, as `/proc` shows it: the host's, where this process is not in a PID namespace of its own.
    Host,
    /// One bound to a path, such as `/run/netns/NAME` or `/proc/PID/ns/net`.
    Path(PathBuf),
}

impl Netns {
    pub(crate) fn path(&self) -> Option<PathBuf> {
        match self {
            Self::Current => None,
            Self::Host => Some("/proc/1/ns/net".into()),
            Self::Path(path) => Some(path.clone()),
        }
    }
}

/// What becomes of the daemon when the process that supervises it ends without stopping it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnSupervisorDeath {
    /// It is killed.
    #[default]
    Kill,
    /// It goes on, for a successor to adopt.
    Spare,
}

/// Bounds on a daemon's resources.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Limits {
    memory_max_bytes: Option<u64>,
    pids_max: Option<u64>,
    cgroup_parent: Option<PathBuf>,
    open_files: Option<u64>,
    core_bytes: Option<u64>,
    required: bool,
}

impl Limits {
    /// No limits.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// `memory.max` of the daemon's cgroup, in bytes. Page cache of its blob cache counts.
    #[must_use]
    pub fn memory_max_bytes(mut self, bytes: u64) -> Self {
        self.memory_max_bytes = Some(bytes);
        self
    }

    /// `pids.max` of the daemon's cgroup: processes and threads.
    #[must_use]
    pub fn pids_max(mut self, count: u64) -> Self {
        self.pids_max = Some(count);
        self
    }

    /// The cgroup (v2, a directory) in which the daemon's own is made; one is made then even without a limit on it.
    /// By default it is made beside the cgroup of this process.
    #[must_use]
    pub fn cgroup_parent(mut self, path: impl Into<PathBuf>) -> Self {
        self.cgroup_parent = Some(path.into());
        self
    }

    /// RLIMIT_NOFILE, soft and hard. The daemon is told not to raise it.
    #[must_use]
    pub fn open_files(mut self, count: u64) -> Self {
        self.open_files = Some(count);
        self
    }

    /// RLIMIT_CORE, soft and hard, in bytes; 0 for no core files, which hold registry credentials.
    #[must_use]
    pub fn core_bytes(mut self, bytes: u64) -> Self {
        self.core_bytes = Some(bytes);
        self
    }

    /// A limit that cannot be applied fails the start, instead of being an event.
    #[must_use]
    pub fn required(mut self) -> Self {
        self.required = true;
        self
    }

    /// Whether the daemon must leave its own limit of open files alone.
    pub(crate) fn bounds_open_files(&self) -> bool {
        self.open_files.is_some()
    }

    fn wants_cgroup(&self) -> bool {
        self.memory_max_bytes.is_some() || self.pids_max.is_some() || self.cgroup_parent.is_some()
    }

    fn rlimits(&self) -> Vec<(Resource, &'static str, u64)> {
        let open_files = self.open_files.map(|n| (Resource::Nofile, "open files", n));
        let core = self.core_bytes.map(|n| (Resource::Core, "bytes of core file", n));
        open_files.into_iter().chain(core).collect()
    }
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Environment {
    pub(crate) netns: Netns,
    pub(crate) limits: Limits,
    pub(crate) on_supervisor_death: OnSupervisorDeath,
}

impl Environment {
    /// The cgroup that will be made for the daemon of the sandbox with this directory, if one is wanted and it is known
    /// where.
    pub(crate) fn cgroup(&self, sandbox: &SandboxId, dir: &Path) -> Option<PathBuf> {
        if !self.limits.wants_cgroup() {
            return None;
        }
        let parent = match &self.limits.cgroup_parent {
            Some(parent) => parent.clone(),
            None => cgroup::default_parent().ok()?,
        };
        Some(parent.join(cgroup::leaf_name(sandbox, dir).ok()?))
    }
}

/// Why a daemon could not be given the environment asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnvironmentError {
    /// The network namespace cannot be opened or entered.
    #[error("enter the network namespace {path:?}")]
    Netns {
        /// Its path.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// A limit that is required cannot be applied.
    #[error("apply the required limit {what}")]
    Limit {
        /// The limit.
        what: &'static str,
        /// Why not.
        #[source]
        source: LimitError,
    },
}

/// Why a limit could not be applied.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LimitError {
    /// There is no cgroup v2 hierarchy.
    #[error("find a cgroup v2 hierarchy: none is mounted")]
    NoCgroup2,
    /// The parent asked for is a directory of another file system.
    #[error("make a cgroup in {path:?}: it is not in a cgroup v2 hierarchy")]
    NotACgroup {
        /// The parent.
        path: PathBuf,
    },
    /// The controller is absent there, or bound to a cgroup v1 hierarchy.
    #[error("use the {controller} controller in {path:?}: it is not available there")]
    NoController {
        /// Its name.
        controller: &'static str,
        /// The parent cgroup.
        path: PathBuf,
    },
    /// A cgroup of this name has processes in it.
    #[error("make the cgroup {path:?}: it is in use")]
    InUse {
        /// The cgroup.
        path: PathBuf,
    },
    /// Something could not be made, read or written.
    #[error("{action} {path:?}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// It is above the hard limit, which may not be raised. The hard limit is applied.
    #[error("allow {wanted} {what}: the hard limit is {hard}")]
    Hard {
        /// What is limited.
        what: &'static str,
        /// What was asked for.
        wanted: u64,
        /// What there is at most.
        hard: u64,
    },
    /// The system refused.
    #[error("limit the {what}")]
    Refused {
        /// What is limited.
        what: &'static str,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The guardian could not be started.
    #[error("start {SHELL:?} to watch over the supervisor")]
    Guardian {
        /// What the system says.
        #[source]
        source: io::Error,
    },
}
