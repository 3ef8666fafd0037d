//! FUSE requests as values: one function per opcode, nothing sent.
//!
//! Give them to [`SimGuest::submit`](crate::guest::SimGuest::submit) to have many in flight, or use
//! the blocking calls of [`FuseClient`](super::FuseClient).

use super::types::{ATTR_OUT_BYTES, ENTRY_BYTES, SetAttr};
use super::wire::{Put, fattr, init, op};
use crate::guest::request::{Lane, Request};

fn c_string(name: &[u8]) -> Vec<u8> {
    let mut out = name.to_vec();
    out.push(0);
    out
}

fn reply(mut request: Request, args: usize, data: usize) -> Request {
    request.reply_args = args;
    request.reply_data = data;
    request
}

/// FUSE_INIT with these flags and minor version.
pub fn init(minor: u32, flags: u64) -> Request {
    let [low, high] = [flags & 0xffff_ffff, flags >> 32].map(|half| u32::try_from(half).unwrap_or(0));
    let body = Put::default()
        .u32(7)
        .u32(minor)
        .u32(128 << 10)
        .u32(low)
        .u32(high)
        .zeros(44);
    reply(Request::new(op::INIT, 0).arg(body.done()), 64, 0)
}

/// FUSE_INIT as Linux 6.1 sends it.
pub fn init_linux_6_1() -> Request {
    init(37, init::LINUX_6_1)
}

/// FUSE_DESTROY.
pub fn destroy() -> Request {
    Request::new(op::DESTROY, 0)
}

/// FUSE_LOOKUP.
pub fn lookup(parent: u64, name: &[u8]) -> Request {
    reply(
        Request::new(op::LOOKUP, parent).arg(c_string(name)),
        ENTRY_BYTES,
        0,
    )
}

/// FUSE_FORGET on the hiprio queue; it has no answer.
pub fn forget(nodeid: u64, lookups: u64) -> Request {
    let mut request = Request::new(op::FORGET, nodeid)
        .arg(Put::default().u64(lookups).done())
        .on(Lane::Hiprio);
    request.answered = false;
    request
}

/// FUSE_GETATTR, by handle if there is one.
pub fn getattr(nodeid: u64, fh: Option<u64>) -> Request {
    let body = Put::default()
        .u32(fh.is_some().into())
        .u32(0)
        .u64(fh.unwrap_or(0));
    reply(
        Request::new(op::GETATTR, nodeid).arg(body.done()),
        ATTR_OUT_BYTES,
        0,
    )
}

/// FUSE_SETATTR.
pub fn setattr(nodeid: u64, set: &SetAttr) -> Request {
    let bit = |present: bool, bit: u32| if present { bit } else { 0 };
    let valid = bit(set.mode.is_some(), fattr::MODE)
        | bit(set.uid.is_some(), fattr::UID)
        | bit(set.gid.is_some(), fattr::GID)
        | bit(set.size.is_some(), fattr::SIZE)
        | bit(set.mtime.is_some(), fattr::MTIME)
        | bit(set.fh.is_some(), fattr::FH);
    let (mtime, mtime_nsec) = set.mtime.unwrap_or_default();
    let body = Put::default()
        .u32(valid)
        .u32(0)
        .u64(set.fh.unwrap_or(0))
        .u64(set.size.unwrap_or(0))
        .u64(0) // lock owner
        .u64(0) // atime
        .u64(mtime)
        .u64(0) // ctime
        .u32(0)
        .u32(mtime_nsec)
        .u32(0)
        .u32(set.mode.unwrap_or(0))
        .u32(0)
        .u32(set.uid.unwrap_or(0))
        .u32(set.gid.unwrap_or(0))
        .u32(0);
    reply(
        Request::new(op::SETATTR, nodeid).arg(body.done()),
        ATTR_OUT_BYTES,
        0,
    )
}

/// FUSE_READLINK.
pub fn readlink(nodeid: u64) -> Request {
    reply(Request::new(op::READLINK, nodeid), 0, 4096)
}

/// FUSE_SYMLINK.
pub fn symlink(parent: u64, name: &[u8], target: &[u8]) -> Request {
    reply(
        Request::new(op::SYMLINK, parent)
            .arg(c_string(name))
            .arg(c_string(target)),
        ENTRY_BYTES,
        0,
    )
}

/// FUSE_MKNOD.
pub fn mknod(parent: u64, name: &[u8], mode: u32, rdev: u32) -> Request {
    let body = Put::default().u32(mode).u32(rdev).u32(0).u32(0);
    reply(
        Request::new(op::MKNOD, parent)
            .arg(body.done())
            .arg(c_string(name)),
        ENTRY_BYTES,
        0,
    )
}

/// FUSE_MKDIR.
pub fn mkdir(parent: u64, name: &[u8], mode: u32) -> Request {
    let body = Put::default().u32(mode).u32(0);
    reply(
        Request::new(op::MKDIR, parent)
            .arg(body.done())
            .arg(c_string(name)),
        ENTRY_BYTES,
        0,
    )
}

/// FUSE_UNLINK.
pub fn unlink(parent: u64, name: &[u8]) -> Request {
    Request::new(op::UNLINK, parent).arg(c_string(name))
}

/// FUSE_RMDIR.
pub fn rmdir(parent: u64, name: &[u8]) -> Request {
    Request::new(op::RMDIR, parent).arg(c_string(name))
}

/// FUSE_RENAME.
pub fn rename(from: (u64, &[u8]), to: (u64, &[u8])) -> Request {
    let body = Put::default().u64(to.0).done();
    Request::new(op::RENAME, from.0)
        .arg(body)
        .arg(c_string(from.1))
        .arg(c_string(to.1))
}

/// FUSE_RENAME2; `flags` as renameat2(2).
pub fn rename2(from: (u64, &[u8]), to: (u64, &[u8]), flags: u32) -> Request {
    let body = Put::default().u64(to.0).u32(flags).u32(0).done();
    Request::new(op::RENAME2, from.0)
        .arg(body)
        .arg(c_string(from.1))
        .arg(c_string(to.1))
}

/// FUSE_LINK: a new name for `nodeid`.
pub fn link(nodeid: u64, parent: u64, name: &[u8]) -> Request {
    let body = Put::default().u64(nodeid).done();
    reply(
        Request::new(op::LINK, parent).arg(body).arg(c_string(name)),
        ENTRY_BYTES,
        0,
    )
}

/// FUSE_OPEN; `flags` as open(2).
pub fn open(nodeid: u64, flags: u32) -> Request {
    reply(
        Request::new(op::OPEN, nodeid).arg(Put::default().u32(flags).u32(0).done()),
        16,
        0,
    )
}

/// FUSE_OPENDIR.
pub fn opendir(nodeid: u64) -> Request {
    reply(
        Request::new(op::OPENDIR, nodeid).arg(Put::default().u32(0).u32(0).done()),
        16,
        0,
    )
}

/// FUSE_CREATE: makes and opens a file.
pub fn create(parent: u64, name: &[u8], mode: u32, flags: u32) -> Request {
    let body = Put::default().u32(flags).u32(mode).u32(0).u32(0);
    reply(
        Request::new(op::CREATE, parent)
            .arg(body.done())
            .arg(c_string(name)),
        ENTRY_BYTES + 16,
        0,
    )
}

/// FUSE_READ of up to `size` bytes.
pub fn read(nodeid: u64, fh: u64, offset: u64, size: u32) -> Request {
    let request = Request::new(op::READ, nodeid).arg(read_in(fh, offset, size));
    reply(request, 0, usize::try_from(size).unwrap_or(usize::MAX))
}

/// FUSE_READDIR of up to `size` bytes.
pub fn readdir(nodeid: u64, fh: u64, offset: u64, size: u32) -> Request {
    let request = Request::new(op::READDIR, nodeid).arg(read_in(fh, offset, size));
    reply(request, 0, usize::try_from(size).unwrap_or(usize::MAX))
}

/// FUSE_READDIRPLUS of up to `size` bytes.
pub fn readdirplus(nodeid: u64, fh: u64, offset: u64, size: u32) -> Request {
    let request = Request::new(op::READDIRPLUS, nodeid).arg(read_in(fh, offset, size));
    reply(request, 0, usize::try_from(size).unwrap_or(usize::MAX))
}

fn read_in(fh: u64, offset: u64, size: u32) -> Vec<u8> {
    Put::default()
        .u64(fh)
        .u64(offset)
        .u32(size)
        .u32(0)
        .u64(0)
        .u32(0)
        .u32(0)
        .done()
}

/// FUSE_WRITE.
pub fn write(nodeid: u64, fh: u64, offset: u64, data: &[u8]) -> Request {
    let size = u32::try_from(data.len()).unwrap_or(u32::MAX);
    let body = Put::default()
        .u64(fh)
        .u64(offset)
        .u32(size)
        .u32(0)
        .u64(0)
        .u32(0)
        .u32(0);
    let mut request = Request::new(op::WRITE, nodeid).arg(body.done());
    request.payload = data.to_vec();
    reply(request, 8, 0)
}

/// FUSE_RELEASE.
pub fn release(nodeid: u64, fh: u64) -> Request {
    Request::new(op::RELEASE, nodeid).arg(Put::default().u64(fh).u32(0).u32(0).u64(0).done())
}

/// FUSE_RELEASEDIR.
pub fn releasedir(nodeid: u64, fh: u64) -> Request {
    Request::new(op::RELEASEDIR, nodeid).arg(Put::default().u64(fh).u32(0).u32(0).u64(0).done())
}

/// FUSE_FLUSH.
pub fn flush(nodeid: u64, fh: u64) -> Request {
    Request::new(op::FLUSH, nodeid).arg(Put::default().u64(fh).u32(0).u32(0).u64(0).done())
}

/// FUSE_FSYNC; `data_only` is fdatasync.
pub fn fsync(nodeid: u64, fh: u64, data_only: bool) -> Request {
    Request::new(op::FSYNC, nodeid).arg(Put::default().u64(fh).u32(data_only.into()).u32(0).done())
}

/// FUSE_FSYNCDIR.
pub fn fsyncdir(nodeid: u64, fh: u64) -> Request {
    Request::new(op::FSYNCDIR, nodeid).arg(Put::default().u64(fh).u32(0).u32(0).done())
}

/// FUSE_STATFS.
pub fn statfs(nodeid: u64) -> Request {
    reply(Request::new(op::STATFS, nodeid), 80, 0)
}

/// FUSE_SETXATTR; `extended` if SETXATTR_EXT was agreed, which makes the argument longer.
pub fn setxattr(nodeid: u64, name: &[u8], value: &[u8], flags: u32, extended: bool) -> Request {
    let size = u32::try_from(value.len()).unwrap_or(u32::MAX);
    let body = Put::default()
        .u32(size)
        .u32(flags)
        .zeros(if extended { 8 } else { 0 });
    Request::new(op::SETXATTR, nodeid)
        .arg(body.done())
        .arg(c_string(name))
        .arg(value)
}

/// FUSE_GETXATTR; with `room` 0 the answer is the value's size.
pub fn getxattr(nodeid: u64, name: &[u8], room: u32) -> Request {
    let body = Put::default().u32(room).u32(0);
    let request = Request::new(op::GETXATTR, nodeid)
        .arg(body.done())
        .arg(c_string(name));
    reply(
        request,
        if room == 0 { 8 } else { 0 },
        usize::try_from(room).unwrap_or(usize::MAX),
    )
}

/// FUSE_LISTXATTR; with `room` 0 the answer is the list's size.
pub fn listxattr(nodeid: u64, room: u32) -> Request {
    let request = Request::new(op::LISTXATTR, nodeid).arg(Put::default().u32(room).u32(0).done());
    reply(
        request,
        if room == 0 { 8 } else { 0 },
        usize::try_from(room).unwrap_or(usize::MAX),
    )
}

/// FUSE_REMOVEXATTR.
pub fn removexattr(nodeid: u64, name: &[u8]) -> Request {
    Request::new(op::REMOVEXATTR, nodeid).arg(c_string(name))
}

/// FUSE_ACCESS; `mask` as access(2).
pub fn access(nodeid: u64, mask: u32) -> Request {
    Request::new(op::ACCESS, nodeid).arg(Put::default().u32(mask).u32(0).done())
}

/// FUSE_LSEEK: SEEK_DATA (3) or SEEK_HOLE (4).
pub fn lseek(nodeid: u64, fh: u64, offset: u64, whence: u32) -> Request {
    let body = Put::default().u64(fh).u64(offset).u32(whence).u32(0);
    reply(Request::new(op::LSEEK, nodeid).arg(body.done()), 8, 0)
}

/// FUSE_FALLOCATE; `mode` as fallocate(2).
pub fn fallocate(nodeid: u64, fh: u64, offset: u64, length: u64, mode: u32) -> Request {
    Request::new(op::FALLOCATE, nodeid).arg(
        Put::default()
            .u64(fh)
            .u64(offset)
            .u64(length)
            .u32(mode)
            .u32(0)
            .done(),
    )
}
