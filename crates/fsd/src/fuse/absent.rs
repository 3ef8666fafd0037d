//! What a file system does not do, said for that file system alone.
//!
//! To a guest's kernel all mounts are one connection: where an operation is answered ENOSYS once, it never asks for it
//! again, of no mount, and takes it for done where that is how it began (FLUSH, FSYNC). What images and the directories
//! above mounts have no answer to would so be lost on shares. So ENOSYS is the answer only to what no file system here
//! has.

use fuse_backend_rs::abi::fuse_abi::GetxattrOut;
use rustix::io::Errno;
use vm_memory::ByteValued;

use super::reply;
use super::request::{Request, opcode, u32_at};
use crate::namespace::Shares;
use crate::transport::Chain;

/// What is said instead of ENOSYS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Instead {
    /// There is nothing to do.
    Done,
    /// There are none, in the form of LISTXATTR.
    NoNames,
    Refused(Errno),
}

/// Answers for a file system that has no answer to a request; `None` if no other has one either.
pub(super) fn answer(shares: &Shares, request: &Request<'_>, chain: &Chain<'_>) -> Option<u32> {
    let instead = instead(request.opcode, shares.node(request.nodeid).is_some())?;
    Some(match instead {
        Instead::Done => reply::ok(chain, request.unique),
        Instead::Refused(errno) => reply::error(chain, request.unique, errno),
        // Who gives no room asks for the length.
        Instead::NoNames => match request.argument::<4>() {
            Ok(room) if u32_at(&room, 0) == 0 => {
                reply::payload(chain, request.unique, GetxattrOut::default().as_slice())
            }
            _ => reply::ok(chain, request.unique),
        },
    })
}

fn instead(code: u32, of_share: bool) -> Option<Instead> {
    let instead = match code {
        opcode::FLUSH | opcode::FSYNC | opcode::FSYNCDIR => Instead::Done,
        opcode::LISTXATTR => Instead::NoNames,
        opcode::GETXATTR => Instead::Refused(Errno::NODATA),
        opcode::SETATTR
        | opcode::SYMLINK
        | opcode::MKNOD
        | opcode::MKDIR
        | opcode::UNLINK
        | opcode::RMDIR
        | opcode::RENAME
        | opcode::RENAME2
        | opcode::LINK
        | opcode::WRITE
        | opcode::SETXATTR
        | opcode::REMOVEXATTR
        | opcode::CREATE
        | opcode::FALLOCATE => Instead::Refused(Errno::ROFS),
        opcode::READLINK => Instead::Refused(Errno::INVAL),
        // Only directories have no data.
        opcode::READ => Instead::Refused(Errno::ISDIR),
        _ => return None,
    };
    // A share has all of them. If its host's file system has not, that is not the other shares' affair.
    Some(if of_share {
        Instead::Refused(Errno::OPNOTSUPP)
    } else {
        instead
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_share_has_is_switched_off_by_nobody() {
        // All that Linux 6.12 does not ask for again once it was answered ENOSYS, but for what each mount answers (OPEN,
        // LSEEK) and what none has: BMAP, IOCTL, POLL, STATX, and locks, which are the guest's own.
        for code in [
            opcode::FLUSH,
            opcode::FSYNC,
            opcode::FSYNCDIR,
            opcode::CREATE,
            opcode::RENAME2,
            opcode::SETXATTR,
            opcode::GETXATTR,
            opcode::LISTXATTR,
            opcode::REMOVEXATTR,
            opcode::FALLOCATE,
        ] {
            assert!(instead(code, false).is_some(), "{code}");
        }
        assert_eq!(
            instead(opcode::FSYNC, true),
            Some(Instead::Refused(Errno::OPNOTSUPP))
        );
        assert_eq!(instead(opcode::IOCTL, false), None);
    }
}
