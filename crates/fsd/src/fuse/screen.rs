//! What a guest asks for and must not get.
//!
//! Each rule is here because the code behind it trusts a length, or writes what it does not understand into the log.
//! All other requests pass and are judged by the file system they are for.

use rustix::io::Errno;

use super::header::{IN_HEADER_LEN, InHeader, opcode, read_at};
use crate::transport::Chain;

/// The largest extended attribute or list of names Linux has (`XATTR_SIZE_MAX`, `XATTR_LIST_MAX`), in bytes.
const XATTR_MAX: u32 = 64 * 1024;
/// The longest request, in bytes: a WRITE of all that FUSE_INIT allows, with room for what comes before it.
const MOST_BYTES: u32 = (1 << 20) + 4096;
/// What a driver's buffers may have beyond what its header says, in bytes. Those of Linux, Windows and edk2 have nothing.
const SLACK: u64 = 4096;
/// How much of a name is looked at at once, in bytes: all of any that a file can have.
const NAME_PART: usize = 256;

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is served.
    Pass,
    /// It is answered with this error.
    Refuse(Errno),
    /// It has no answer and no effect.
    Drop,
}

pub(super) fn screen(header: &InHeader, chain: &Chain<'_>) -> Verdict {
    // Descriptors may all name the same page: what can be read is no measure of what a guest has.
    let readable = chain.readable().iter().map(|s| u64::from(s.len)).sum::<u64>();
    if header.len < IN_HEADER_LEN || readable > u64::from(header.len) + SLACK {
        return refuse(header.opcode, Errno::IO);
    }
    if header.len > MOST_BYTES {
        return refuse(header.opcode, Errno::NOMEM);
    }
    if let Some(from) = name_at(header.opcode)
        && let Err(errno) = find_end(header, chain, from)
    {
        return Verdict::Refuse(errno);
    }
    match header.opcode {
        // There is no DAX window to map into.
        opcode::SETUPMAPPING | opcode::REMOVEMAPPING => Verdict::Refuse(Errno::NOSYS),
        // No file has any; as much would be allocated for the argument as the guest names.
        opcode::IOCTL => Verdict::Refuse(Errno::NOTTY),
        // The buffer for the answer is allocated at the size the guest names.
        opcode::GETXATTR | opcode::LISTXATTR => {
            let mut size = [0; 4];
            match read_at(chain, u64::from(IN_HEADER_LEN), &mut size) {
                Some(()) if u32::from_le_bytes(size) <= XATTR_MAX => Verdict::Pass,
                Some(()) => Verdict::Refuse(Errno::TOOBIG),
                None => Verdict::Refuse(Errno::IO),
            }
        }
        // Requests run to their end here; there is nothing to interrupt and no answer.
        opcode::INTERRUPT => Verdict::Drop,
        _ => Verdict::Pass,
    }
}

fn refuse(code: u32, errno: Errno) -> Verdict {
    if matches!(code, opcode::FORGET | opcode::BATCH_FORGET) {
        Verdict::Drop
    } else {
        Verdict::Refuse(errno)
    }
}

/// Where in its argument a request has a name that the library quotes in the log if it has no end, in bytes.
fn name_at(code: u32) -> Option<u32> {
    match code {
        opcode::LOOKUP | opcode::UNLINK | opcode::RMDIR | opcode::REMOVEXATTR => Some(0),
        opcode::MKDIR | opcode::LINK | opcode::GETXATTR => Some(8),
        opcode::MKNOD | opcode::CREATE => Some(16),
        _ => None,
    }
}

/// # Errors
/// `INVAL` if the name has no NUL, `IO` if the request is shorter than it says.
fn find_end(header: &InHeader, chain: &Chain<'_>, from: u32) -> Result<(), Errno> {
    let mut at = u64::from(IN_HEADER_LEN + from);
    let mut part = [0; NAME_PART];
    while at < u64::from(header.len) {
        let left = usize::try_from(u64::from(header.len) - at).unwrap_or(NAME_PART);
        let part = &mut part[..left.min(NAME_PART)];
        read_at(chain, at, part).ok_or(Errno::IO)?;
        if part.contains(&0) {
            return Ok(());
        }
        at += part.len() as u64;
    }
    Err(Errno::INVAL)
}
