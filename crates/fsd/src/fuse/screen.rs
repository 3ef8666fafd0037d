//! What a guest asks for and must not get.
//!
//! Each rule is here because the code behind it trusts a length, or writes what it does not understand into the log.
//! All other requests pass and are judged by the file system they are for.

use rustix::io::Errno;

use super::request::{MOST_BYTES, Request, opcode, u32_at};

/// The largest extended attribute or list of names Linux has (`XATTR_SIZE_MAX`, `XATTR_LIST_MAX`), in bytes.
const XATTR_MAX: u32 = 64 * 1024;

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

pub(super) fn screen(request: &Request<'_>) -> Verdict {
    if !request.is_sound {
        return refuse(request.opcode, Errno::IO);
    }
    if request.len > MOST_BYTES {
        return refuse(request.opcode, Errno::NOMEM);
    }
    if let Some(from) = name_at(request.opcode)
        && let Err(errno) = find_end(request, from)
    {
        return Verdict::Refuse(errno);
    }
    match request.opcode {
        // There is no DAX window to map into.
        opcode::SETUPMAPPING | opcode::REMOVEMAPPING => Verdict::Refuse(Errno::NOSYS),
        // No file has any; as much would be allocated for the argument as the guest names.
        opcode::IOCTL => Verdict::Refuse(Errno::NOTTY),
        // The buffer for the answer is allocated at the size the guest names.
        opcode::GETXATTR | opcode::LISTXATTR => match request.argument::<4>() {
            Ok(size) if u32_at(&size, 0) <= XATTR_MAX => Verdict::Pass,
            Ok(_) => Verdict::Refuse(Errno::TOOBIG),
            Err(errno) => Verdict::Refuse(errno),
        },
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
fn name_at(code: u32) -> Option<usize> {
    match code {
        opcode::LOOKUP | opcode::UNLINK | opcode::RMDIR | opcode::REMOVEXATTR => Some(0),
        opcode::MKDIR | opcode::LINK | opcode::GETXATTR => Some(8),
        opcode::MKNOD | opcode::CREATE => Some(16),
        _ => None,
    }
}

/// # Errors
/// `INVAL` if the name has no NUL, `IO` if the request is shorter than it says.
fn find_end(request: &Request<'_>, from: usize) -> Result<(), Errno> {
    let name = request.body()?.get(from..).unwrap_or_default();
    if name.contains(&0) {
        Ok(())
    } else {
        Err(Errno::INVAL)
    }
}
