//! The embedded file-system daemon: a vhost-user-fs backend with nydusd's HTTP API.
//!
//! Guest bytes flow one way, `virtqueue → transport → fuse → namespace → passthrough | RAFS`; the operator's
//! requests flow the other, `api.sock → control → namespace`. The two meet in the namespace only. [`Daemon`] ties
//! them together; start reading there.

#![deny(unsafe_code)]
#![deny(missing_docs)]

mod config;
mod control;
mod daemon;
mod fuse;
#[doc(hidden)]
pub mod fuzzing;
mod host;
mod image_fs;
mod inflight;
mod limits;
mod metrics;
mod namespace;
mod passthrough;
mod socket;
pub mod sys;
mod transport;
mod userinfo;

pub use config::{DEFAULT_POLL, DaemonConfig, InitialMount, LogControl, SocketSource, WorkerLimits};
pub use daemon::{Daemon, StartError};
pub use host::{HostMount, HostMountEnd, HostMountError, HostUnmount};
pub use limits::{NofileOutcome, raise_nofile};
pub use namespace::{MAX_MOUNTS, MountError};
pub use socket::SocketError;
pub use sys::footprint::give_back;
pub use sys::mapped::outlive_truncation;
pub use userinfo::without_userinfo;
