//! Extended attributes of shares by name: SETXATTR, GETXATTR, REMOVEXATTR.
//!
//! The FUSE library's VFS takes them for names of files and refuses `user.a/b`, which file systems have, and list.

use std::ffi::CStr;

use fuse_backend_rs::abi::fuse_abi::GetxattrOut;
use fuse_backend_rs::api::filesystem::GetxattrReply;
use rustix::io::{Errno, Result};
use vm_memory::ByteValued;

use super::reply;
use super::request::{Request, opcode, u32_at};
use crate::namespace::{ShareNode, Shares};
use crate::transport::Chain;

/// Serves a request of these kinds; `None` for any other, and for what is in no share.
pub(super) fn serve(shares: &Shares, request: &Request<'_>, chain: &Chain<'_>) -> Option<u32> {
    let serve = match request.opcode {
        opcode::SETXATTR => set,
        opcode::GETXATTR => get,
        opcode::REMOVEXATTR => remove,
        _ => return None,
    };
    Some(match serve(&shares.node(request.nodeid)?, request) {
        Ok(payload) => reply::payload(chain, request.unique, &payload),
        Err(errno) => reply::error(chain, request.unique, errno),
    })
}

/// The name that begins there in the request's body, and what comes behind it.
fn name<'m>(request: &Request<'m>, at: usize) -> Result<(&'m CStr, &'m [u8])> {
    let from = request.body()?.get(at..).ok_or(Errno::IO)?;
    let name = CStr::from_bytes_until_nul(from).map_err(|_| Errno::INVAL)?;
    Ok((name, &from[name.count_bytes() + 1..]))
}

/// `fuse_setxattr_in` as it is without SETXATTR_EXT, the name, the value.
fn set(node: &ShareNode, request: &Request<'_>) -> Result<Vec<u8>> {
    let raw: [u8; 8] = request.argument()?;
    let (name, value) = name(request, raw.len())?;
    if value.len() != u32_at(&raw, 0) as usize {
        return Err(Errno::INVAL);
    }
    node.share.setxattr(node.inode, name, value, u32_at(&raw, 4))?;
    Ok(Vec::new())
}

/// `fuse_getxattr_in` and the name.
fn get(node: &ShareNode, request: &Request<'_>) -> Result<Vec<u8>> {
    let raw: [u8; 8] = request.argument()?;
    let (name, _) = name(request, raw.len())?;
    Ok(match node.share.getxattr(node.inode, name, u32_at(&raw, 0))? {
        GetxattrReply::Value(value) => value,
        GetxattrReply::Count(size) => GetxattrOut { size, padding: 0 }.as_slice().to_vec(),
    })
}

/// The name.
fn remove(node: &ShareNode, request: &Request<'_>) -> Result<Vec<u8>> {
    node.share.removexattr(node.inode, name(request, 0)?.0)?;
    Ok(Vec::new())
}
