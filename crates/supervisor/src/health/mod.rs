//! Whether a sandbox is well, as four answers that say different things.
//!
//! A daemon whose state is RUNNING may have no VMM, blobs it cannot reach, and a request that hangs; so each is
//! judged by itself. The judgement is pure (`judge`); what it judges is observed on a connection of its own
//! (`probe`, of images `blobs`), beside the requests of the sandbox and never in their way. Driven by [`crate::driver`].

mod blobs;
mod judge;
mod probe;

use serde::{Deserialize, Serialize};

pub(crate) use probe::{Found, Watch};

/// One answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Health {
    /// As it should be.
    Ok,
    /// It works, but not as it should.
    Degraded {
        /// What is wrong.
        reason: String,
    },
    /// It does not work.
    Failed {
        /// What is wrong.
        reason: String,
    },
    /// It was not observed, or cannot be with this program.
    Unknown {
        /// Why not.
        reason: String,
    },
}

impl Health {
    fn degraded(reason: impl Into<String>) -> Self {
        Self::Degraded {
            reason: reason.into(),
        }
    }

    fn failed(reason: impl Into<String>) -> Self {
        Self::Failed {
            reason: reason.into(),
        }
    }

    fn unknown(reason: impl Into<String>) -> Self {
        Self::Unknown {
            reason: reason.into(),
        }
    }
}

/// How a sandbox is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthReport {
    /// The daemon answers on its API, in time, and says it is RUNNING.
    pub api: Health,
    /// A VMM is connected.
    pub vmm: Health,
    /// Blobs can be read from where they are.
    pub backend: Health,
    /// No request of the guest's has been waiting for long.
    pub in_flight: Health,
}

impl HealthReport {
    /// Nothing is known, for one reason.
    pub(crate) fn unknown(reason: &str) -> Self {
        Self {
            api: Health::unknown(reason),
            vmm: Health::unknown(reason),
            backend: Health::unknown(reason),
            in_flight: Health::unknown(reason),
        }
    }
}
