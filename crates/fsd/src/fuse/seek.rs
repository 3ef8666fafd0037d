//! LSEEK: where a file has data and where holes. The FUSE library's VFS passes none on.
//!
//! A share asks its host. Of images nobody knows the holes, so that each file is one piece of data, as it is to a program
//! on a file system without any.

use fuse_backend_rs::abi::fuse_abi::LseekOut;
use fuse_backend_rs::api::Vfs;
use fuse_backend_rs::api::filesystem::FileSystem;
use rustix::fs::FileType;
use rustix::io::{Errno, Result};

use super::direct::{answer, context, errno};
use super::request::{Request, u32_at, u64_at};
use crate::namespace::Shares;
use crate::transport::Chain;

const SEEK_SET: u32 = 0;
const SEEK_END: u32 = 2;
const SEEK_DATA: u32 = 3;
const SEEK_HOLE: u32 = 4;

/// Answers with a place in a file; the number of bytes written for the guest.
///
/// # Errors
/// As `lseek(2)`; `ISDIR` for a directory, and `IO` if the request is too short or has no room for its answer.
pub(super) fn seek(vfs: &Vfs, shares: &Shares, request: &Request<'_>, chain: &Chain<'_>) -> Result<u32> {
    let raw: [u8; 24] = request.argument()?;
    let (handle, offset, whence) = (u64_at(&raw, 0), u64_at(&raw, 8), u32_at(&raw, 16));
    let offset = match shares.node(request.nodeid) {
        Some(node) => node.share.lseek(node.inode, handle, offset, whence)?,
        None => {
            let attr = vfs.getattr(&context(request), request.nodeid.into(), None);
            let (attr, _) = attr.map_err(|e| errno(&e))?;
            if FileType::from_raw_mode(attr.st_mode) == FileType::Directory {
                return Err(Errno::ISDIR);
            }
            without_holes(attr.st_size.cast_unsigned(), offset, whence)?
        }
    };
    answer(chain, request.unique, &LseekOut { offset })
}

/// The end of a file is a hole.
fn without_holes(size: u64, offset: u64, whence: u32) -> Result<u64> {
    match whence {
        SEEK_SET => Ok(offset),
        SEEK_END => size.checked_add_signed(offset.cast_signed()).ok_or(Errno::INVAL),
        SEEK_DATA | SEEK_HOLE if offset >= size => Err(Errno::NXIO),
        SEEK_DATA => Ok(offset),
        SEEK_HOLE => Ok(size),
        _ => Err(Errno::INVAL),
    }
}
