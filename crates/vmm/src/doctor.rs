//! What this machine lacks for booting a guest, and the exact command that mends it.
//!
//! `probe.rs` asks the machine and decides nothing; `decide.rs` turns the answers into checks and asks nothing. To
//! change a sentence or a command, read `decide.rs`.

mod decide;
mod probe;

use std::path::Path;

/// One thing that booting needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// What was found.
    pub state: CheckState,
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckState {
    /// As it should be.
    Ok {
        /// What there is.
        detail: String,
    },
    /// Booting works without it, with less.
    Warn {
        /// What is not as it should be, and what that costs.
        why: String,
        /// The command that mends it, where there is one.
        fix: Option<String>,
    },
    /// Nothing can be booted without it.
    Missing {
        /// What is missing.
        why: String,
        /// The command that mends it.
        fix: String,
    },
}

impl Check {
    /// Whether nothing can be booted because of this.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self.state, CheckState::Missing { .. })
    }
}

/// Checks this machine. The guest's kernel, modules and busybox are looked for below `root`, as
/// [`crate::GuestAssets::find`] does. Runs QEMU twice for its version and devices; takes a fraction of a second.
#[must_use]
pub fn checks(root: &Path) -> Vec<Check> {
    decide::checks(&probe::facts(root))
}
