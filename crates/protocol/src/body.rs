//! Bodies of requests and answers.
//!
//! Shapes are nydusd's; fields it may add later are ignored when reading. Configurations are documents inside
//! strings (`MountCommand::config`), as on the wire, and pass through untouched.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::ErrorCode;
use crate::mount_point::MountPoint;
use crate::share_config::ShareConfig;

/// An error answer: a flat object, never nested.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiError {
    /// What kind of error it is.
    pub code: ErrorCode,
    /// A sentence for a person (nydusd: the Debug form of an internal error).
    pub message: String,
}

/// The daemon's state as its API reports it. It says nothing about a VMM: `RUNNING` only means "answers".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[non_exhaustive]
pub enum DaemonState {
    /// Started, waits for a takeover.
    Init,
    /// Serves.
    Running,
    /// Mounted, not serving.
    Ready,
    /// Stopped.
    Stopped,
    /// Anything else.
    #[serde(other)]
    Unknown,
}

/// Where a daemon's binary comes from.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct BuildVersion {
    /// Version of the package, e.g. `2.2.0`.
    pub package_ver: String,
    /// Commit it was built from.
    pub git_commit: String,
    /// When it was built.
    pub build_time: String,
    /// Cargo profile.
    pub profile: String,
    /// Compiler.
    pub rustc: String,
}

/// One mount in `backend_collection`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BackendEntry {
    /// `Rafs` or `PassthroughFs`.
    pub backend_type: String,
    /// Where it is mounted.
    pub mountpoint: String,
    /// `YYYY-MM-DD HH:MM:SS.fffffffff +00:00:00`; nydusd's own form, not RFC 3339.
    pub mounted_time: String,
    /// The configuration in force without its secrets; `null` for a passthrough mount.
    pub config: Option<serde_json::Value>,
}

/// Every mount, by mount point.
pub type BackendCollection = BTreeMap<String, BackendEntry>;

/// Answer of `GET /daemon`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DaemonInfo {
    /// The daemon's build.
    pub version: BuildVersion,
    /// `--id`.
    #[serde(default)]
    pub id: Option<String>,
    /// `--supervisor`.
    #[serde(default)]
    pub supervisor: Option<String>,
    /// State of the API; see [`DaemonState`].
    pub state: DaemonState,
    /// The mounts (v1), always `null` in v2.
    #[serde(default)]
    pub backend_collection: Option<BackendCollection>,
    /// Whether a VMM is connected to the vhost-user socket. Said by the embedded daemon only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vmm_attached: Option<bool>,
}

/// What can be mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum FsType {
    /// A RAFS image.
    #[serde(rename = "rafs")]
    Rafs,
    /// A host directory.
    #[serde(rename = "passthrough_fs", alias = "passthrough", alias = "passthroughfs")]
    PassthroughFs,
}

/// Body of `POST /mount` and `PUT /mount`.
///
/// `Debug` leaves the configuration out: it may carry registry credentials.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountCommand {
    /// What to mount.
    pub fs_type: FsType,
    /// The bootstrap (RAFS) or the directory (passthrough), a path on the host.
    pub source: String,
    /// RAFS: the daemon's configuration, JSON or TOML as a string. Passthrough: empty, or a [`ShareConfig`] as JSON.
    pub config: String,
    /// Files to fetch ahead, absolute paths inside the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefetch_files: Option<Vec<String>>,
    /// Parts of files to fetch ahead, after those. nydusd does not know it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefetch_parts: Option<Vec<FilePart>>,
    /// Where the program may be that is to be started, absolute paths inside the image in the order in which it is
    /// looked for. What the first one that is there needs is fetched ahead, unless the image, or another list here,
    /// says what to fetch. nydusd does not know it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefetch_program: Option<Vec<String>>,
}

/// A part of a file in an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilePart {
    /// As in [`TracedRead`].
    pub path: String,
    /// Where it begins, in bytes.
    #[serde(default)]
    pub offset: u64,
    /// In bytes; to the end of the file if none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<u64>,
}

impl fmt::Debug for MountCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MountCommand")
            .field("fs_type", &self.fs_type)
            .field("source", &self.source)
            .field("config", &format_args!("<{} bytes>", self.config.len()))
            .field("prefetch_files", &self.prefetch_files)
            .field("prefetch_parts", &self.prefetch_parts.as_ref().map(Vec::len))
            .field("prefetch_program", &self.prefetch_program)
            .finish()
    }
}

impl MountCommand {
    /// The command that shares a host directory.
    #[must_use]
    pub fn passthrough(source: impl Into<String>) -> Self {
        Self {
            fs_type: FsType::PassthroughFs,
            source: source.into(),
            config: String::new(),
            prefetch_files: None,
            prefetch_parts: None,
            prefetch_program: None,
        }
    }

    /// Asks for a share's configuration.
    #[must_use]
    pub fn with_share_config(mut self, config: &ShareConfig) -> Self {
        self.config = config.to_text();
        self
    }

    /// The command that mounts a RAFS image.
    #[must_use]
    pub fn rafs(bootstrap: impl Into<String>, config: impl Into<String>) -> Self {
        Self {
            fs_type: FsType::Rafs,
            source: bootstrap.into(),
            config: config.into(),
            prefetch_files: None,
            prefetch_parts: None,
            prefetch_program: None,
        }
    }

    /// The request target for this mount point, e.g. `/api/v1/mount?mountpoint=/containers`.
    #[must_use]
    pub fn target(mount_point: &MountPoint) -> String {
        [crate::Endpoint::Mount.path(), "?", &mount_point.query()].concat()
    }
}

/// How much is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names are the log levels' own")]
pub enum LogLevel {
    Off,
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl LogLevel {
    /// The level as in `--log-level`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// A text that is no log level.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("log level {given:?} is none of off, error, warn, info, debug, trace")]
pub struct LogLevelError {
    given: String,
}

impl FromStr for LogLevel {
    type Err = LogLevelError;
    fn from_str(s: &str) -> Result<Self, LogLevelError> {
        [
            Self::Off,
            Self::Error,
            Self::Warn,
            Self::Info,
            Self::Debug,
            Self::Trace,
        ]
        .into_iter()
        .find(|l| l.as_str() == s)
        .ok_or_else(|| LogLevelError { given: s.to_owned() })
    }
}

impl fmt::Display for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Body of `PUT /daemon`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigureCommand {
    /// The level to log at from now on.
    pub log_level: LogLevel,
}

/// Answer of `GET /trace`: what guests have read of an image for the first time, since recording began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadTrace {
    /// Whether everything is here: of a long record only the beginning is kept.
    pub complete: bool,
    /// In the order in which the reads began.
    pub reads: Vec<TracedRead>,
}

/// A part of a file that nobody had read before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TracedRead {
    /// A path of the file in its image, from `/` on. Control characters, `%`, and bytes beyond ASCII are written as
    /// `%XX`, so that every path has one form.
    pub path: String,
    /// Where it begins, in bytes.
    pub offset: u64,
    /// In bytes.
    pub length: u64,
    /// How long after recording began it was read, in milliseconds.
    pub ms: u64,
}
