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
        /// Whether the guest had said that the command runs.
        command_started: bool,
        /// The VMM's last lines.
        vmm: Vec<String>,
        /// The guest console's last lines.
        console: Vec<String>,
    },
    /// The command had not started in time.
    BootDeadline {
        /// The time it was given.
        after: Duration,
        /// How far the machine was on its way to its command.
        stage: BootStage,
        /// What the guest had said last of what it did.
        reached: Option<GuestEvent>,
        /// The guest console's last lines.
        console: Vec<String>,
    },
    /// Stopped by [`super::Vm::kill`].
    Killed,
}

/// How far a machine is on its way to its command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum BootStage {
    /// The guest has not said that it waits for its share.
    Booting,
    /// The guest has said so, and the VMM has not answered, or is saving the machine as a template.
    Saving,
    /// It waits for what it is to do.
    Waiting,
    /// It is being given its share and its command.
    BeingProvided,
    /// It has its share and its command.
    Provided,
}

impl fmt::Display for BootStage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Booting => "the guest boots",
            Self::Saving => "the guest waits for the VMM",
            Self::Waiting => "the guest waits for its command",
            Self::BeingProvided => "the guest is being given its share",
            Self::Provided => "the guest has its share and its command",
        })
    }
}

impl VmOutcome {
    /// What happened, without the lines that VMM and console said last. `Display` adds them.
    #[must_use]
    pub fn sentence(&self) -> String {
        match self {
            Self::CommandExited { status } => format!("the command exited with status {status}"),
            Self::GuestFailed { step, message } => format!("the guest failed in {step}: {message}"),
            Self::ShareFailed { message } => format!("the machine could not be given its share: {message}"),
            Self::ReaderLeft => "nobody reads the command's output any longer".to_owned(),
            Self::OutputLost { message } => format!("the command's output cannot be written: {message}"),
            Self::VmmExited {
                status,
                command_started,
                ..
            } => match command_started {
                true => format!("the VMM ended before the command did ({status})"),
                false => format!("the VMM ended early ({status})"),
            },
            Self::BootDeadline {
                after,
                stage,
                reached,
                ..
            } => {
                let after = after.as_secs_f32();
                let said = reached.as_ref().map_or_else(
                    || "it said nothing of what it did".to_owned(),
                    |event| format!("its last event: {event:?}"),
                );
                format!("the command had not started after {after} s ({stage}; {said})")
            }
            Self::Killed => "the machine was stopped".to_owned(),
        }
    }

    /// The lines that VMM and console said last.
    fn lines(&self) -> (&[String], &[String]) {
        match self {
            Self::VmmExited { vmm, console, .. } => (vmm, console),
            Self::BootDeadline { console, .. } => (&[], console),
            _ => (&[], &[]),
        }
    }
}

impl fmt::Display for VmOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence())?;
        let (vmm, console) = self.lines();
        for (who, line) in vmm
            .iter()
            .map(|line| ("vmm", line))
            .chain(console.iter().map(|line| ("console", line)))
        {
            write!(f, "\n  {who}: {line}")?;
        }
        Ok(())
    }
}
