//! Answers made here rather than by the file system: a bare `fuse_out_header`.

use rustix::io::Errno;
use vm_memory::{Bytes, GuestAddress};

use crate::transport::Chain;

/// Size of `fuse_out_header`, in bytes.
pub(super) const HEADER_LEN: u32 = 16;

/// Answers with an error. Returns the number of bytes written: none where the guest left no room.
pub(super) fn error(chain: &Chain<'_>, unique: u64, errno: Errno) -> u32 {
    write(chain, unique, -errno.raw_os_error())
}

/// Answers with success and no payload.
pub(super) fn ok(chain: &Chain<'_>, unique: u64) -> u32 {
    write(chain, unique, 0)
}

/// Answers with success and a payload.
pub(super) fn payload(chain: &Chain<'_>, unique: u64, payload: &[u8]) -> u32 {
    let len = HEADER_LEN.saturating_add(u32::try_from(payload.len()).unwrap_or(u32::MAX));
    let mut raw = Vec::with_capacity(len as usize);
    raw.extend_from_slice(&header(len, unique, 0));
    raw.extend_from_slice(payload);
    put(chain, &raw)
}

fn write(chain: &Chain<'_>, unique: u64, error: i32) -> u32 {
    put(chain, &header(HEADER_LEN, unique, error))
}

/// A `fuse_out_header`.
pub(super) fn header(len: u32, unique: u64, error: i32) -> [u8; HEADER_LEN as usize] {
    let mut raw = [0; HEADER_LEN as usize];
    raw[..4].copy_from_slice(&len.to_le_bytes());
    raw[4..8].copy_from_slice(&error.to_le_bytes());
    raw[8..].copy_from_slice(&unique.to_le_bytes());
    raw
}

/// Writes the beginning of an answer; how much that is, or nothing where the guest left no room for all of it.
pub(super) fn put(chain: &Chain<'_>, raw: &[u8]) -> u32 {
    let done = each_writable(chain, raw.len(), |at, addr, len| {
        let part = &raw[at..at + len];
        match chain.piece(addr.0, len) {
            Some(piece) => {
                piece.copy_from(part);
                true
            }
            None => chain.memory().write_slice(part, addr).is_ok(),
        }
    });
    if done {
        u32::try_from(raw.len()).unwrap_or(0)
    } else {
        0
    }
}

/// The error of an answer, positive; 0 if it is none.
pub(super) fn errno(chain: &Chain<'_>) -> i32 {
    word(chain, 4).map_or(0, |word| word.cast_signed().saturating_neg())
}

/// A word of an answer that stands in the guest's buffer already.
pub(super) fn word(chain: &Chain<'_>, at: usize) -> Option<u32> {
    // The header and the first field behind it are all that is ever looked at.
    let mut raw = [0; HEADER_LEN as usize + 4];
    let raw = raw.get_mut(..at + 4)?;
    each_writable(chain, raw.len(), |at, addr, len| {
        chain.memory().read_slice(&mut raw[at..at + len], addr).is_ok()
    })
    .then(|| u32::from_le_bytes([raw[at], raw[at + 1], raw[at + 2], raw[at + 3]]))
}

/// Whether an error answer to this request already stands in the guest's buffer. A guest that forges one fools
/// only itself.
pub(super) fn is_answered(chain: &Chain<'_>, unique: u64) -> bool {
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
    chain: &Chain<'_>,
    len: usize,
    mut step: impl FnMut(usize, GuestAddress, usize) -> bool,
) -> bool {
    let mut at = 0;
    for segment in chain.writable() {
        let here = usize::try_from(segment.len).unwrap_or(usize::MAX).min(len - at);
        if here > 0 && !step(at, GuestAddress(segment.addr), here) {
            return false;
        }
        at += here;
        if at == len {
            return true;
        }
    }
    false
}
