//! How a sandbox is brought to an end: the policy, pure, and what came of it.
//!
//! Mounts are asked away, then the daemon is asked to end, then killed. A stock nydusd that no frontend has ever
//! connected to holds a lock its main thread waits for and never ends on SIGTERM, so it is killed at once; one
//! whose frontend is still connected ends when that leaves.

use nydusbox_protocol::MountPoint;
use serde::{Deserialize, Serialize};

use crate::client::CallError;
use crate::dir::Leftover;
use crate::exit::{Exit, ExitCause};
use crate::program::ProgramKind;

/// The step after unmounting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// SIGTERM, then SIGKILL after the grace.
    Ask,
    /// SIGKILL.
    Kill,
}

/// Chooses between asking and killing.
pub(crate) fn ending(kind: ProgramKind, frontend_seen: bool) -> Ending {
    match (kind, frontend_seen) {
        (ProgramKind::Embedded, _) | (ProgramKind::Stock, true) => Ending::Ask,
        (ProgramKind::Stock, false) => Ending::Kill,
    }
}

/// How a sandbox ended.
#[derive(Debug)]
#[must_use = "the daemon may have been killed, or something may be left"]
pub struct StopOutcome {
    /// The step that ended the daemon.
    pub step: StopStep,
    /// Mounts that could not be unmounted before; they are gone with the daemon.
    pub unmount_failures: Vec<(MountPoint, CallError)>,
    /// What could not be removed; normally nothing.
    pub leftovers: Vec<Leftover>,
}

/// Which step ended the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum StopStep {
    /// It ended by itself after SIGTERM.
    Exited {
        /// How.
        status: ExitCause,
    },
    /// It was killed: at once, because it cannot be asked, or after the grace.
    Killed,
    /// It had ended before.
    AlreadyGone {
        /// How.
        exit: Exit,
    },
    /// It was killed and is not gone; `leftovers` names it.
    Unkillable,
    /// The runtime that supervised it was shut down; it was killed then.
    Interrupted,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_stock_daemon_without_a_frontend_is_killed_at_once() {
        assert_eq!(ending(ProgramKind::Stock, false), Ending::Kill);
        assert_eq!(ending(ProgramKind::Stock, true), Ending::Ask);
        assert_eq!(ending(ProgramKind::Embedded, false), Ending::Ask);
        assert_eq!(ending(ProgramKind::Embedded, true), Ending::Ask);
    }
}
