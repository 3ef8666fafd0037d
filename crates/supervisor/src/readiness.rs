//! Registers a descriptor with the runtime.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A descriptor whose readability can be awaited. Must be called within a runtime.
pub(crate) fn readable_fd(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    watched(fd, Interest::READABLE)
}

/// A descriptor for which room to write can be awaited. Must be called within a runtime.
pub(crate) fn writable_fd(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    watched(fd, Interest::WRITABLE)
}

#[expect(
    deprecated,
    reason = "deprecated for types that may give their descriptor away; an OwnedFd does not, and the successor is unsafe"
)]
fn watched(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd, interest)
}
