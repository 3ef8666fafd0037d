//! FORGET and BATCH_FORGET of what is not mounted any more, which the VFS would write into the log, each.
//!
//! Such requests are usual after an unmount, and a guest may send any number of them. BATCH_FORGET is decoded here.

use fuse_backend_rs::api::Vfs;
use fuse_backend_rs::api::filesystem::FileSystem;

use super::direct::context;
use super::request::{Request, opcode, u32_at, u64_at};
use crate::namespace::Shares;

/// Sizes of `fuse_batch_forget_in` and `fuse_forget_one`, in bytes.
const BATCH_IN: usize = 8;
const ONE: usize = 16;

/// Forgets, or finds that there is nothing to forget; false for any other request. There is no answer.
pub(super) fn forget(vfs: &Vfs, shares: &Shares, request: &Request<'_>) -> bool {
    match request.opcode {
        opcode::FORGET => !shares.is_mounted(request.nodeid),
        opcode::BATCH_FORGET => {
            for (nodeid, count) in batch(request) {
                if shares.is_mounted(nodeid) {
                    vfs.forget(&context(request), nodeid.into(), count);
                }
            }
            true
        }
        _ => false,
    }
}

/// The inodes of a BATCH_FORGET and how often each is forgotten; none if it has fewer than it says.
pub(super) fn batch<'m>(request: &Request<'m>) -> impl Iterator<Item = (u64, u64)> + use<'m> {
    let body = request.body().unwrap_or_default();
    let list = body.split_at_checked(BATCH_IN).and_then(|(head, rest)| {
        let count = usize::try_from(u32_at(head, 0)).ok()?;
        rest.get(..count.checked_mul(ONE)?)
    });
    let one = |raw: &[u8]| (u64_at(raw, 0), u64_at(raw, 8));
    list.unwrap_or_default().chunks_exact(ONE).map(one)
}
