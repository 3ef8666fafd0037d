//! The FUSE requests that an image answers: what nydus-rafs' own file system answers, number by number, because a
//! guest keeps inode numbers, cookies and attributes over a restart of the daemon.

use std::any::Any;
use std::ffi::{CStr, OsStr};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use fuse_backend_rs::abi::fuse_abi::{ROOT_ID, stat64, statvfs64};
use fuse_backend_rs::api::BackendFileSystem;
use fuse_backend_rs::api::filesystem::{
    Context, DirEntry, Entry, FileSystem, FsOptions, GetxattrReply, ListxattrReply, OpenOptions,
    ZeroCopyWriter,
};
use nydus_utils::metrics::{FopRecorder, StatsFop};
use rustix::fs::{Access, OFlags};
use rustix::io::Errno;

use super::{Image, ImageFs};

/// A request as nydus records it, with its file.
struct Record<'a>(Option<FopRecorder<'a>>);

impl Record<'_> {
    fn mark_success(&mut self, bytes: usize) {
        if let Some(recorder) = &mut self.0 {
            recorder.mark_success(bytes);
        }
    }
}

impl Image {
    /// Starts to record a request, if that is wanted; it counts as failed until it is marked otherwise.
    fn record(&self, operation: StatsFop, ino: u64) -> Record<'_> {
        let recorder = self.recorder.as_ref();
        Record(recorder.map(|recorder| FopRecorder::settle(operation, ino, recorder)))
    }

    fn has_xattrs(&self) -> bool {
        self.settings.xattr || self.served().sb.meta.has_xattr()
    }
}

impl ImageFs {
    /// The root directory.
    ///
    /// # Errors
    /// ENOTDIR if it is none, or nydus' own.
    pub(crate) fn root(&self) -> io::Result<Entry> {
        let root = self.image.served().sb.superblock.root_ino();
        self.image.directory(root)?;
        self.image.entry(root)
    }
}

impl BackendFileSystem for ImageFs {
    fn mount(&self) -> io::Result<(Entry, u64)> {
        let root = self.root()?;
        self.image.known(root.inode);
        Ok((root, self.image.served().sb.get_max_ino()))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Where the trait's own answers are taken from.
struct Defaults;

impl FileSystem for Defaults {
    type Inode = u64;
    type Handle = u64;
}

impl FileSystem for ImageFs {
    type Inode = u64;
    type Handle = u64;

    fn init(&self, _offered: FsOptions) -> io::Result<FsOptions> {
        Ok(FsOptions::ASYNC_READ
            | FsOptions::PARALLEL_DIROPS
            | FsOptions::BIG_WRITES
            | FsOptions::HANDLE_KILLPRIV
            | FsOptions::ASYNC_DIO
            | FsOptions::HAS_IOCTL_DIR
            | FsOptions::WRITEBACK_CACHE
            | FsOptions::ZERO_MESSAGE_OPEN
            | FsOptions::ATOMIC_O_TRUNC
            | FsOptions::CACHE_SYMLINKS
            | FsOptions::ZERO_MESSAGE_OPENDIR)
    }

    fn destroy(&self) {}

    fn lookup(&self, _ctx: &Context, ino: u64, name: &CStr) -> io::Result<Entry> {
        let image = &self.image;
        let mut recorder = image.record(StatsFop::Lookup, ino);
        image.whole()?;
        let found = match name.to_bytes() {
            name @ (b"." | b"..") => {
                image.directory(ino)?;
                match name {
                    b".." if ino != ROOT_ID => {
                        let parent = image.served().sb.get_extended_inode(ino, false)?.parent();
                        image.entry(parent).unwrap_or_else(|_| image.no_entry())
                    }
                    _ => image.entry(ino)?,
                }
            }
            name => match image.child(ino, name)? {
                Some(child) => {
                    image.known(child);
                    image.entry(child)?
                }
                None => image.no_entry(),
            },
        };
        recorder.mark_success(0);
        Ok(found)
    }

    fn forget(&self, _ctx: &Context, _inode: u64, _count: u64) {}

    fn batch_forget(&self, _ctx: &Context, _requests: Vec<(u64, u64)>) {}

    fn getattr(&self, _ctx: &Context, ino: u64, _handle: Option<u64>) -> io::Result<(stat64, Duration)> {
        let image = &self.image;
        let mut recorder = image.record(StatsFop::Getattr, ino);
        image.whole()?;
        let attr = image.attributes(ino)?;
        recorder.mark_success(0);
        Ok((attr.into(), image.served().sb.meta.attr_timeout))
    }

    fn readlink(&self, _ctx: &Context, ino: u64) -> io::Result<Vec<u8>> {
        let image = &self.image;
        let mut recorder = image.record(StatsFop::Readlink, ino);
        image.whole()?;
        let target = image
            .served()
            .sb
            .get_inode(ino, image.settings.validate_inodes)?
            .get_symlink()?;
        recorder.mark_success(0);
        Ok(target.as_bytes().to_vec())
    }

    fn read(
        &self,
        _ctx: &Context,
        ino: u64,
        _handle: u64,
        w: &mut dyn ZeroCopyWriter,
        size: u32,
        offset: u64,
        _lock_owner: Option<u64>,
        _flags: u32,
    ) -> io::Result<usize> {
        if offset.checked_add(u64::from(size)).is_none() {
            return Err(Errno::INVAL.into());
        }
        let image = &self.image;
        let mut recorder = image.record(StatsFop::Read, ino);
        image.whole()?;
        let traced = image.tracer.begin();
        let read = image.read(w, ino, u64::from(size), offset)?;
        if let Some(began) = traced {
            image
                .tracer
                .note(ino, offset..offset.saturating_add(read as u64), began);
        }
        recorder.mark_success(read);
        Ok(read)
    }

    fn open(
        &self,
        _ctx: &Context,
        _inode: u64,
        flags: u32,
        _fuse_flags: u32,
    ) -> io::Result<(Option<u64>, OpenOptions, Option<u32>)> {
        let changes = OFlags::WRONLY | OFlags::RDWR | OFlags::TRUNC;
        if OFlags::from_bits_retain(flags).intersects(changes) {
            return Err(Errno::ROFS.into());
        }
        // What a guest has read of an image stays true.
        Ok((None, OpenOptions::KEEP_CACHE, None))
    }

    fn release(
        &self,
        _ctx: &Context,
        _inode: u64,
        _flags: u32,
        _handle: u64,
        _flush: bool,
        _flock_release: bool,
        _lock_owner: Option<u64>,
    ) -> io::Result<()> {
        Ok(())
    }

    fn statfs(&self, ctx: &Context, inode: u64) -> io::Result<statvfs64> {
        let meta = self.image.served().sb.meta;
        let mut stat = Defaults.statfs(ctx, inode)?;
        stat.f_fsid = u64::from(meta.magic);
        stat.f_files = meta.inodes_count;
        Ok(stat)
    }

    fn getxattr(&self, _ctx: &Context, ino: u64, name: &CStr, size: u32) -> io::Result<GetxattrReply> {
        let image = &self.image;
        let mut recorder = image.record(StatsFop::Getxattr, ino);
        image.whole()?;
        if !image.has_xattrs() {
            return Err(Errno::NOSYS.into());
        }
        let value = image
            .served()
            .sb
            .get_inode(ino, false)?
            .get_xattr(OsStr::from_bytes(name.to_bytes()))?;
        let Some(value) = value else {
            // An answer like any other.
            recorder.mark_success(0);
            return Err(Errno::NODATA.into());
        };
        let length = u32::try_from(value.len()).map_err(|_| Errno::TOOBIG)?;
        let reply = match size {
            0 => GetxattrReply::Count(length.saturating_add(1)),
            room if room < length => return Err(Errno::RANGE.into()),
            _ => GetxattrReply::Value(value),
        };
        recorder.mark_success(0);
        Ok(reply)
    }

    fn listxattr(&self, _ctx: &Context, ino: u64, size: u32) -> io::Result<ListxattrReply> {
        let image = &self.image;
        let mut recorder = image.record(StatsFop::Listxattr, ino);
        image.whole()?;
        if !image.has_xattrs() {
            return Err(Errno::NOSYS.into());
        }
        let mut names = Vec::new();
        for name in image.served().sb.get_inode(ino, false)?.get_xattrs()? {
            names.extend_from_slice(&name);
            names.push(0);
        }
        recorder.mark_success(0);
        let length = u32::try_from(names.len()).map_err(|_| Errno::TOOBIG)?;
        match size {
            0 => Ok(ListxattrReply::Count(length)),
            room if room < length => Err(Errno::RANGE.into()),
            _ => Ok(ListxattrReply::Names(names)),
        }
    }

    fn readdir(
        &self,
        _ctx: &Context,
        ino: u64,
        _handle: u64,
        size: u32,
        offset: u64,
        add_entry: &mut dyn FnMut(DirEntry<'_>) -> io::Result<usize>,
    ) -> io::Result<()> {
        let mut recorder = self.image.record(StatsFop::Readdir, ino);
        self.image.whole()?;
        if size > 0 {
            self.image.list(ino, offset, add_entry)?;
        }
        recorder.mark_success(0);
        Ok(())
    }

    fn readdirplus(
        &self,
        _ctx: &Context,
        ino: u64,
        _handle: u64,
        size: u32,
        offset: u64,
        add_entry: &mut dyn FnMut(DirEntry<'_>, Entry) -> io::Result<usize>,
    ) -> io::Result<()> {
        let image = &self.image;
        let mut recorder = image.record(StatsFop::Readdirplus, ino);
        image.whole()?;
        if size > 0 {
            image.list(ino, offset, &mut |dir_entry| {
                let entry = image.entry(dir_entry.ino)?;
                add_entry(dir_entry, entry)
            })?;
        }
        recorder.mark_success(0);
        Ok(())
    }

    fn opendir(&self, _ctx: &Context, _inode: u64, _flags: u32) -> io::Result<(Option<u64>, OpenOptions)> {
        Ok((None, OpenOptions::CACHE_DIR | OpenOptions::KEEP_CACHE))
    }

    fn releasedir(&self, _ctx: &Context, _inode: u64, _flags: u32, _handle: u64) -> io::Result<()> {
        Ok(())
    }

    fn access(&self, ctx: &Context, ino: u64, mask: u32) -> io::Result<()> {
        let mut recorder = self.image.record(StatsFop::Access, ino);
        self.image.whole()?;
        let attr = self.image.attributes(ino)?;
        // A class may whose bits say so, whichever class the caller is in first.
        let permits = |bit: u32| {
            (attr.uid == ctx.uid && attr.mode & (bit << 6) != 0)
                || (attr.gid == ctx.gid && attr.mode & (bit << 3) != 0)
                || attr.mode & bit != 0
        };
        let wants = |access: Access| mask & access.bits() != 0;
        let root = ctx.uid == 0;
        let refused = (wants(Access::READ_OK) && !root && !permits(4))
            || (wants(Access::WRITE_OK) && !root && !permits(2))
            // root may execute what somebody may.
            || (wants(Access::EXEC_OK) && !(root && attr.mode & 0o111 != 0) && !permits(1));
        if refused {
            return Err(Errno::ACCESS.into());
        }
        recorder.mark_success(0);
        Ok(())
    }
}
