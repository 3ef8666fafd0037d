//! QEMU: from a [`MachineSpec`] and a [`VmSpec`] to a machine that has run one command.
//!
//! ```text
//! MachineSpec --check--> MachineConfig --arguments (pure)--> command line
//!                            |
//!       Machine::start: boots, or goes on from a template (restore.rs)      VmSpec --check--> VmConfig
//!                            |                                                                   |
//!                            +-- driver: the only select! loop, owns the process <-- Machine::run
//!                                   |  save.rs: the booted machine as a template
//!                                   |  provide.rs: share, random numbers, parameters
//!                                   +--> VmOutcome
//! ```
//! `config.rs` and `machine_config.rs` check, `arguments.rs` is pure, `driver.rs` has the effects, `event.rs` is what
//! the guest says, `qmp.rs` is how QEMU is spoken to.

mod accel;
mod arguments;
mod config;
mod console;
mod driver;
mod event;
mod machine;
mod machine_config;
mod outcome;
mod provide;
mod qmp;
mod restore;
mod save;
mod spawn;
mod stream;
mod tail;

pub use accel::{Accel, AccelChoice, AccelRequest, KvmFacts, KvmUnusable, Virtualisation};
pub use config::{DEFAULT_PATH, SharedDir, UpperDir, VmConfig, VmConfigError, VmSpec};
pub use event::{GuestEvent, GuestStep};
pub use machine::{BootError, GuestStdio, Machine, Origin, Vm};
pub use machine_config::{MachineConfig, MachineConfigError, MachineSpec};
pub use outcome::{BootStage, VmOutcome};

/// A spec on a made-up share, for tests of what is pure.
#[cfg(test)]
pub(crate) use config::tests::spec as made_up_spec;
/// On assets that don't exist.
#[cfg(test)]
pub(crate) use machine_config::made_up_spec as made_up_machine;
