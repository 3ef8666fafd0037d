//! What became of a request, read off its answer: the file systems behind it need not be asked.
//!
//! The answer is in guest memory already. A guest that changes it in this moment changes its own figures only.

use std::time::Instant;

use rustix::io::Errno;

use super::reply::{self, HEADER_LEN};
use super::request::{IN_HEADER_LEN, Request, opcode};
use crate::metrics::Answered;
use crate::transport::Chain;

/// Size of `fuse_write_in`, in bytes; the content comes behind it.
const WRITE_IN: u32 = 40;
/// Size of the answer to a WRITE, in bytes: the header and `fuse_write_out`.
const WRITE_ANSWER: u32 = HEADER_LEN + 8;

/// What is counted of a request that was answered with `written` bytes.
pub(super) fn of(request: &Request<'_>, chain: &Chain<'_>, written: u32, began: Instant) -> Answered {
    // An error is a bare header; so is many a success.
    let failed = written == HEADER_LEN && !is_an_answer(request.opcode, reply::errno(chain));
    let bytes = match request.opcode {
        opcode::READ => written.saturating_sub(HEADER_LEN),
        opcode::WRITE if written == WRITE_ANSWER => {
            let sent = request.len.saturating_sub(IN_HEADER_LEN + WRITE_IN);
            reply::word(chain, HEADER_LEN as usize).unwrap_or(0).min(sent)
        }
        _ => 0,
    };
    Answered {
        nodeid: request.nodeid,
        opcode: request.opcode,
        began,
        failed,
        bytes: bytes.into(),
    }
}

/// Whether this "error" is what was asked for: that there is no such name.
fn is_an_answer(code: u32, errno: i32) -> bool {
    errno == 0
        || (code == opcode::LOOKUP && errno == Errno::NOENT.raw_os_error())
        || (code == opcode::GETXATTR && errno == Errno::NODATA.raw_os_error())
}
