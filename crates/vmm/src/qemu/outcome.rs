//! How a machine ended.

use std::fmt;
use std::process::ExitStatus;
use std::time::Duration;

use super::event::{GuestEvent, GuestStep};

/// How a machine ended. In every case the VMM's process is gone and reaped.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "the command's exit status is in here"]
#[non_exhaustive]
pub enum VmOutcome {
    /// The command ran and all its output has been delivered.
    CommandExited {
        /// A shell's exit status: 127 not found, 126 not executable, 128+n killed by signal n.
        status: u8,
    },
    /// The guest couldn't start the command.
    GuestFailed {
        /// What failed.
        step: GuestStep,
        /// What the guest says about it.
        message: String,
    },
    /// The machine could not be given its share: no daemon listens, or the VMM refused the device.
    ShareFailed {
        /// What failed, and why.
        message: String,
    },
    /// Whoever read the command's output has left: the machine was stopped, as SIGPIPE ends a process.
    ReaderLeft,
    /// The command's output could not be written, for another reason: the machine was stopped.
    OutputLost {
        /// Why.
        message: String,
    },
    /// The VMM ended before the command did: it refused its arguments, the guest panicked, or someone killed it.
    VmmExited {
        /// The VMM's exit status.
        status: ExitStatus,
        /// The VMM's last lines.
        vmm: Vec<String>,
        /// The guest console's last lines.
        console: Vec<String>,
    },
    /// The command had not started in time.
    BootDeadline {
        /// The time it was given.
        after: Duration,
        /// How far the guest had come.
        reached: Option<GuestEvent>,
        /// The guest console's last lines.
        console: Vec<String>,
    },
    /// Stopped by [`super::Vm::kill`].
    Killed,
}

impl fmt::Display for VmOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CommandExited { status } => write!(f, "the command exited with status {status}"),
            Self::GuestFailed { step, message } => write!(f, "the guest failed in {step}: {message}"),
            Self::ShareFailed { message } => write!(f, "the machine could not be given its share: {message}"),
            Self::ReaderLeft => write!(f, "nobody reads the command's output any longer"),
            Self::OutputLost { message } => write!(f, "the command's output cannot be written: {message}"),
            Self::VmmExited { status, vmm, console } => {
                write!(f, "the VMM ended early ({status})")?;
                for line in vmm {
                    write!(f, "\n  vmm: {line}")?;
                }
                console
                    .iter()
                    .try_for_each(|line| write!(f, "\n  console: {line}"))
            }
            Self::BootDeadline {
                after,
                reached,
                console,
            } => {
                write!(f, "the command had not started after {} s (", after.as_secs_f32())?;
                match reached {
                    None => write!(f, "the guest said nothing)")?,
                    Some(event) => write!(f, "the guest's last event: {event:?})")?,
                }
                console
                    .iter()
                    .try_for_each(|line| write!(f, "\n  console: {line}"))
            }
            Self::Killed => write!(f, "the machine was stopped"),
        }
    }
}
