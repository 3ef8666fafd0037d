//! The crate's only unsafe code: bare numbers of the kernel become owned here, and calls are made that take
//! addresses of guest memory or that no safe library has.
#![expect(
    unsafe_code,
    reason = "descriptor numbers, guest memory and file handles can only be handed over this way"
)]

mod bus_error;
pub(crate) mod file_handle;
pub(crate) mod footprint;
#[cfg_attr(not(target_arch = "x86_64"), path = "sys/guarded_elsewhere.rs")]
mod guarded;
pub(crate) mod mapped;
pub(crate) mod mapping;
pub(crate) mod statvfs;
pub(crate) mod thread;
pub(crate) mod volatile;

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::net::sockopt::{socket_acceptconn, socket_domain};

/// Takes ownership of a listening unix socket that the parent process has handed down under this number.
///
/// Call it once for each number, before anything else in the process opens or closes descriptors.
///
/// # Errors
/// The number is a standard stream, is not open, or is not a listening unix socket.
pub fn adopt_listening_socket(fd: RawFd) -> io::Result<OwnedFd> {
    let refused = |why| Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    if fd < 3 {
        return refused("numbers below 3 are the standard streams");
    }
    // SAFETY: the borrow ends before this function returns, and at this point of the process' life nothing else
    // closes descriptors. A number that is not open makes the calls below fail with EBADF, which is harmless.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    if socket_domain(borrowed)? != rustix::net::AddressFamily::UNIX || !socket_acceptconn(borrowed)? {
        return refused("it is not a listening unix socket");
    }
    rustix::io::fcntl_setfd(borrowed, rustix::io::FdFlags::CLOEXEC)?;
    // SAFETY: `fd` is open, as the calls above have shown. It was handed down for us to own: the parent names it
    // on the command line and nothing else in this process knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Keeps every descriptor but the standard streams from being inherited by the programs this process starts.
///
/// Rust's library opens none that would be; this is about those that this process was itself given open.
///
/// # Errors
/// `/proc` cannot be read.
pub fn inherit_no_further() -> io::Result<()> {
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let Some(fd) = entry?
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<RawFd>().ok())
        else {
            continue;
        };
        if fd > 2 {
            // SAFETY: the borrow ends with this block and nothing is done through it but setting a flag. Should
            // another thread close the descriptor meanwhile, the call fails, or sets the flag on what took its
            // number, where this library's users have it set already.
            let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
            let _ = rustix::io::fcntl_setfd(borrowed, rustix::io::FdFlags::CLOEXEC);
        }
    }
    Ok(())
}
