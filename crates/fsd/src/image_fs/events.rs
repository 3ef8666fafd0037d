//! What went wrong with an image, for the operator: in the log, and in `/api/v1/daemon/events`.

use std::error::Error;
use std::fmt::Write;
use std::sync::PoisonError;

use nydus_utils::metrics::ERROR_HOLDER;

/// Reports a failure with its causes. nydus' list of events has a bound and drops what it has just been told.
pub(super) fn report(error: &dyn Error) {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        // Writing to a string does not fail.
        let _written = write!(text, ": {source}");
        cause = source.source();
    }
    tracing::warn!("{text}");
    // What does not fit any more is in the log.
    let _pushed = ERROR_HOLDER
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(&text);
}
