//! Copies out of memory that may cease to be there: a mapped file that somebody truncates, a disk that does not read,
//! guest memory that its owner takes back. What is the end of the process elsewhere (SIGBUS) ends the copy here.
//!
//! All of it is done by two instructions, one that copies and one that looks at a byte, whose registers say at any time
//! how much is left. The handler acts if one of these two faulted, on the thread that runs it, and on nothing else:
//! no other code's faults are hidden, and no list of addresses has to be kept right. It makes no call, takes no lock
//! and leaves `errno` alone.

use std::arch::global_asm;
use std::ffi::c_void;
use std::sync::OnceLock;

use libc::{REG_RDX, REG_RIP, ucontext_t};

use super::bus_error;

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
            .get_or_init(|| std::is_x86_feature_detected!("ermsb") && bus_error::handle().is_ok())
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

/// Has the thread go on behind the copy, if it was one that faulted. For the handler.
///
/// # Safety
/// `context` is what the kernel has handed to the handler that calls this.
pub(super) unsafe fn end_copy(address: *mut c_void, context: *mut c_void) -> bool {
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

#[cfg(test)]
#[path = "guarded_tests.rs"]
mod tests;
