//! A point in time by which something has to be done. Passed down, never restarted on the way.

use std::time::{Duration, Instant};

use super::error::GuestError;

/// A moment by which a step has to be finished, with the span it was made from (for the error).
#[derive(Debug, Clone, Copy)]
pub struct Deadline {
    at: Instant,
    after: Duration,
}

impl Deadline {
    /// The moment `after` from now.
    pub fn after(after: Duration) -> Self {
        Self {
            at: Instant::now() + after,
            after,
        }
    }

    /// What is left of it.
    ///
    /// # Errors
    /// [`GuestError::TimedOut`], naming `what`, if it has passed.
    pub fn remaining(&self, what: &'static str) -> Result<Duration, GuestError> {
        let left = self.at.saturating_duration_since(Instant::now());
        if left.is_zero() {
            Err(self.missed(what))
        } else {
            Ok(left)
        }
    }

    /// The error for having missed it.
    pub fn missed(&self, what: &'static str) -> GuestError {
        GuestError::TimedOut {
            what,
            after: self.after,
        }
    }
}
