//! What both ends of `control.sock` agree on: routes, bodies, error codes. Reading ignores fields it does not know,
//! so that a command and a supervisor of neighbouring versions understand each other.

use std::fmt;
use std::path::PathBuf;

use nydusbox::{HealthReport, MountStatus};
use nydusbox_protocol::{ContainerId, FilePart, FsType, LogLevel, MountPoint, SandboxId};
use serde::{Deserialize, Serialize};

use crate::error::{FAILED, Failure, NO_SANDBOX, TAKEN};

/// Answered at once, whatever is under way: GET.
pub(crate) const GREETING: &str = "/v1";
/// The sandbox as a whole: GET.
pub(crate) const SANDBOX: &str = "/v1/sandbox";
/// Its mounts: POST, PUT, DELETE.
pub(crate) const MOUNTS: &str = "/v1/mounts";
/// What has happened to it: GET.
pub(crate) const EVENTS: &str = "/v1/events";
/// How much its daemon logs: PUT.
pub(crate) const LOG_LEVEL: &str = "/v1/log-level";
/// Its end: POST.
pub(crate) const STOP: &str = "/v1/stop";

/// A sandbox, as `status --json` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SandboxInfo {
    pub(crate) id: SandboxId,
    pub(crate) state: State,
    pub(crate) supervisor: SupervisorInfo,
    pub(crate) daemon: DaemonInfo,
    pub(crate) vmm: VmmInfo,
    pub(crate) mounts: Vec<MountInfo>,
    /// `null` where nobody can say.
    pub(crate) health: Option<HealthReport>,
    pub(crate) sockets: Option<Sockets>,
    pub(crate) exit: Option<ExitInfo>,
}

/// What a sandbox is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum State {
    /// The daemon serves.
    Serving,
    /// The sandbox is being stopped.
    Stopping,
    /// The daemon ended, and another one is being put in its place.
    Recovering,
    /// The daemon ended without being asked to.
    Exited,
    /// Someone owns it who has no control socket: it is starting or ending, or another program's.
    Busy,
    /// Its supervisor is gone.
    Abandoned,
    /// A state of another version.
    #[serde(other)]
    Unknown,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Serving => "serving",
            Self::Stopping => "stopping",
            Self::Recovering => "recovering",
            Self::Exited => "exited",
            Self::Busy => "busy",
            Self::Abandoned => "abandoned",
            Self::Unknown => "unknown",
        })
    }
}

/// The process that owns the sandbox.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SupervisorInfo {
    /// Of an abandoned sandbox, the one it had.
    pub(crate) pid: Option<u32>,
}

/// The process that serves the files.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DaemonInfo {
    pub(crate) pid: Option<u32>,
    pub(crate) program: Option<PathBuf>,
    /// What it says of itself; `null` while it does not answer.
    pub(crate) version: Option<String>,
}

/// The machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VmmInfo {
    /// Whether it is connected; `null` where that is not known.
    pub(crate) attached: Option<bool>,
}

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MountInfo {
    pub(crate) at: MountPoint,
    pub(crate) fs_type: FsType,
    pub(crate) source: String,
    /// The snapshot's directory that is shown in the share with it.
    pub(crate) snapshotdir: Option<PathBuf>,
    pub(crate) confirmed: bool,
}

impl From<&MountStatus> for MountInfo {
    fn from(mount: &MountStatus) -> Self {
        Self {
            at: mount.at.clone(),
            fs_type: mount.fs_type,
            source: mount.source.clone(),
            snapshotdir: mount.snapshotdir.clone(),
            confirmed: mount.confirmed,
        }
    }
}

/// Where to connect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sockets {
    pub(crate) vhost: PathBuf,
    pub(crate) api: PathBuf,
}

/// How the daemon ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ExitInfo {
    pub(crate) reason: String,
    pub(crate) last_lines: Vec<String>,
}

/// A container's image, or its layers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MountBody {
    pub(crate) container: ContainerId,
    /// One image, or one for each layer, topmost first.
    pub(crate) images: Vec<ImageBody>,
    /// The snapshot's directory, to be shown in the share while the image is mounted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) snapshotdir: Option<PathBuf>,
    /// Certificates (PEM) that the sandbox's daemon trusts from now on, whatever it fetches.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) ca_certificates: String,
}

/// An image.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageBody {
    pub(crate) bootstrap: PathBuf,
    /// A nydusd configuration, JSON or TOML as a string.
    pub(crate) config: String,
    #[serde(default)]
    pub(crate) prefetch_files: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) prefetch_parts: Vec<FilePart>,
}

impl fmt::Debug for ImageBody {
    /// Without the configuration: it may carry credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImageBody")
            .field("bootstrap", &self.bootstrap)
            .finish_non_exhaustive()
    }
}

/// How much the daemon is to log, and what came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LevelBody {
    pub(crate) level: LogLevel,
}

/// What came of a mount or an unmount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Changed {
    pub(crate) at: MountPoint,
    pub(crate) outcome: Outcome,
}

/// See [`Changed`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    Mounted,
    AlreadyMounted,
    Remounted,
    Unmounted,
    WasNotMounted,
    #[serde(other)]
    Unknown,
}

/// What came of a stop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stopped {
    pub(crate) id: SandboxId,
    /// The step that ended the daemon: `exited`, `killed`, `already_gone`, `unkillable`, `interrupted`.
    pub(crate) step: String,
    /// Mounts that could not be unmounted before the daemon's end, each with the reason.
    pub(crate) unmount_failures: Vec<String>,
    /// What could not be removed; normally nothing.
    pub(crate) leftovers: Vec<String>,
}

/// A request that was refused or failed: the body of every answer above 299.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ControlError {
    pub(crate) code: Code,
    pub(crate) message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hint: Option<String>,
}

impl ControlError {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            hint: None,
        }
    }

    /// A failure with its chain of causes, under a code.
    pub(crate) fn of(code: Code, failure: Failure) -> Self {
        let (message, hint) = failure.into_parts();
        Self { code, message, hint }
    }
}

impl From<ControlError> for Failure {
    fn from(error: ControlError) -> Self {
        let failure = Self::plain(error.message).code(error.code.exit());
        match error.hint {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}

/// What kind of failure it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Code {
    /// Method, query or body cannot be understood.
    BadRequest,
    /// No such path, or not with this method.
    NoRoute,
    /// The body is larger than is read.
    TooLarge,
    /// There is no such sandbox.
    NoSandbox,
    /// The sandbox exists, or someone else is about to start or end it.
    SandboxInUse,
    /// The sandbox did not start.
    StartFailed,
    /// Something else is mounted there, inside it or around it.
    AlreadyMounted,
    /// Nothing is mounted there, and something has to be.
    NotMounted,
    /// Every slot of the daemon is in use.
    SlotsExhausted,
    /// The bootstrap is missing, unreadable or not RAFS.
    BadImage,
    /// The mount's configuration is not understood or names what is not there.
    BadConfig,
    /// The snapshot's directory cannot be shown in the share.
    BadSnapshotdir,
    /// It is to be shown in the share, and the sandbox has none.
    NoShare,
    /// The daemon refused for another reason.
    Refused,
    /// The daemon cannot be reached, or does not answer in time.
    Unreachable,
    /// The daemon is gone.
    Exited,
    /// The daemon is gone, another one is to take its place, and did not in time.
    Recovering,
    /// The sandbox is being stopped.
    Stopping,
    /// Anything else.
    Internal,
    /// A code of another version.
    #[serde(other)]
    Unknown,
}

impl Code {
    /// The HTTP status an answer with this code has.
    pub(crate) const fn status(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::NoRoute | Self::NoSandbox | Self::NotMounted => 404,
            Self::TooLarge => 413,
            Self::SandboxInUse | Self::AlreadyMounted | Self::SlotsExhausted | Self::Stopping => 409,
            Self::BadImage | Self::BadConfig | Self::BadSnapshotdir | Self::NoShare | Self::Refused => 422,
            Self::Unreachable => 504,
            Self::Exited | Self::Recovering => 503,
            Self::StartFailed | Self::Internal | Self::Unknown => 500,
        }
    }

    /// The exit code of a command that gets this answer.
    const fn exit(self) -> u8 {
        match self {
            Self::NoSandbox => NO_SANDBOX,
            Self::SandboxInUse | Self::AlreadyMounted | Self::Stopping => TAKEN,
            Self::BadRequest
            | Self::NoRoute
            | Self::TooLarge
            | Self::StartFailed
            | Self::SlotsExhausted
            | Self::BadImage
            | Self::BadConfig
            | Self::BadSnapshotdir
            | Self::NoShare
            | Self::NotMounted
            | Self::Refused
            | Self::Unreachable
            | Self::Exited
            | Self::Recovering
            | Self::Internal
            | Self::Unknown => FAILED,
        }
    }
}
