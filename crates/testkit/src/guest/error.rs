//! Why the guest's transport failed. FUSE errnos are not here: see [`super::fuse::FuseError`].

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// A failure of the transport under the simulated guest.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GuestError {
    /// The vhost-user socket did not accept us.
    #[error("connect to the vhost-user socket {}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What connect said.
        #[source]
        source: io::Error,
    },
    /// A vhost-user message failed.
    #[error("vhost-user {request}")]
    Handshake {
        /// The message, as the specification names it.
        request: &'static str,
        /// What the vhost crate said.
        #[source]
        source: vhost::Error,
    },
    /// The backend lacks a feature without which it cannot serve this guest.
    #[error("the backend does not offer {feature}")]
    MissingFeature {
        /// The feature, as the specification names it.
        feature: &'static str,
    },
    /// The backend has fewer queues than the guest was told to use.
    #[error("the backend has {offered} queues, {wanted} are wanted")]
    TooFewQueues {
        /// What GET_QUEUE_NUM answered.
        offered: u64,
        /// The hiprio queue and the request queues.
        wanted: u64,
    },
    /// Something was not done in time: the daemon is stuck, or answers too late.
    #[error("{what} not done after {after:?}")]
    TimedOut {
        /// What was waited for.
        what: &'static str,
        /// For how long.
        after: Duration,
    },
    /// The daemon closed the vhost-user socket.
    #[error("the daemon closed the vhost-user connection")]
    Disconnected,
    /// The daemon broke the rules of the virtqueue.
    #[error("the daemon broke the virtqueue's rules: {what} ({value})")]
    Violation {
        /// Which rule.
        what: &'static str,
        /// The offending number.
        value: u64,
    },
    /// A reply that is not a FUSE reply to the request.
    #[error("bad FUSE reply to request {unique}: {what} ({value})")]
    BadReply {
        /// The request's `unique`.
        unique: u64,
        /// What is wrong with it.
        what: &'static str,
        /// The offending number.
        value: u64,
    },
    /// A request that can never fit the queue or the guest's memory.
    #[error("the request needs {need} {what}, the guest has {limit}")]
    TooBig {
        /// What it needs too much of.
        what: &'static str,
        /// How much.
        need: usize,
        /// How much there is.
        limit: usize,
    },
    /// The ticket was never given out, or its reply has been taken already.
    #[error("no request outstanding under ticket {0}")]
    UnknownTicket(u64),
    /// Guest memory could not be reached; a mistake in the guest itself.
    #[error("access to guest memory")]
    Memory(#[from] vm_memory::GuestMemoryError),
    /// The memory of the guest could not be set up.
    #[error("map guest memory")]
    Map(#[from] vm_memory::mmap::FromRangesError),
    /// A system call of the guest itself failed.
    #[error("{what}")]
    Os {
        /// The call.
        what: &'static str,
        /// Its errno.
        #[source]
        source: io::Error,
    },
}

impl GuestError {
    pub(crate) fn os(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Os { what, source }
    }
}
