//! What a daemon is started with.

use std::fmt;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use nydusbox_protocol::{BuildVersion, LogLevel, MountCommand, MountPoint, SocketPath};

/// Where a listening socket comes from.
#[derive(Debug)]
pub enum SocketSource {
    /// Bound here and removed here; a live socket at the path is never taken over.
    Bind(SocketPath),
    /// Bound and listening already, handed down by whoever started us and removed by them.
    Inherited(OwnedFd),
}

/// A mount made before the daemon answers.
#[derive(Debug, Clone)]
pub struct InitialMount {
    /// Where.
    pub mount_point: MountPoint,
    /// What.
    pub command: MountCommand,
}

/// How many threads serve requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkerLimits {
    /// Threads that are always there; 0 means one per processor, two at least.
    pub base: usize,
    /// Threads at the most, when all others wait for slow blobs.
    pub max: usize,
    /// How long a worker looks for the next request before it sleeps, at the most; a guest that is idle is never
    /// polled. Zero to sleep at once.
    pub poll: Duration,
}

/// The default of [`WorkerLimits::poll`]: several times what a busy guest takes between two requests.
pub const DEFAULT_POLL: Duration = Duration::from_micros(50);

impl Default for WorkerLimits {
    fn default() -> Self {
        Self {
            base: 0,
            max: 64,
            poll: DEFAULT_POLL,
        }
    }
}

/// Changes the level the process logs at.
pub struct LogControl(Box<dyn Fn(LogLevel) + Send + Sync>);

impl LogControl {
    /// Wraps what sets the level.
    pub fn new(set: impl Fn(LogLevel) + Send + Sync + 'static) -> Self {
        Self(Box::new(set))
    }

    pub(crate) fn set(&self, level: LogLevel) {
        (self.0)(level);
    }
}

impl fmt::Debug for LogControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LogControl")
    }
}

/// A daemon's configuration.
#[derive(Debug)]
pub struct DaemonConfig {
    /// The vhost-user socket.
    pub vhost_socket: SocketSource,
    /// The socket of the HTTP API; none means no API.
    pub api_socket: Option<SocketSource>,
    /// Where figures are served over TCP, `GET /metrics` and nothing else; none means nowhere. Whoever reaches the
    /// address can read them.
    pub metrics_addr: Option<SocketAddr>,
    /// What to mount first.
    pub initial_mount: Option<InitialMount>,
    /// Request queues offered to the frontend, next to the high-priority one.
    pub request_queues: usize,
    /// Threads.
    pub workers: WorkerLimits,
    /// `--id`, shown by the API.
    pub id: Option<String>,
    /// `--supervisor`, shown by the API.
    pub supervisor: Option<String>,
    /// Shown by the API.
    pub version: BuildVersion,
    /// Used by the API's log level.
    pub log: LogControl,
}
