//! Copies out of memory that may cease to be there: a mapped file that somebody truncates, a disk that does not read,
//! guest memory that its owner takes back. What is the end of the process elsewhere (SIGBUS) ends the copy here.
//!
//! All of it is done in three places: an instruction that copies, a loop that copies four pages, and an instruction
//! that looks at a byte. A register says at any time how much is left, 0 only at the end. The handler acts if one of
//! these three faulted, on the thread that runs it, and on nothing else: no other code's faults are hidden, and no list
//! of addresses has to be kept right. It makes no call, takes no lock and leaves `errno` alone.

use std::arch::global_asm;
use std::ffi::c_void;
use std::sync::OnceLock;

use libc::{REG_RDX, REG_RIP, ucontext_t};

use super::bus_error;

/// How many pages are copied together.
pub(super) const TOGETHER: usize = 4;
/// The alignment that their places must have.
pub(super) const ALIGNED: usize = 16;
/// x86-64 has no other.
pub(super) const PAGE: usize = 4096;

// The copy is the instruction that the kernel's own is, and treats the caches alike. `lfence`: the look comes after
// what was copied before it, also for a processor that runs ahead.
//
// The pages are copied side by side, and past the caches: whoever reads them is another processor, which is slower in
// asking this one's cache than memory (with a reader 115 us for 1 MiB, and 195 by `rep movsb` or by `preadv`; without
// one 76, 94 and 110), and one page at a time keeps too few lines under way. `sfence`: nothing that is written after
// them may be seen before them, least of all that they are there.
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
    // One step of one page: what is at `from`, to what `to` points to.
    ".macro nydusbox_guarded_step to, from",
    "prefetcht0 byte ptr [r8 + rcx + \\from + 512]",
    "prefetcht0 byte ptr [r8 + rcx + \\from + 576]",
    "movdqu xmm0, xmmword ptr [r8 + rcx + \\from]",
    "movdqu xmm1, xmmword ptr [r8 + rcx + \\from + 16]",
    "movdqu xmm2, xmmword ptr [r8 + rcx + \\from + 32]",
    "movdqu xmm3, xmmword ptr [r8 + rcx + \\from + 48]",
    "movdqu xmm4, xmmword ptr [r8 + rcx + \\from + 64]",
    "movdqu xmm5, xmmword ptr [r8 + rcx + \\from + 80]",
    "movdqu xmm6, xmmword ptr [r8 + rcx + \\from + 96]",
    "movdqu xmm7, xmmword ptr [r8 + rcx + \\from + 112]",
    "movntdq xmmword ptr [\\to + rcx], xmm0",
    "movntdq xmmword ptr [\\to + rcx + 16], xmm1",
    "movntdq xmmword ptr [\\to + rcx + 32], xmm2",
    "movntdq xmmword ptr [\\to + rcx + 48], xmm3",
    "movntdq xmmword ptr [\\to + rcx + 64], xmm4",
    "movntdq xmmword ptr [\\to + rcx + 80], xmm5",
    "movntdq xmmword ptr [\\to + rcx + 96], xmm6",
    "movntdq xmmword ptr [\\to + rcx + 112], xmm7",
    ".endm",
    ".hidden nydusbox_guarded_pages",
    ".globl nydusbox_guarded_pages",
    ".type nydusbox_guarded_pages, @function",
    "nydusbox_guarded_pages:",
    "lea r10, [rcx + 4096]",
    "lea r9, [rdx + 4096]",
    "add rsi, 4096",
    "add rdi, 4096",
    "xor edx, edx",
    // Up to 0, the end of each page, which all pointers are at.
    "mov rcx, -4096",
    ".hidden nydusbox_guarded_streams",
    ".globl nydusbox_guarded_streams",
    "nydusbox_guarded_streams:",
    "nydusbox_guarded_step rdi, 4096",
    "nydusbox_guarded_step rsi, 8192",
    "nydusbox_guarded_step r9, 12288",
    "nydusbox_guarded_step r10, 16384",
    "sub rcx, -128",
    "jnz nydusbox_guarded_streams",
    ".hidden nydusbox_guarded_streamed",
    ".globl nydusbox_guarded_streamed",
    "nydusbox_guarded_streamed:",
    "sfence",
    "jmp nydusbox_guarded_copied",
    ".purgem nydusbox_guarded_step",
    ".size nydusbox_guarded_pages, . - nydusbox_guarded_pages",
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
    ".hidden nydusbox_guarded_looked",
    ".globl nydusbox_guarded_looked",
    "nydusbox_guarded_looked:",
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
    fn nydusbox_guarded_pages(to: *mut u8, _: *mut u8, _: *mut u8, _: *mut u8, from: *const u8) -> End;
    fn nydusbox_guarded_look(at: *const u8) -> End;
    static nydusbox_guarded_copies: u8;
    static nydusbox_guarded_copied: u8;
    static nydusbox_guarded_streams: u8;
    static nydusbox_guarded_streamed: u8;
    static nydusbox_guarded_looks: u8;
    static nydusbox_guarded_looked: u8;
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

    /// Copies pages that follow each other to places of their own, each aligned to [`ALIGNED`], as far as there is
    /// memory; some of each of them, if that ends.
    ///
    /// # Errors
    /// As of `copy`.
    ///
    /// # Safety
    /// As of `copy`, of a page at each place and of as many at `from`.
    pub(super) unsafe fn copy_pages(self, to: [*mut u8; TOGETHER], from: *const u8) -> Result<(), Fault> {
        let [first, second, third, fourth] = to;
        // SAFETY: as in `copy`. What is fetched ahead of the last page need not be there: a prefetch never faults.
        ended(&unsafe { nydusbox_guarded_pages(first, second, third, fourth, from) })
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
    // Where each begins and ends, and where its thread goes on.
    let places = [
        (
            &raw const nydusbox_guarded_copies,
            &raw const nydusbox_guarded_copied,
            &raw const nydusbox_guarded_copied,
        ),
        (
            &raw const nydusbox_guarded_streams,
            &raw const nydusbox_guarded_streamed,
            &raw const nydusbox_guarded_streamed,
        ),
        (
            &raw const nydusbox_guarded_looks,
            &raw const nydusbox_guarded_looked,
            &raw const nydusbox_guarded_copied,
        ),
    ];
    let registers = &mut thread.uc_mcontext.gregs;
    let (Ok(rip), Ok(rdx)) = (usize::try_from(REG_RIP), usize::try_from(REG_RDX)) else {
        return false;
    };
    let at = registers[rip];
    let faulted = |(begin, end, _): &&(*const u8, *const u8, *const u8)| {
        (register(begin.addr())..register(end.addr())).contains(&at)
    };
    let Some((_, _, exit)) = places.iter().find(faulted) else {
        return false;
    };
    registers[rip] = register(exit.addr());
    registers[rdx] = register(address.addr());
    true
}

#[cfg(test)]
#[path = "guarded_tests.rs"]
mod tests;
