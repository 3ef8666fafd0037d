//! RENAME and LINK from one mount to another.
//!
//! The VFS answers EINVAL, at which `mv` and `ln` give up; for EXDEV they have another way. The guest's kernel doesn't
//! see it coming: all mounts are one file system to it.

use fuse_backend_rs::abi::fuse_abi::ROOT_ID;
use fuse_backend_rs::api::Vfs;
use rustix::io::Errno;

use super::request::{Request, opcode, u64_at};

/// Where the VFS puts the index of a mount in the number of an inode.
const INDEX_SHIFT: u32 = 56;

/// Refuses what leads from one mount to another.
///
/// # Errors
/// `XDEV`; `IO` if the request is too short.
pub(super) fn check(vfs: &Vfs, request: &Request<'_>) -> Result<(), Errno> {
    if !matches!(request.opcode, opcode::RENAME | opcode::RENAME2 | opcode::LINK) {
        return Ok(());
    }
    // The other directory, or the file that gets another name.
    let other = u64_at(&request.argument::<8>()?, 0);
    match (place(vfs, request.nodeid), place(vfs, other)) {
        (Some(one), Some(other)) if one != other => Err(Errno::XDEV),
        _ => Ok(()),
    }
}

/// The index of the mount that an inode is in; `None` if it leads to mounts only.
fn place(vfs: &Vfs, nodeid: u64) -> Option<u8> {
    match u8::try_from(nodeid >> INDEX_SHIFT).ok()? {
        // What is mounted at the root has two names there: FUSE's and its own.
        0 if nodeid == ROOT_ID => vfs.get_rootfs("/").ok().flatten().map(|(_, index)| index),
        0 => None,
        index => Some(index),
    }
}
