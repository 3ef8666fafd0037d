//! The limit on open files.
//!
//! A share may need a descriptor for each file the guest knows. The limit is raised as far as the kernel lets us;
//! a limit that cannot be raised is reported, never a reason not to start.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What came of the wish for more descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NofileOutcome {
    /// Nothing was asked for.
    Untouched,
    /// The soft limit is now at least what was asked for.
    Raised {
        /// The soft limit.
        now: u64,
    },
    /// It could not be raised as far.
    Short {
        /// What was asked for.
        wanted: u64,
        /// The soft limit.
        now: u64,
    },
}

/// Raises the soft limit of `RLIMIT_NOFILE` to `wanted`, and the hard limit with it where that is permitted.
/// 0 leaves both alone.
pub fn raise_nofile(wanted: u64) -> NofileOutcome {
    if wanted == 0 {
        return NofileOutcome::Untouched;
    }
    let limit = getrlimit(Resource::Nofile);
    let at_least = |value: Option<u64>| value.is_none_or(|v| v >= wanted);
    if at_least(limit.current) {
        return NofileOutcome::Raised {
            now: limit.current.unwrap_or(u64::MAX),
        };
    }
    // Up to the hard limit is always permitted; beyond it only with CAP_SYS_RESOURCE, and not beyond fs.nr_open.
    let hard = if at_least(limit.maximum) {
        limit.maximum
    } else {
        Some(wanted)
    };
    let raised = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: Some(wanted),
            maximum: hard,
        },
    );
    if raised.is_err() {
        // Refused as a whole: at least use what the hard limit allows.
        let _ = setrlimit(
            Resource::Nofile,
            Rlimit {
                current: limit.maximum,
                maximum: limit.maximum,
            },
        );
    }
    let now = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    if now >= wanted {
        NofileOutcome::Raised { now }
    } else {
        NofileOutcome::Short { wanted, now }
    }
}
