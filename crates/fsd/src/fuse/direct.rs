//! The requests guests send most, decoded and answered here: GETATTR, LOOKUP, FORGET, READ and WRITE; in `listing.rs`
//! READDIR and READDIRPLUS.
//!
//! fuse-backend-rs' server walks a chain twice and allocates several times for a request, which takes longer than
//! answering it does; here nothing is allocated and data goes from the file system straight into guest memory. What
//! is answered is the same, byte for byte (the tests compare). Whatever is unusual about a request is left to the
//! server.

use std::ffi::CStr;
use std::io;

use fuse_backend_rs::abi::fuse_abi::{
    AttrOut, EntryOut, READ_LOCKOWNER, WRITE_CACHE, WRITE_LOCKOWNER, WriteOut,
};
use fuse_backend_rs::api::filesystem::{Context, FileSystem};
use rustix::io::Errno;
use vm_memory::ByteValued;

use super::buffers::{GuestReader, GuestWriter};
use super::listing::list;
use super::reply::{self, HEADER_LEN};
use super::request::{IN_HEADER_LEN, Request, WRITE_IN_LEN, opcode, u32_at, u64_at};
use crate::transport::Chain;

/// Room for a name: `NAME_MAX` and its end. A longer one is unusual.
const NAME_ROOM: u32 = 256;
/// `fuse_getattr_in.getattr_flags`: the handle counts.
const GETATTR_FH: u32 = 1;
/// The longest request that may be one of these; the server refuses much longer ones.
const USUAL_LEN: u32 = 4096;

pub(super) const HEADER: usize = HEADER_LEN as usize;

/// Answers a request, if it is one of those; the number of bytes written for the guest.
pub(super) fn serve<F>(fs: &F, request: &Request<'_>, chain: &Chain<'_>) -> Option<u32>
where
    F: FileSystem,
    F::Inode: From<u64>,
    F::Handle: From<u64>,
{
    if request.len > USUAL_LEN && request.opcode != opcode::WRITE {
        return None;
    }
    let answered = match request.opcode {
        opcode::GETATTR => getattr(fs, request, chain),
        opcode::LOOKUP => {
            if request.len - IN_HEADER_LEN > NAME_ROOM {
                return None;
            }
            lookup(fs, request, chain)
        }
        opcode::FORGET => {
            let count = u64_at(&request.argument::<8>().ok()?, 0);
            fs.forget(&context(request), request.nodeid.into(), count);
            Ok(0)
        }
        opcode::READ => read(fs, request, chain),
        opcode::WRITE => write(fs, request, chain),
        opcode::READDIR => list(fs, request, chain, false)?,
        opcode::READDIRPLUS => list(fs, request, chain, true)?,
        _ => return None,
    };
    Some(answered.unwrap_or_else(|errno| reply::error(chain, request.unique, errno)))
}

pub(super) fn context(request: &Request<'_>) -> Context {
    Context {
        uid: request.uid,
        gid: request.gid,
        pid: request.pid.cast_signed(),
    }
}

pub(super) fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

/// Answers with a body of fixed size.
pub(super) fn answer<T: ByteValued>(chain: &Chain<'_>, unique: u64, body: &T) -> Result<u32, Errno> {
    // `fuse_entry_out` is the largest.
    let mut raw = [0; HEADER + size_of::<EntryOut>()];
    let len = HEADER + size_of::<T>();
    let len_u32 = u32::try_from(len).map_err(|_| Errno::IO)?;
    raw[..HEADER].copy_from_slice(&reply::header(len_u32, unique, 0));
    raw[HEADER..len].copy_from_slice(body.as_slice());
    match reply::put(chain, &raw[..len]) {
        0 => Err(Errno::IO),
        written => Ok(written),
    }
}

fn getattr<F>(fs: &F, request: &Request<'_>, chain: &Chain<'_>) -> Result<u32, Errno>
where
    F: FileSystem,
    F::Inode: From<u64>,
    F::Handle: From<u64>,
{
    let raw: [u8; 16] = request.argument()?;
    let handle = (u32_at(&raw, 0) & GETATTR_FH != 0).then(|| u64_at(&raw, 8).into());
    let (attr, timeout) = fs
        .getattr(&context(request), request.nodeid.into(), handle)
        .map_err(|e| errno(&e))?;
    let body = AttrOut {
        attr_valid: timeout.as_secs(),
        attr_valid_nsec: timeout.subsec_nanos(),
        dummy: 0,
        attr: attr.into(),
    };
    answer(chain, request.unique, &body)
}

fn lookup<F>(fs: &F, request: &Request<'_>, chain: &Chain<'_>) -> Result<u32, Errno>
where
    F: FileSystem,
    F::Inode: From<u64>,
{
    let name = CStr::from_bytes_until_nul(request.body()?).map_err(|_| Errno::INVAL)?;
    let entry = fs
        .lookup(&context(request), request.nodeid.into(), name)
        .map_err(|e| errno(&e))?;
    answer(chain, request.unique, &EntryOut::from(entry))
}

fn read<F>(fs: &F, request: &Request<'_>, chain: &Chain<'_>) -> Result<u32, Errno>
where
    F: FileSystem,
    F::Inode: From<u64>,
    F::Handle: From<u64>,
{
    let raw: [u8; 40] = request.argument()?;
    let lock_owner = (u32_at(&raw, 20) & READ_LOCKOWNER != 0).then(|| u64_at(&raw, 24));
    let mut writer = GuestWriter::new(chain, HEADER).ok_or(Errno::IO)?;
    let count = fs
        .read(
            &context(request),
            request.nodeid.into(),
            u64_at(&raw, 0).into(),
            &mut writer,
            u32_at(&raw, 16),
            u64_at(&raw, 8),
            lock_owner,
            u32_at(&raw, 32),
        )
        .map_err(|e| errno(&e))?;
    let len = u32::try_from(HEADER + count).map_err(|_| Errno::IO)?;
    match reply::put(chain, &reply::header(len, request.unique, 0)) {
        0 => Err(Errno::IO),
        _ => Ok(len),
    }
}

/// The data stay in guest memory: all else of the request was copied, and the library takes all or nothing.
fn write<F>(fs: &F, request: &Request<'_>, chain: &Chain<'_>) -> Result<u32, Errno>
where
    F: FileSystem,
    F::Inode: From<u64>,
    F::Handle: From<u64>,
{
    let raw: [u8; WRITE_IN_LEN as usize] = request.argument()?;
    let mut data = GuestReader::new(chain, (IN_HEADER_LEN + WRITE_IN_LEN) as usize).ok_or(Errno::IO)?;
    let fuse_flags = u32_at(&raw, 20);
    let count = fs
        .write(
            &context(request),
            request.nodeid.into(),
            u64_at(&raw, 0).into(),
            &mut data,
            u32_at(&raw, 16),
            u64_at(&raw, 8),
            (fuse_flags & WRITE_LOCKOWNER != 0).then(|| u64_at(&raw, 24)),
            fuse_flags & WRITE_CACHE != 0,
            u32_at(&raw, 32),
            fuse_flags,
        )
        .map_err(|e| errno(&e))?;
    let body = WriteOut {
        size: u32::try_from(count).map_err(|_| Errno::IO)?,
        ..WriteOut::default()
    };
    answer(chain, request.unique, &body)
}

#[cfg(test)]
#[path = "direct_tests.rs"]
mod tests;
