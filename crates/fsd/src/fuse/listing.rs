//! READDIR and READDIRPLUS, answered as `direct.rs` answers what else is frequent: entries go into guest memory one
//! by one as the file system gives them out, and nothing is allocated.

use std::io;

use fuse_backend_rs::abi::fuse_abi::{Dirent, EntryOut};
use fuse_backend_rs::api::filesystem::{DirEntry, Entry, FileSystem, ZeroCopyWriter};
use rustix::io::Errno;
use vm_memory::ByteValued;

use super::buffers::GuestWriter;
use super::direct::{HEADER, context, errno};
use super::reply;
use super::request::{Request, u32_at, u64_at};
use crate::transport::Chain;

/// What entries begin at a multiple of, in bytes.
const ALIGNMENT: usize = 8;

/// Answers the request; `None` if it is unusual.
pub(super) fn list<F>(
    fs: &F,
    request: &Request<'_>,
    chain: &Chain<'_>,
    plus: bool,
) -> Option<Result<u32, Errno>>
where
    F: FileSystem,
    F::Inode: From<u64>,
    F::Handle: From<u64>,
{
    let raw: [u8; 40] = request.argument().ok()?;
    let (handle, offset, size) = (u64_at(&raw, 0), u64_at(&raw, 8), u32_at(&raw, 16));
    let room = usize::try_from(size).ok()?;
    let writer = GuestWriter::new(chain, HEADER)?;
    if writer.available_bytes() + HEADER < room {
        return Some(Err(Errno::NOMEM));
    }
    if writer.available_bytes() < room {
        return None;
    }
    let mut answer = Entries { writer, left: room };
    let (ctx, inode, handle) = (context(request), request.nodeid.into(), handle.into());
    let listed = if plus {
        let mut add = |dirent: DirEntry<'_>, entry| answer.add(&dirent, Some(entry));
        fs.readdirplus(&ctx, inode, handle, size, offset, &mut add)
    } else {
        let mut add = |dirent: DirEntry<'_>| answer.add(&dirent, None);
        fs.readdir(&ctx, inode, handle, size, offset, &mut add)
    };
    let finish = |()| {
        let len = u32::try_from(HEADER + room - answer.left).map_err(|_| Errno::IO)?;
        match reply::put(chain, &reply::header(len, request.unique, 0)) {
            0 => Err(Errno::IO),
            _ => Ok(len),
        }
    };
    Some(listed.map_err(|e| errno(&e)).and_then(finish))
}

/// The entries written so far.
struct Entries<'r> {
    writer: GuestWriter<'r>,
    left: usize,
}

impl Entries<'_> {
    /// Adds an entry, and what a lookup of it would be answered with if it is given. The bytes that took; 0 if they
    /// do not fit.
    fn add(&mut self, entry: &DirEntry<'_>, found: Option<Entry>) -> io::Result<usize> {
        // What has no type was not looked up. A guest knows that by a node of number 0; the VFS, which had to make
        // the number of the entry from it, does not.
        let found = found.map(|found| match found.attr.st_mode {
            0 => EntryOut::default(),
            _ => EntryOut::from(found),
        });
        let found = found.as_ref().map_or(&[][..], ByteValued::as_slice);
        let dirent = Dirent {
            ino: entry.ino,
            off: entry.offset,
            namelen: u32::try_from(entry.name.len()).map_err(|_| Errno::OVERFLOW)?,
            type_: entry.type_,
        };
        let len = size_of::<Dirent>() + entry.name.len();
        let padding = len.next_multiple_of(ALIGNMENT) - len;
        let whole = found.len() + len + padding;
        if whole > self.left {
            return Ok(0);
        }
        for part in [found, dirent.as_slice(), entry.name, &[0; ALIGNMENT][..padding]] {
            io::Write::write_all(&mut self.writer, part)?;
        }
        self.left -= whole;
        Ok(whole)
    }
}
