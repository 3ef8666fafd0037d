//! Copies out of memory that may cease to be there: a mapped file that somebody truncates, a disk that does not read,
//! guest memory that its owner takes back. What is the end of the process elsewhere (SIGBUS) ends the copy here.
//!
//! All of it is done by two instructions, one that copies and one that looks at a byte, whose registers say at any time
//! how much is left. The handler acts if one of these two faulted, on the thread that runs it, and on nothing else:
//! no other code's faults are hidden, and no list of addresses has to be kept right. It makes no call, takes no lock
//! and leaves `errno` alone.

use std::arch::global_asm;
use std::ffi::{c_int, c_void};
use std::mem::{transmute, zeroed};
use std::ptr::{null, null_mut};
use std::sync::OnceLock;

use libc::{REG_RDX, REG_RIP, SIGBUS, sigaction, siginfo_t, ucontext_t};

/// `BUS_MCEERR_AO`: memory is broken that this thread need not have used.
const BROKEN_ELSEWHERE: c_int = 5;

// The copy is the instruction that the kernel's own is, and treats the caches alike. `lfence`: the look comes after
// what was copied before it, also for a processor that runs ahead.
global_asm!(
    ".pushsection .text.nydusbox_guarded, \"ax\", @progbits",
    ".hidden nydusbox_guarded_copy",
    ".globl nydusbox_guarded_copy",
    ".type nydusbox_guarded_copy, @function",
    "nydusbox_guarded_copy:",
    "mov rcx, rdx",
    "xor edx, edx",
    ".hidden nydusbox_guarded_copies",
    ".globl nydusbox_guarded_copies",
    "nydusbox_guarded_copies:",
    "rep movsb",
    ".hidden nydusbox_guarded_copied",
    ".globl nydusbox_guarded_copied",
    "nydusbox_guarded_copied:",
    "mov rax, rcx",
    "ret",
    ".size nydusbox_guarded_copy, . - nydusbox_guarded_copy",
    ".hidden nydusbox_guarded_look",
    ".globl nydusbox_guarded_look",
    ".type nydusbox_guarded_look, @function",
    "nydusbox_guarded_look:",
    "lfence",
    "mov ecx, 1",
    "xor edx, edx",
    ".hidden nydusbox_guarded_looks",
    ".globl nydusbox_guarded_looks",
    "nydusbox_guarded_looks:",
    "movzx eax, byte ptr [rdi]",
    "xor ecx, ecx",
    "jmp nydusbox_guarded_copied",
    ".size nydusbox_guarded_look, . - nydusbox_guarded_look",
    ".popsection",
);

/// What the registers hold at the end: RAX and RDX.
#[repr(C)]
struct End {
    left: usize,
    fault: usize,
}

unsafe extern "sysv64" {
    fn nydusbox_guarded_copy(to: *mut u8, from: *const u8, len: usize) -> End;
    fn nydusbox_guarded_look(at: *const u8) -> End;
    static nydusbox_guarded_copies: u8;
    static nydusbox_guarded_looks: u8;
    static nydusbox_guarded_copied: u8;
}

/// Where memory was found not to be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) address: usize,
}

/// The right to copy: the handler is in place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Guard(());

impl Guard {
    /// Puts the handler in place, if it is not; `None` where the processor has no fast instruction for it, or the
    /// kernel refuses.
    pub(super) fn new() -> Option<Self> {
        static IN_PLACE: OnceLock<bool> = OnceLock::new();
        IN_PLACE
            .get_or_init(|| std::is_x86_feature_detected!("ermsb") && install())
            .then_some(Self(()))
    }

    /// Copies as far as there is memory.
    ///
    /// # Errors
    /// The address at which there was none; what is copied by then stays.
    ///
    /// # Safety
    /// `len` bytes at `from` and at `to` are mappings of the caller's, for reading and for writing, that stay mapped
    /// until this returns, and that no Rust reference is to. What is behind the mappings need not be there.
    pub(super) unsafe fn copy(self, to: *mut u8, from: *const u8, len: usize) -> Result<(), Fault> {
        // SAFETY: by this function's own contract; a fault ends it as it would end by itself, with `left` above 0.
        ended(&unsafe { nydusbox_guarded_copy(to, from, len) })
    }

    /// Looks whether a byte is there, after everything that was copied before.
    ///
    /// # Errors
    /// It is not.
    ///
    /// # Safety
    /// As of `copy`.
    pub(super) unsafe fn look(self, at: *const u8) -> Result<(), Fault> {
        // SAFETY: as in `copy`.
        ended(&unsafe { nydusbox_guarded_look(at) })
    }
}

fn ended(end: &End) -> Result<(), Fault> {
    if end.left == 0 {
        return Ok(());
    }
    Err(Fault { address: end.fault })
}

/// What was done about SIGBUS before.
static BEFORE: OnceLock<sigaction> = OnceLock::new();

fn install() -> bool {
    // SAFETY: `sigaction` consists of integers and a function that may be absent, for which all zeroes is a value.
    let (mut before, mut ours) = unsafe { (zeroed::<sigaction>(), zeroed::<sigaction>()) };
    // SAFETY: `before` is a live `sigaction`.
    if unsafe { sigaction(SIGBUS, null(), &raw mut before) } != 0 {
        return false;
    }
    // Before ours is in place: it may be needed at once.
    let _first = BEFORE.set(before);
    let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = on_bus_error;
    ours.sa_sigaction = handler as usize;
    ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
    // SAFETY: `ours` is complete; the handler does only what a handler may.
    unsafe { sigaction(SIGBUS, &raw const ours, null_mut()) == 0 }
}

extern "C" fn on_bus_error(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel hands both over for the time of this call (`SA_SIGINFO`).
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr()) };
    // SAFETY: as above.
    if unsafe { end_copy(code, address, context) } {
        return;
    }
    pass_on(signal, info, context, code);
}

/// Whether the thread did it itself: below 0 it was a process that sent the signal.
fn is_fault(code: c_int) -> bool {
    code > 0 && code != BROKEN_ELSEWHERE
}

/// Has the thread go on behind the copy, if it is in one and the signal is of that. For handlers.
///
/// # Safety
/// `context` is what the kernel has handed to the handler that calls this.
pub(super) unsafe fn end_copy(code: c_int, address: *mut c_void, context: *mut c_void) -> bool {
    if !is_fault(code) {
        return false;
    }
    // SAFETY: by this function's contract; nothing else refers to the registers while the thread is in its handler.
    let thread = unsafe { &mut *context.cast::<ucontext_t>() };
    let register = |address: usize| (address as u64).cast_signed();
    let places = [
        &raw const nydusbox_guarded_copies,
        &raw const nydusbox_guarded_looks,
    ];
    let registers = &mut thread.uc_mcontext.gregs;
    let (Ok(rip), Ok(rdx)) = (usize::try_from(REG_RIP), usize::try_from(REG_RDX)) else {
        return false;
    };
    if !places
        .iter()
        .any(|place| register(place.addr()) == registers[rip])
    {
        return false;
    }
    registers[rip] = register((&raw const nydusbox_guarded_copied).addr());
    registers[rdx] = register(address.addr());
    true
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

#[cfg(test)]
#[path = "guarded_tests.rs"]
mod tests;
