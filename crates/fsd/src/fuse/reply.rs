//! Answers made here rather than by the file system: a bare `fuse_out_header`.

use rustix::io::Errno;
use vm_memory::{Bytes, GuestAddress};

use crate::transport::Chain;

/// Size of `fuse_out_header`, in bytes.
pub(super) const HEADER_LEN: u32 = 16;

/// Answers with an error. Returns the number of bytes written: none where the guest left no room.
pub(super) fn error(chain: &Chain, unique: u64, errno: Errno) -> u32 {
    write(chain, unique, -errno.raw_os_error())
}

/// Answers with success and no payload.
pub(super) fn ok(chain: &Chain, unique: u64) -> u32 {
    write(chain, unique, 0)
}

fn write(chain: &Chain, unique: u64, error: i32) -> u32 {
    let mut raw = [0; HEADER_LEN as usize];
    raw[..4].copy_from_slice(&HEADER_LEN.to_le_bytes());
    raw[4..8].copy_from_slice(&error.to_le_bytes());
    raw[8..].copy_from_slice(&unique.to_le_bytes());
    let done = each_writable(chain, raw.len(), |at, addr, len| {
        chain.memory().write_slice(&raw[at..at + len], addr).is_ok()
    });
    if done { HEADER_LEN } else { 0 }
}

/// Whether an error answer to this request already stands in the guest's buffer. A guest that forges one fools
/// only itself.
pub(super) fn is_answered(chain: &Chain, unique: u64) -> bool {
    let mut raw = [0; HEADER_LEN as usize];
    let done = each_writable(chain, HEADER_LEN as usize, |at, addr, len| {
        chain.memory().read_slice(&mut raw[at..at + len], addr).is_ok()
    });
    done && raw[..4] == HEADER_LEN.to_le_bytes()
        && i32::from_le_bytes([raw[4], raw[5], raw[6], raw[7]]) < 0
        && raw[8..] == unique.to_le_bytes()
}

/// Walks the first `len` bytes of the writable part; false when it is shorter or a step fails.
fn each_writable(
    chain: &Chain,
    len: usize,
    mut step: impl FnMut(usize, GuestAddress, usize) -> bool,
) -> bool {
    let mut at = 0;
    for desc in chain.clone().writable() {
        let here = usize::try_from(desc.len()).unwrap_or(usize::MAX).min(len - at);
        if here > 0 && !step(at, desc.addr(), here) {
            return false;
        }
        at += here;
        if at == len {
            return true;
        }
    }
    false
}
