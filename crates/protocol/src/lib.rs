//! What both ends of a file-system daemon's API socket agree on: endpoints, bodies, identifiers, error codes.
//!
//! The wire format is nydusd's HTTP API (`/api/v1`, `/api/v2`): JSON over HTTP/1.1 on a unix socket. This crate
//! does no I/O; the server is in `nydusbox-fsd`, the client in `nydusbox`. Both read the one table in
//! [`endpoint`]. Start with [`body`] for the shapes and [`id`] for the names that go into paths.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod body;
pub mod endpoint;
pub mod error;
pub mod id;
pub mod log;
pub mod mount_point;
pub mod share_config;
pub mod socket_path;

pub use body::{
    ApiError, BackendCollection, BackendEntry, BuildVersion, ConfigureCommand, DaemonInfo, DaemonState,
    FilePart, FsType, LogLevel, LogLevelError, MountCommand, ReadTrace, TracedRead,
};
pub use endpoint::{Endpoint, Method};
pub use error::ErrorCode;
pub use id::{ContainerId, IdError, SandboxId};
pub use mount_point::{MountPoint, MountPointError};
pub use share_config::ShareConfig;
pub use socket_path::{SocketPath, SocketPathError};
