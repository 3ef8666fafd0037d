//! OPEN, answered here for one flag that the FUSE library has no name for: that closing a file needs no FLUSH.
//!
//! A guest that is answered ENOSYS to a FLUSH never sends one again (`absent.rs`); one that is told with each file of an
//! image that there is nothing to flush saves the requests for those alone.

use fuse_backend_rs::abi::fuse_abi::OpenOut;
use fuse_backend_rs::api::Vfs;
use fuse_backend_rs::api::filesystem::FileSystem;
use rustix::io::Errno;

use super::direct::{answer, context, errno};
use super::request::{Request, u32_at};
use crate::namespace::Shares;
use crate::transport::Chain;

/// `FOPEN_NOFLUSH`, of FUSE 7.35; older guests do not look at it.
const NOFLUSH: u32 = 1 << 5;

/// Opens a file; the number of bytes written for the guest.
///
/// # Errors
/// Those of the file system, and `IO` if the request is too short or has no room for its answer.
pub(super) fn open(
    vfs: &Vfs,
    shares: &Shares,
    request: &Request<'_>,
    chain: &Chain<'_>,
) -> Result<u32, Errno> {
    let raw: [u8; 8] = request.argument()?;
    let (handle, options, passthrough) = vfs
        .open(
            &context(request),
            request.nodeid.into(),
            u32_at(&raw, 0),
            u32_at(&raw, 4),
        )
        .map_err(|e| errno(&e))?;
    let noflush = if shares.node(request.nodeid).is_some() {
        0
    } else {
        NOFLUSH
    };
    let body = OpenOut {
        fh: handle.unwrap_or_default(),
        open_flags: options.bits() | noflush,
        passthrough: passthrough.unwrap_or_default(),
    };
    answer(chain, request.unique, &body)
}
