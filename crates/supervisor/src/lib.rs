//! Starts, watches and ends the file-system daemon of a microVM sandbox.
//!
//! One daemon (the embedded one, or a stock nydusd) serves one sandbox over vhost-user. [`Sandbox::start`] checks
//! the configuration, starts it and waits for its first answer; [`Sandbox::mount`] shares directories and mounts
//! RAFS images; [`Sandbox::status`] and [`Sandbox::exited`] tell how it is; [`Sandbox::stop`] leaves nothing behind.
//! Any number of sandboxes live in one process, which needs a tokio runtime; there is no global state but a memo of
//! the options that programs have.
//!
//! ```no_run
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! use nydusbox::{MountRequest, Program, Sandbox, SandboxConfig};
//! use nydusbox::protocol::{ContainerId, SandboxId};
//!
//! let program = Program::stock("/usr/bin/nydusd")?;
//! let config = SandboxConfig::new(SandboxId::new("s1")?, nydusbox::DEFAULT_STATE_DIR, program)?
//!     .with_share("/srv/share")?;
//! let sandbox = Sandbox::start(config).await?;
//! let image = MountRequest::rafs(&ContainerId::new("c1")?, "/images/bootstrap", "{\"version\":2}")?;
//! sandbox.mount(image).await?;
//! println!("connect the VMM to {:?}", sandbox.vhost_socket());
//! let outcome = sandbox.stop().await;
//! assert!(outcome.leftovers.is_empty());
//! # Ok(())
//! # }
//! ```
//!
//! Inside: [`config`](SandboxConfig) -> command (pure) -> launch (typestate) -> driver (one loop) -> lifecycle and
//! ledger (pure) -> status. Read `launch` first, then `driver`.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod adopt;
mod alarm;
mod apart;
mod binds;
mod client;
mod command;
mod config;
mod counters;
mod daemon;
mod dir;
mod driver;
mod environment;
mod error;
mod events;
mod exit;
mod frontend;
mod health;
mod launch;
mod ledger;
mod lifecycle;
mod mounted;
mod outlet;
mod output;
#[cfg(test)]
mod own_mounts;
mod preflight;
mod process;
mod program;
mod readiness;
mod recovery;
mod remains;
mod request;
mod requests;
mod restoration;
mod sandbox;
mod secrets;
mod shared_command;
mod slots;
mod snapshot;
mod state;
mod status;
mod stop;
mod sweep;
mod trace;

pub use adopt::{AdoptError, Adoption, adopt_all};
#[doc(hidden)]
pub use apart::apart;
pub use binds::BindError;
pub use client::CallError;
pub use config::{
    ConfigError, DEFAULT_CALL_DEADLINE, DEFAULT_HEALTH_INTERVAL, DEFAULT_START_DEADLINE, DEFAULT_STATE_DIR,
    DEFAULT_STOP_GRACE, SandboxConfig,
};
pub use counters::ImageCounters;
pub use dir::{
    CERTIFICATES, CERTIFICATES_NEW, CONTROL_SOCKET, DirError, LOCK as LOCK_FILE, LOG as DAEMON_LOG,
    LOG_OLD as DAEMON_LOG_OLD, Leftover, LookedAt, SUPERVISOR_LOG, SUPERVISOR_LOG_OLD, lock_owner,
};
pub use environment::{EnvironmentError, LimitError, Limits, Netns, OnSupervisorDeath};
pub use error::{MountError, RemountError, StartCause, StartError, UnmountError, WaitingFor};
pub use events::{EventItem, EventRecord, Events, GuestOutlook, SandboxEvent};
pub use exit::{Exit, ExitCause};
pub use health::{Health, HealthReport};
pub use ledger::UnmountOutcome;
pub use lifecycle::MountOutcome;
pub use mounted::{MountedImage, mounted_images, recorded_mounts};
pub use nydusbox_protocol as protocol;
pub use output::BoundedLog;
pub use preflight::{ArgumentError, PreflightError};
pub use program::{Program, ProgramError, ProgramKind};
pub use recovery::{OnExit, RestartPolicy};
pub use request::{MountRequest, MountRequestError};
pub use sandbox::Sandbox;
#[doc(hidden)]
pub use state::StateDocument;
pub use state::{STATE as STATE_FILE, StateError};
pub use status::{MountStatus, Status, StatusPhase};
pub use stop::{StopOutcome, StopStep};
pub use sweep::{SweepReport, SweepVerdict, SweptSandbox, sweep};
pub use trace::TraceError;
