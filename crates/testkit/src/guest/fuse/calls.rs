//! The typed calls of [`FuseClient`]: send a request of [`ops`], wait, decode.
//!
//! Counts lookups as the kernel does, so that [`FuseClient::forget_all`] can give every one back.

use rustix::io::Errno;

use super::types::{Attr, DirEntry, Entry, InitOut, Opened, SetAttr, StatFs, dir_entries};
use super::wire::{Take, init};
use super::{FuseClient, FuseError, ops};
use crate::guest::request::Request;

type Result<T> = std::result::Result<T, FuseError>;

fn decode<T>(call: &'static str, body: &[u8], take: impl FnOnce(&mut Take<'_>) -> T) -> Result<T> {
    let mut from = Take::new(body);
    let value = take(&mut from);
    if from.complete() {
        Ok(value)
    } else {
        Err(FuseError::Malformed {
            call,
            got: body.len(),
        })
    }
}

fn attr_out(from: &mut Take<'_>) -> Attr {
    let _valid = (from.u64(), from.u64());
    Attr::take(from)
}

#[expect(
    clippy::missing_errors_doc,
    reason = "each is a FUSE call and fails as FuseError says"
)]
impl FuseClient {
    /// FUSE_INIT as Linux 6.1 sends it. Forgets what an earlier mount knew.
    pub fn init(&mut self) -> Result<InitOut> {
        self.init_with(ops::init_linux_6_1())
    }

    /// FUSE_INIT as some other guest sends it.
    pub fn init_with(&mut self, request: Request) -> Result<InitOut> {
        let body = self.call("INIT", request)?;
        self.init = decode("INIT", &body, InitOut::take)?;
        if self.init.major != 7 {
            return Err(FuseError::Malformed {
                call: "INIT",
                got: body.len(),
            });
        }
        self.no_open = false;
        self.no_opendir = false;
        self.lookups.clear();
        Ok(self.init)
    }

    /// FUSE_DESTROY: the guest unmounts.
    pub fn destroy(&mut self) -> Result<()> {
        self.call("DESTROY", ops::destroy()).map(drop)
    }

    fn entry(&mut self, call: &'static str, body: &[u8]) -> Result<Entry> {
        let entry = decode(call, body, Entry::take)?;
        self.count(&entry);
        Ok(entry)
    }

    fn count(&mut self, entry: &Entry) {
        if entry.nodeid != 0 {
            *self.lookups.entry(entry.nodeid).or_default() += 1;
        }
    }

    /// FUSE_LOOKUP.
    pub fn lookup(&mut self, parent: u64, name: &[u8]) -> Result<Entry> {
        let body = self.call("LOOKUP", ops::lookup(parent, name))?;
        let entry = self.entry("LOOKUP", &body)?;
        if entry.nodeid == 0 {
            // A negative entry: Linux caches it and answers ENOENT.
            return Err(FuseError::Errno {
                call: "LOOKUP",
                errno: Errno::NOENT,
            });
        }
        Ok(entry)
    }

    /// FUSE_FORGET of `count` lookups, on the hiprio queue. Waits until the daemon took it off the ring.
    pub fn forget(&mut self, nodeid: u64, count: u64) -> Result<()> {
        self.lookups
            .entry(nodeid)
            .and_modify(|n| *n = n.saturating_sub(count));
        self.lookups.retain(|_, n| *n > 0);
        self.call("FORGET", ops::forget(nodeid, count)).map(drop)
    }

    /// Gives back every lookup of this mount.
    pub fn forget_all(&mut self) -> Result<()> {
        for (nodeid, count) in std::mem::take(&mut self.lookups) {
            self.call("FORGET", ops::forget(nodeid, count))?;
        }
        Ok(())
    }

    /// FUSE_GETATTR.
    pub fn getattr(&mut self, nodeid: u64) -> Result<Attr> {
        let body = self.call("GETATTR", ops::getattr(nodeid, None))?;
        decode("GETATTR", &body, attr_out)
    }

    /// FUSE_SETATTR.
    pub fn setattr(&mut self, nodeid: u64, set: &SetAttr) -> Result<Attr> {
        let body = self.call("SETATTR", ops::setattr(nodeid, set))?;
        decode("SETATTR", &body, attr_out)
    }

    /// FUSE_OPEN. A daemon that answers ENOSYS is not asked again, as Linux does.
    pub fn open(&mut self, nodeid: u64, flags: u32) -> Result<Opened> {
        let zero = Opened {
            zero_message: true,
            ..Opened::default()
        };
        if self.no_open {
            return Ok(zero);
        }
        match self.call("OPEN", ops::open(nodeid, flags)) {
            Err(FuseError::Errno {
                errno: Errno::NOSYS, ..
            }) => {
                self.no_open = true;
                Ok(zero)
            }
            answer => opened("OPEN", &answer?),
        }
    }

    /// FUSE_OPENDIR. As [`Self::open`].
    pub fn opendir(&mut self, nodeid: u64) -> Result<Opened> {
        let zero = Opened {
            zero_message: true,
            ..Opened::default()
        };
        if self.no_opendir {
            return Ok(zero);
        }
        match self.call("OPENDIR", ops::opendir(nodeid)) {
            Err(FuseError::Errno {
                errno: Errno::NOSYS, ..
            }) => {
                self.no_opendir = true;
                Ok(zero)
            }
            answer => opened("OPENDIR", &answer?),
        }
    }

    /// FUSE_RELEASE, if the open needed a message.
    pub fn release(&mut self, nodeid: u64, handle: Opened) -> Result<()> {
        if handle.zero_message {
            Ok(())
        } else {
            self.call("RELEASE", ops::release(nodeid, handle.fh)).map(drop)
        }
    }

    /// FUSE_RELEASEDIR, if the open needed a message. ENOSYS is no error: Linux does not look at the answer.
    pub fn releasedir(&mut self, nodeid: u64, handle: Opened) -> Result<()> {
        if handle.zero_message {
            return Ok(());
        }
        match self.call("RELEASEDIR", ops::releasedir(nodeid, handle.fh)) {
            Err(FuseError::Errno {
                errno: Errno::NOSYS, ..
            }) => Ok(()),
            answer => answer.map(drop),
        }
    }

    /// FUSE_READ: one request, up to `size` bytes.
    pub fn read(&mut self, nodeid: u64, fh: u64, offset: u64, size: u32) -> Result<Vec<u8>> {
        self.call("READ", ops::read(nodeid, fh, offset, size))
    }

    /// FUSE_WRITE: one request; how many bytes were written.
    pub fn write(&mut self, nodeid: u64, fh: u64, offset: u64, data: &[u8]) -> Result<u32> {
        let body = self.call("WRITE", ops::write(nodeid, fh, offset, data))?;
        decode("WRITE", &body, |from| from.u32())
    }

    /// FUSE_CREATE.
    pub fn create(&mut self, parent: u64, name: &[u8], mode: u32, flags: u32) -> Result<(Entry, Opened)> {
        let body = self.call("CREATE", ops::create(parent, name, mode, flags))?;
        let (entry, rest) = body
            .split_at_checked(super::types::ENTRY_BYTES)
            .unwrap_or((&[], &[]));
        Ok((self.entry("CREATE", entry)?, opened("CREATE", rest)?))
    }

    /// FUSE_MKNOD.
    pub fn mknod(&mut self, parent: u64, name: &[u8], mode: u32, rdev: u32) -> Result<Entry> {
        let body = self.call("MKNOD", ops::mknod(parent, name, mode, rdev))?;
        self.entry("MKNOD", &body)
    }

    /// FUSE_MKDIR.
    pub fn mkdir(&mut self, parent: u64, name: &[u8], mode: u32) -> Result<Entry> {
        let body = self.call("MKDIR", ops::mkdir(parent, name, mode))?;
        self.entry("MKDIR", &body)
    }

    /// FUSE_SYMLINK.
    pub fn symlink(&mut self, parent: u64, name: &[u8], target: &[u8]) -> Result<Entry> {
        let body = self.call("SYMLINK", ops::symlink(parent, name, target))?;
        self.entry("SYMLINK", &body)
    }

    /// FUSE_LINK.
    pub fn link(&mut self, nodeid: u64, parent: u64, name: &[u8]) -> Result<Entry> {
        let body = self.call("LINK", ops::link(nodeid, parent, name))?;
        self.entry("LINK", &body)
    }

    /// FUSE_READLINK.
    pub fn readlink(&mut self, nodeid: u64) -> Result<Vec<u8>> {
        self.call("READLINK", ops::readlink(nodeid))
    }

    /// FUSE_UNLINK.
    pub fn unlink(&mut self, parent: u64, name: &[u8]) -> Result<()> {
        self.call("UNLINK", ops::unlink(parent, name)).map(drop)
    }

    /// FUSE_RMDIR.
    pub fn rmdir(&mut self, parent: u64, name: &[u8]) -> Result<()> {
        self.call("RMDIR", ops::rmdir(parent, name)).map(drop)
    }

    /// FUSE_RENAME.
    pub fn rename(&mut self, from: (u64, &[u8]), to: (u64, &[u8])) -> Result<()> {
        self.call("RENAME", ops::rename(from, to)).map(drop)
    }

    /// FUSE_RENAME2.
    pub fn rename2(&mut self, from: (u64, &[u8]), to: (u64, &[u8]), flags: u32) -> Result<()> {
        self.call("RENAME2", ops::rename2(from, to, flags)).map(drop)
    }

    /// FUSE_READDIR: one request's worth of names from `offset` on; empty at the end.
    pub fn readdir(&mut self, nodeid: u64, fh: u64, offset: u64, size: u32) -> Result<Vec<DirEntry>> {
        let body = self.call("READDIR", ops::readdir(nodeid, fh, offset, size))?;
        dir_entries(&body, false).ok_or(FuseError::Malformed {
            call: "READDIR",
            got: body.len(),
        })
    }

    /// FUSE_READDIRPLUS: as [`Self::readdir`], with a lookup of every name.
    pub fn readdirplus(&mut self, nodeid: u64, fh: u64, offset: u64, size: u32) -> Result<Vec<DirEntry>> {
        let body = self.call("READDIRPLUS", ops::readdirplus(nodeid, fh, offset, size))?;
        let entries = dir_entries(&body, true).ok_or(FuseError::Malformed {
            call: "READDIRPLUS",
            got: body.len(),
        })?;
        for found in &entries {
            // Linux neither keeps nor counts the two dots.
            if let (Some(entry), false) = (found.entry, matches!(found.name.as_slice(), b"." | b"..")) {
                self.count(&entry);
            }
        }
        Ok(entries)
    }

    /// FUSE_FSYNC.
    pub fn fsync(&mut self, nodeid: u64, fh: u64) -> Result<()> {
        self.call("FSYNC", ops::fsync(nodeid, fh, false)).map(drop)
    }

    /// FUSE_FSYNCDIR.
    pub fn fsyncdir(&mut self, nodeid: u64, fh: u64) -> Result<()> {
        self.call("FSYNCDIR", ops::fsyncdir(nodeid, fh)).map(drop)
    }

    /// FUSE_FLUSH; a daemon that has none (ENOSYS) has nothing to flush.
    pub fn flush(&mut self, nodeid: u64, fh: u64) -> Result<()> {
        match self.call("FLUSH", ops::flush(nodeid, fh)) {
            Err(FuseError::Errno {
                errno: Errno::NOSYS, ..
            }) => Ok(()),
            answer => answer.map(drop),
        }
    }

    /// FUSE_STATFS.
    pub fn statfs(&mut self, nodeid: u64) -> Result<StatFs> {
        let body = self.call("STATFS", ops::statfs(nodeid))?;
        decode("STATFS", &body, |from| {
            let (blocks, bfree, _bavail) = (from.u64(), from.u64(), from.u64());
            let (files, _ffree) = (from.u64(), from.u64());
            StatFs {
                blocks,
                bfree,
                files,
                bsize: from.u32(),
                namelen: from.u32(),
            }
        })
    }

    /// FUSE_SETXATTR, in the form INIT agreed on.
    pub fn setxattr(&mut self, nodeid: u64, name: &[u8], value: &[u8], flags: u32) -> Result<()> {
        let extended = self.init.has(init::SETXATTR_EXT);
        self.call("SETXATTR", ops::setxattr(nodeid, name, value, flags, extended))
            .map(drop)
    }

    /// FUSE_GETXATTR: asks for the size, then for the value.
    pub fn getxattr(&mut self, nodeid: u64, name: &[u8]) -> Result<Vec<u8>> {
        let body = self.call("GETXATTR", ops::getxattr(nodeid, name, 0))?;
        match decode("GETXATTR", &body, |from| from.u32())? {
            0 => Ok(Vec::new()),
            size => self.call("GETXATTR", ops::getxattr(nodeid, name, size)),
        }
    }

    /// FUSE_LISTXATTR: the names.
    pub fn listxattr(&mut self, nodeid: u64) -> Result<Vec<Vec<u8>>> {
        let body = self.call("LISTXATTR", ops::listxattr(nodeid, 0))?;
        let list = match decode("LISTXATTR", &body, |from| from.u32())? {
            0 => Vec::new(),
            size => self.call("LISTXATTR", ops::listxattr(nodeid, size))?,
        };
        Ok(list
            .split(|b| *b == 0)
            .filter(|name| !name.is_empty())
            .map(<[u8]>::to_vec)
            .collect())
    }

    /// FUSE_REMOVEXATTR.
    pub fn removexattr(&mut self, nodeid: u64, name: &[u8]) -> Result<()> {
        self.call("REMOVEXATTR", ops::removexattr(nodeid, name)).map(drop)
    }

    /// FUSE_ACCESS.
    pub fn access(&mut self, nodeid: u64, mask: u32) -> Result<()> {
        self.call("ACCESS", ops::access(nodeid, mask)).map(drop)
    }

    /// FUSE_LSEEK.
    pub fn lseek(&mut self, nodeid: u64, fh: u64, offset: u64, whence: u32) -> Result<u64> {
        let body = self.call("LSEEK", ops::lseek(nodeid, fh, offset, whence))?;
        decode("LSEEK", &body, |from| from.u64())
    }

    /// FUSE_FALLOCATE.
    pub fn fallocate(&mut self, nodeid: u64, fh: u64, offset: u64, length: u64, mode: u32) -> Result<()> {
        self.call("FALLOCATE", ops::fallocate(nodeid, fh, offset, length, mode))
            .map(drop)
    }
}

fn opened(call: &'static str, body: &[u8]) -> Result<Opened> {
    decode(call, body, |from| Opened {
        fh: from.u64(),
        flags: from.u32(),
        zero_message: false,
    })
}
