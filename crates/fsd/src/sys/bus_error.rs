//! SIGBUS: mapped memory that ceases to be there. A process has one handler for it, and this is it.
//!
//! ```text
//! a copy of ours faulted (guarded.rs)           -> the copy ends
//! a page its file no longer has (mapped.rs),
//! in a process that wants to outlive that       -> a page of zeros
//! else                                          -> what would have been done without us
//! ```

use std::ffi::{c_int, c_void};
use std::io;
use std::mem::{transmute, zeroed};
use std::ptr::null_mut;
use std::sync::OnceLock;

use libc::{SIGBUS, sigaction, siginfo_t};

use super::{guarded, mapped};

/// `BUS_MCEERR_AO`: memory is broken that this thread need not have used.
const BROKEN_ELSEWHERE: c_int = 5;

/// What was done about SIGBUS before.
static BEFORE: OnceLock<sigaction> = OnceLock::new();

/// Puts the handler in place, the first time it is called.
///
/// # Errors
/// What the system said then.
pub(super) fn handle() -> io::Result<()> {
    static IN_PLACE: OnceLock<Result<(), i32>> = OnceLock::new();
    IN_PLACE
        .get_or_init(|| install().map_err(|error| error.raw_os_error().unwrap_or_default()))
        .map_err(io::Error::from_raw_os_error)
}

fn install() -> io::Result<()> {
    // SAFETY: `sigaction` consists of integers and a function that may be absent, for which all zeroes is a value.
    let (mut before, mut ours) = unsafe { (zeroed::<sigaction>(), zeroed::<sigaction>()) };
    // SAFETY: `before` is a live `sigaction`.
    if unsafe { sigaction(SIGBUS, std::ptr::null(), &raw mut before) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // Before ours is in place: it may be needed at once.
    let _first = BEFORE.set(before);
    let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = on_bus_error;
    ours.sa_sigaction = handler as usize;
    // Rust gives each of its threads a stack for signals.
    ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
    // SAFETY: `ours` is complete; the handler does only what a handler may.
    if unsafe { sigaction(SIGBUS, &raw const ours, null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Whether the thread did it itself: below 0 it was a process that sent the signal.
fn is_fault(code: c_int) -> bool {
    code > 0 && code != BROKEN_ELSEWHERE
}

extern "C" fn on_bus_error(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel hands over what it knows of the signal for the time of this call (`SA_SIGINFO`); of a fault
    // that includes the address, which is read as a number otherwise.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr()) };
    // A copy out of a mapping has to know that there was nothing: it comes first.
    // SAFETY: the kernel has handed the context over with the signal.
    if is_fault(code) && unsafe { guarded::end_copy(address, context) } {
        return;
    }
    if code == libc::BUS_ADRERR && mapped::replace(address) {
        return;
    }
    pass_on(signal, info, context, code);
}

/// What would have been done without us.
fn pass_on(signal: c_int, info: *mut siginfo_t, context: *mut c_void, code: c_int) {
    let before = BEFORE.get();
    let handler = before.map_or(libc::SIG_DFL, |before| before.sa_sigaction);
    if handler != libc::SIG_DFL && handler != libc::SIG_IGN {
        if before.is_some_and(|before| before.sa_flags & libc::SA_SIGINFO != 0) {
            // SAFETY: whoever put it there said that it is such a function.
            let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = unsafe { transmute(handler) };
            handler(signal, info, context);
        } else {
            // SAFETY: as above.
            let handler: extern "C" fn(c_int) = unsafe { transmute(handler) };
            handler(signal);
        }
        return;
    }
    if handler == libc::SIG_IGN && !is_fault(code) {
        return;
    }
    // SAFETY: the default takes no function. Whoever returns to a fault repeats it, and dies of it where it happened;
    // a signal that was sent has to be sent again, and arrives when this one is done with.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        if !is_fault(code) {
            libc::raise(signal);
        }
    }
}
