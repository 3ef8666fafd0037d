//! What an image's metadata say of a file, as a guest is told it: attributes, what a name stands for, what is in a
//! directory.
//!
//! Each is asked of `index.rs` first and of nydus-rafs if it is not known there. Errors are not remembered. What
//! requests look like is in `operations.rs`.

use std::ffi::OsStr;
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use fuse_backend_rs::abi::fuse_abi::Attr;
use fuse_backend_rs::api::filesystem::{DirEntry, Entry};
use nydus_rafs::metadata::layout::v6::{EROFS_BLOCK_SIZE_512, EROFS_BLOCK_SIZE_4096, EROFS_INODE_SLOT_SIZE};
use nydus_rafs::metadata::{RafsInode, RafsInodeWalkAction, RafsSuperFlags};
use rustix::io::Errno;

use super::index::{Listing, Name};
use super::kept::Epoch;
use super::{Image, Served};

/// Permissions of an image's root, whatever it says: converters write 0750, and then only root could enter.
const ROOT_PERMISSIONS: u32 = 0o755;
const PERMISSIONS: u32 = 0o777;
/// Linux' and nydus' longest name, in bytes.
const NAME_MAX: usize = 255;

/// Takes one entry of a directory; 0 if there is no room for it.
type Add<'a> = &'a mut dyn FnMut(DirEntry<'_>) -> io::Result<usize>;

impl Image {
    /// A guest has learned of a file.
    pub(super) fn known(&self, ino: u64) {
        if let Some(recorder) = &self.recorder {
            recorder.new_file_counter(ino);
        }
    }

    /// A file's attributes.
    ///
    /// # Errors
    /// nydus' own for a number that no inode has.
    pub(super) fn attributes(&self, ino: u64) -> io::Result<Attr> {
        if let Some(attr) = self.index.attributes.find(ino, |attr| *attr) {
            return Ok(attr);
        }
        let epoch = self.index.attributes.epoch();
        let served = self.served();
        let inode = served.sb.get_inode(ino, self.settings.validate_inodes)?;
        Ok(self.keep_attributes(&served, epoch, ino, inode.as_ref()))
    }

    fn keep_attributes(&self, served: &Served, epoch: Epoch, ino: u64, inode: &dyn RafsInode) -> Attr {
        let mut attr = inode.get_attr();
        if !served.sb.meta.explicit_uidgid() {
            attr.uid = self.settings.uid;
            attr.gid = self.settings.gid;
        }
        if attr.mtime == 0 && !served.has_time(ino) {
            (attr.atime, attr.ctime, attr.mtime) =
                (self.settings.time, self.settings.time, self.settings.time);
        }
        if attr.ino == served.sb.superblock.root_ino() {
            attr.mode = attr.mode & !PERMISSIONS | ROOT_PERMISSIONS;
        }
        self.index.attributes.keep(epoch, ino, attr, 1);
        attr
    }

    /// A file as a lookup shows it.
    ///
    /// # Errors
    /// As [`Image::attributes`].
    pub(super) fn entry(&self, ino: u64) -> io::Result<Entry> {
        Ok(Entry {
            attr: self.attributes(ino)?.into(),
            inode: ino,
            ..self.no_entry()
        })
    }

    /// "There is no such name", which a guest may remember like a name.
    pub(super) fn no_entry(&self) -> Entry {
        let meta = &self.served().sb.meta;
        Entry {
            attr: Attr::default().into(),
            inode: 0,
            generation: 0,
            attr_flags: 0,
            attr_timeout: meta.attr_timeout,
            entry_timeout: meta.entry_timeout,
        }
    }

    /// The number of what a name in a directory stands for; not "." and "..".
    ///
    /// # Errors
    /// ENAMETOOLONG, ENOTDIR, or nydus' own if the directory cannot be read.
    pub(super) fn child(&self, parent: u64, name: &[u8]) -> io::Result<Option<u64>> {
        if name.len() > NAME_MAX {
            return Err(Errno::NAMETOOLONG.into());
        }
        let key = self.index.key(parent, name);
        let kept = self
            .index
            .names
            .find(key, |kept| kept.is(parent, name).then_some(kept.child));
        if let Some(child) = kept.flatten() {
            return Ok(child);
        }
        let epochs = (self.index.names.epoch(), self.index.attributes.epoch());
        let served = self.served();
        let directory = self.directory_of(&served, parent)?;
        let child = match directory.get_child_by_name(OsStr::from_bytes(name)) {
            Ok(child) => {
                self.keep_attributes(&served, epochs.1, child.ino(), child.as_inode());
                Some(child.ino())
            }
            Err(e) if e.kind() == ErrorKind::NotFound => None,
            // As nydus does it; but the next one who asks may be told otherwise.
            Err(_) => return Ok(None),
        };
        let kept = Name {
            parent,
            name: name.into(),
            child,
        };
        let weight = kept.weight();
        self.index.names.keep(epochs.0, key, kept, weight);
        Ok(child)
    }

    /// Hands out what is in a directory, from a cookie on, until there is no room.
    ///
    /// # Errors
    /// ENOTDIR, nydus' own if the directory cannot be read, and those of `add`.
    pub(super) fn list(&self, ino: u64, cookie: u64, add: Add<'_>) -> io::Result<()> {
        let listings = &self.index.listings;
        if let Some(done) = listings.find(ino, |listing| self.hand_out(listing, cookie, &mut *add)) {
            return done;
        }
        let epoch = listings.epoch();
        let directory = self.directory(ino)?;
        // Who begins will go on, and nydus goes through a directory from its beginning each time.
        if cookie == 0
            && let Some(listing) = gather(directory.as_ref())
        {
            listings.keep(epoch, ino, Arc::clone(&listing), listing.weight());
            return self.hand_out(&listing, cookie, add);
        }
        directory.walk_children_inodes(cookie, &mut |_inode, name, ino, offset| {
            let added = add(DirEntry {
                ino,
                offset,
                type_: 0,
                name: name.as_bytes(),
            })?;
            self.known(ino);
            Ok(if added == 0 {
                RafsInodeWalkAction::Break
            } else {
                RafsInodeWalkAction::Continue
            })
        })
    }

    fn hand_out(&self, listing: &Listing, cookie: u64, add: Add<'_>) -> io::Result<()> {
        for entry in listing.from(cookie) {
            let ino = entry.ino;
            let added = add(entry)?;
            self.known(ino);
            if added == 0 {
                break;
            }
        }
        Ok(())
    }

    /// A directory's inode.
    ///
    /// # Errors
    /// ENOTDIR, or nydus' own.
    pub(super) fn directory(&self, ino: u64) -> io::Result<Arc<dyn RafsInode>> {
        self.directory_of(&self.served(), ino)
    }

    fn directory_of(&self, served: &Served, ino: u64) -> io::Result<Arc<dyn RafsInode>> {
        let inode = served.sb.get_inode(ino, self.settings.validate_inodes)?;
        if inode.is_dir() {
            return Ok(inode);
        }
        Err(Errno::NOTDIR.into())
    }
}

impl Served {
    /// Whether an inode says of when it is: a compact one of RAFS v6 has no place for that, and in v5 nothing is none.
    /// nydus reads 0 in each case.
    fn has_time(&self, ino: u64) -> bool {
        let meta = &self.sb.meta;
        if !meta.is_v6() {
            return false;
        }
        let block = match meta.flags.contains(RafsSuperFlags::TARTFS_MODE) {
            true => EROFS_BLOCK_SIZE_512,
            false => EROFS_BLOCK_SIZE_4096,
        };
        let tables = u64::from(meta.meta_blkaddr) * block;
        let slot = ino.saturating_mul(EROFS_INODE_SLOT_SIZE as u64);
        let format = self.bootstrap.le16_at(tables.saturating_add(slot));
        // "Inode Version" in the kernel's documentation of EROFS: extended.
        format.is_ok_and(|format| format & 1 == 1)
    }
}

/// All of a directory; `None` if it is too large to be kept or cannot be read to its end.
fn gather(directory: &dyn RafsInode) -> Option<Arc<Listing>> {
    let mut listing = Listing::default();
    let mut fits = true;
    let walked = directory.walk_children_inodes(0, &mut |_inode, name, ino, _offset| {
        fits = listing.push(name.as_bytes(), ino);
        Ok(if fits {
            RafsInodeWalkAction::Continue
        } else {
            RafsInodeWalkAction::Break
        })
    });
    (walked.is_ok() && fits).then(|| listing.finish())
}
