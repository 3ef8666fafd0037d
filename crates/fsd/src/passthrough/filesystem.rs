//! A share as the FUSE library's VFS and server call it. Everything happens in the other files.

use std::any::Any;
use std::ffi::CStr;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use fuse_backend_rs::abi::fuse_abi::{CreateIn, FsOptions, OpenOptions, SetattrValid, stat64, statvfs64};
use fuse_backend_rs::api::BackendFileSystem;
use fuse_backend_rs::api::filesystem::{
    Context, DirEntry, Entry, FileSystem, GetxattrReply, ListxattrReply, ZeroCopyReader, ZeroCopyWriter,
};
use rustix::io::Errno;

use super::attr::stat_at;
use super::{CACHE_TIMEOUT, Share};

/// The largest number of an inode: the VFS puts the index of the mount above it.
const LARGEST: u64 = (1 << 56) - 1;

/// A share that is mounted in the VFS.
#[derive(Debug, Clone)]
pub(crate) struct MountedShare(pub(crate) Arc<Share>);

/// Has the VFS's callbacks return what ours do.
fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

impl BackendFileSystem for MountedShare {
    fn mount(&self) -> io::Result<(Entry, u64)> {
        let root = self.0.inodes.root();
        let stat = stat_at(root.path_fd()?, c"")?;
        let entry = Entry {
            // The VFS keeps this and shows it for ever; a guest had better ask for the attributes.
            attr_timeout: Duration::ZERO,
            ..self.0.entry(root, &stat, root)
        };
        Ok((entry, LARGEST))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl FileSystem for MountedShare {
    type Inode = u64;
    type Handle = u64;

    fn init(&self, agreed: FsOptions) -> io::Result<FsOptions> {
        // What an earlier session knew is forgotten.
        self.0.reset();
        Ok(agreed)
    }

    fn destroy(&self) {
        self.0.reset();
    }

    fn lookup(&self, _ctx: &Context, parent: u64, name: &CStr) -> io::Result<Entry> {
        Ok(self.0.lookup(parent, name)?)
    }

    fn forget(&self, _ctx: &Context, inode: u64, count: u64) {
        self.0.forget(inode, count);
    }

    fn batch_forget(&self, _ctx: &Context, requests: Vec<(u64, u64)>) {
        for (inode, count) in requests {
            self.0.forget(inode, count);
        }
    }

    fn getattr(&self, _ctx: &Context, inode: u64, _handle: Option<u64>) -> io::Result<(stat64, Duration)> {
        Ok((self.0.getattr(inode)?, CACHE_TIMEOUT))
    }

    fn setattr(
        &self,
        _ctx: &Context,
        inode: u64,
        attr: stat64,
        handle: Option<u64>,
        valid: SetattrValid,
    ) -> io::Result<(stat64, Duration)> {
        Ok((self.0.setattr(inode, &attr, handle, valid)?, CACHE_TIMEOUT))
    }

    fn readlink(&self, _ctx: &Context, inode: u64) -> io::Result<Vec<u8>> {
        Ok(self.0.readlink(inode)?)
    }

    fn symlink(&self, ctx: &Context, linkname: &CStr, parent: u64, name: &CStr) -> io::Result<Entry> {
        Ok(self.0.symlink(ctx, linkname, parent, name)?)
    }

    fn mknod(
        &self,
        ctx: &Context,
        inode: u64,
        name: &CStr,
        mode: u32,
        rdev: u32,
        _umask: u32,
    ) -> io::Result<Entry> {
        Ok(self.0.mknod(ctx, inode, name, mode, rdev)?)
    }

    fn mkdir(&self, ctx: &Context, parent: u64, name: &CStr, mode: u32, _umask: u32) -> io::Result<Entry> {
        Ok(self.0.mkdir(ctx, parent, name, mode)?)
    }

    fn unlink(&self, _ctx: &Context, parent: u64, name: &CStr) -> io::Result<()> {
        Ok(self.0.unlink(parent, name)?)
    }

    fn rmdir(&self, _ctx: &Context, parent: u64, name: &CStr) -> io::Result<()> {
        Ok(self.0.rmdir(parent, name)?)
    }

    fn rename(
        &self,
        _ctx: &Context,
        olddir: u64,
        oldname: &CStr,
        newdir: u64,
        newname: &CStr,
        flags: u32,
    ) -> io::Result<()> {
        Ok(self.0.rename((olddir, oldname), (newdir, newname), flags)?)
    }

    fn link(&self, _ctx: &Context, inode: u64, newparent: u64, newname: &CStr) -> io::Result<Entry> {
        Ok(self.0.link(inode, newparent, newname)?)
    }

    fn open(
        &self,
        _ctx: &Context,
        inode: u64,
        flags: u32,
        fuse_flags: u32,
    ) -> io::Result<(Option<u64>, OpenOptions, Option<u32>)> {
        let handle = self.0.open(inode, flags, fuse_flags)?;
        Ok((Some(handle), OpenOptions::empty(), None))
    }

    fn create(
        &self,
        ctx: &Context,
        parent: u64,
        name: &CStr,
        args: CreateIn,
    ) -> io::Result<(Entry, Option<u64>, OpenOptions, Option<u32>)> {
        let (entry, handle) = self.0.create(ctx, parent, name, &args)?;
        Ok((entry, Some(handle), OpenOptions::empty(), None))
    }

    fn read(
        &self,
        _ctx: &Context,
        inode: u64,
        handle: u64,
        w: &mut dyn ZeroCopyWriter,
        size: u32,
        offset: u64,
        _lock_owner: Option<u64>,
        _flags: u32,
    ) -> io::Result<usize> {
        self.0.read(inode, handle, w, size, offset)
    }

    fn write(
        &self,
        _ctx: &Context,
        inode: u64,
        handle: u64,
        r: &mut dyn ZeroCopyReader,
        size: u32,
        offset: u64,
        _lock_owner: Option<u64>,
        delayed_write: bool,
        flags: u32,
        fuse_flags: u32,
    ) -> io::Result<usize> {
        self.0
            .write(inode, handle, r, size, offset, flags, fuse_flags, delayed_write)
    }

    fn flush(&self, _ctx: &Context, inode: u64, handle: u64, _lock_owner: u64) -> io::Result<()> {
        Ok(self.0.flush(inode, handle)?)
    }

    fn fsync(&self, _ctx: &Context, inode: u64, datasync: bool, handle: u64) -> io::Result<()> {
        Ok(self.0.fsync(inode, handle, datasync)?)
    }

    fn fallocate(
        &self,
        _ctx: &Context,
        inode: u64,
        handle: u64,
        mode: u32,
        offset: u64,
        length: u64,
    ) -> io::Result<()> {
        Ok(self.0.fallocate(inode, handle, mode, offset, length)?)
    }

    fn release(
        &self,
        _ctx: &Context,
        inode: u64,
        _flags: u32,
        handle: u64,
        _flush: bool,
        _flock_release: bool,
        _lock_owner: Option<u64>,
    ) -> io::Result<()> {
        Ok(self.0.release(inode, handle)?)
    }

    fn statfs(&self, _ctx: &Context, inode: u64) -> io::Result<statvfs64> {
        Ok(self.0.statfs(inode)?)
    }

    fn setxattr(&self, _ctx: &Context, inode: u64, name: &CStr, value: &[u8], flags: u32) -> io::Result<()> {
        Ok(self.0.setxattr(inode, name, value, flags)?)
    }

    fn getxattr(&self, _ctx: &Context, inode: u64, name: &CStr, size: u32) -> io::Result<GetxattrReply> {
        Ok(self.0.getxattr(inode, name, size)?)
    }

    fn listxattr(&self, _ctx: &Context, inode: u64, size: u32) -> io::Result<ListxattrReply> {
        Ok(self.0.listxattr(inode, size)?)
    }

    fn removexattr(&self, _ctx: &Context, inode: u64, name: &CStr) -> io::Result<()> {
        Ok(self.0.removexattr(inode, name)?)
    }

    fn opendir(&self, _ctx: &Context, inode: u64, _flags: u32) -> io::Result<(Option<u64>, OpenOptions)> {
        Ok((Some(self.0.opendir(inode)?), OpenOptions::empty()))
    }

    fn readdir(
        &self,
        _ctx: &Context,
        inode: u64,
        handle: u64,
        _size: u32,
        offset: u64,
        add_entry: &mut dyn FnMut(DirEntry<'_>) -> io::Result<usize>,
    ) -> io::Result<()> {
        let mut add = |entry: DirEntry<'_>| add_entry(entry).map_err(|e| errno(&e));
        Ok(self.0.readdir(inode, handle, offset, &mut add)?)
    }

    fn readdirplus(
        &self,
        _ctx: &Context,
        inode: u64,
        handle: u64,
        size: u32,
        offset: u64,
        add_entry: &mut dyn FnMut(DirEntry<'_>, Entry) -> io::Result<usize>,
    ) -> io::Result<()> {
        let mut add = |dirent: DirEntry<'_>, entry: Entry| add_entry(dirent, entry).map_err(|e| errno(&e));
        Ok(self
            .0
            .readdirplus(inode, handle, offset, size as usize, &mut add)?)
    }

    fn fsyncdir(&self, _ctx: &Context, inode: u64, datasync: bool, handle: u64) -> io::Result<()> {
        Ok(self.0.fsync(inode, handle, datasync)?)
    }

    fn releasedir(&self, _ctx: &Context, inode: u64, _flags: u32, handle: u64) -> io::Result<()> {
        Ok(self.0.releasedir(inode, handle)?)
    }

    fn access(&self, ctx: &Context, inode: u64, mask: u32) -> io::Result<()> {
        Ok(self.0.access(ctx, inode, mask)?)
    }
}
