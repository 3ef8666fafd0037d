//! `mod.rs` where the feature `otlp` is off: no span goes anywhere.

use nydusbox_protocol::SandboxId;
use tracing::Span;
use tracing_subscriber::layer::Identity;

/// No log line is in a span of this target, because there is none.
pub(crate) const LIFE: &str = "nydusbox::life";

/// Nothing.
#[derive(Debug)]
pub(crate) struct Traces;

/// Begins nothing.
pub(crate) fn begin(_sandbox: &SandboxId) -> (Option<Identity>, Traces) {
    (None, Traces)
}

#[expect(clippy::unused_self, reason = "as where the feature is on")]
impl Traces {
    pub(crate) fn complain(&self) {}

    pub(crate) fn are_exported(&self) -> bool {
        false
    }

    pub(crate) fn flush(&self) {}
}

/// No span.
pub(crate) fn life(_sandbox: &SandboxId) -> Span {
    Span::none()
}
