//! Requests that the FUSE library has no case for: COPY_FILE_RANGE, SYNCFS, TMPFILE.
//!
//! A guest that is answered ENOSYS once never asks again on this connection, so that is never the answer here, also
//! not for mounts that cannot do it.

use fuse_backend_rs::abi::fuse_abi::{CreateIn, EntryOut, OpenOut};
use fuse_backend_rs::api::filesystem::Context;
use rustix::io::{Errno, Result};
use vm_memory::ByteValued;

use super::reply;
use super::request::{Request, opcode};
use crate::namespace::Shares;
use crate::transport::Chain;

/// Copied at most at once, in bytes: the answer has 32 bits for it.
const MOST_COPIED: u64 = 1 << 30;

/// Serves a request of these kinds; `None` for any other.
pub(super) fn serve(shares: &Shares, request: &Request<'_>, chain: &Chain<'_>) -> Option<u32> {
    let done = match request.opcode {
        opcode::COPY_FILE_RANGE => copy_file_range(shares, request),
        opcode::SYNCFS => sync(shares, request).map(|()| Vec::new()),
        opcode::TMPFILE => tmpfile(shares, request),
        _ => return None,
    };
    Some(match done {
        Ok(payload) => reply::payload(chain, request.unique, &payload),
        Err(errno) => reply::error(chain, request.unique, errno),
    })
}

/// `fuse_copy_file_range_in`, answered with `fuse_write_out`.
fn copy_file_range(shares: &Shares, request: &Request<'_>) -> Result<Vec<u8>> {
    let raw: [u8; 56] = request.argument()?;
    let mut fields = [0; 7];
    for (field, bytes) in fields.iter_mut().zip(raw.as_chunks::<8>().0) {
        *field = u64::from_le_bytes(*bytes);
    }
    let [
        from_handle,
        from_offset,
        to_node,
        to_handle,
        to_offset,
        len,
        flags,
    ] = fields;
    if flags != 0 {
        return Err(Errno::INVAL);
    }
    // The guest then copies by reading and writing.
    let from = shares.node(request.nodeid).ok_or(Errno::XDEV)?;
    let to = shares.node(to_node).ok_or(Errno::XDEV)?;
    if !from.same_share(&to) {
        return Err(Errno::XDEV);
    }
    let copied = from.share.copy_range(
        (from.inode, from_handle, from_offset),
        (to.inode, to_handle, to_offset),
        usize::try_from(len.min(MOST_COPIED)).map_err(|_| Errno::INVAL)?,
    )?;
    let copied = u32::try_from(copied).map_err(|_| Errno::IO)?;
    Ok([copied.to_le_bytes(), [0; 4]].concat())
}

/// The guest's `sync` and `syncfs`. Its one file system has all shares in it; a submount it has made of a part comes
/// with the inode of that part.
fn sync(shares: &Shares, request: &Request<'_>) -> Result<()> {
    if let Some(node) = shares.node(request.nodeid) {
        return node.share.sync(Some(node.inode));
    }
    // All of them are tried; the first error is told.
    shares
        .all()
        .map(|share| share.sync(None))
        .fold(Ok(()), Result::and)
}

/// `fuse_create_in` and a name that says nothing, answered as CREATE.
fn tmpfile(shares: &Shares, request: &Request<'_>) -> Result<Vec<u8>> {
    let raw: [u8; 16] = request.argument()?;
    let word = |at: usize| u32::from_le_bytes([raw[at], raw[at + 1], raw[at + 2], raw[at + 3]]);
    let args = CreateIn {
        flags: word(0),
        mode: word(4),
        umask: word(8),
        fuse_flags: word(12),
    };
    let parent = shares.node(request.nodeid).ok_or(Errno::OPNOTSUPP)?;
    let mut context = Context::new();
    (context.uid, context.gid, context.pid) = (request.uid, request.gid, request.pid.cast_signed());
    let (mut entry, handle) = parent.share.tmpfile(&context, parent.inode, &args)?;
    entry.inode = parent.nodeid(entry.inode);
    entry.attr.st_ino = entry.inode;
    let opened = OpenOut {
        fh: handle,
        ..OpenOut::default()
    };
    Ok([EntryOut::from(entry).as_slice(), opened.as_slice()].concat())
}
