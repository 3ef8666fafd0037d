//! QEMU: from a [`VmSpec`] to a machine that has run one command.
//!
//! ```text
//! VmSpec --check--> VmConfig --arguments (pure)--> command line
//!                      |
//!                      +-- Vm::boot --> driver: the only select! loop, owns the process --> VmOutcome
//! ```
//! `config.rs` checks, `arguments.rs` is pure, `driver.rs` has the effects, `event.rs` is what the guest says.

mod accel;
mod arguments;
mod boot;
mod config;
mod driver;
mod event;
mod outcome;
mod stream;
mod tail;

pub use accel::{Accel, AccelChoice, AccelRequest, KvmFacts, KvmUnusable};
pub use boot::{BootError, GuestStdio, Vm};
pub use config::{SharedDir, UpperDir, VmConfig, VmConfigError, VmSpec};
pub use event::{GuestEvent, GuestStep};
pub use outcome::VmOutcome;

/// A spec on assets that don't exist, for tests of what is pure.
#[cfg(test)]
pub(crate) use config::tests::spec as made_up_spec;
