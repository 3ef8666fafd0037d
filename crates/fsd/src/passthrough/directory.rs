//! Directories: opened, read, closed.
//!
//! What one `getdents64` brings is kept with the handle. A guest that reads on gets the rest of it, so that each
//! entry is read from the host once, and looked up once where the guest wants to know it (READDIRPLUS). That is so for
//! as many directories as anybody reads at once; of more, the rest is let go and read again.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::PoisonError;

use fuse_backend_rs::api::filesystem::{DirEntry, Entry};
use rustix::fs::{FileType, OFlags, RawDir, SeekFrom, seek};
use rustix::io::{Errno, Result};

use super::Share;
use super::budget::{Budget, Permit};
use super::files::OpenFile;
use super::inode::{HostId, Inode};

/// Bytes asked of the host at once, `getdents64`'s habit in the C library.
const BUFFER: usize = 32 * 1024;
/// Sizes of `fuse_dirent` and of `fuse_entry_out`, which READDIRPLUS puts before each.
const DIRENT: usize = 24;
const ENTRY_OUT: usize = 128;

/// Where the reading of a directory has got to.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// Names, each with its NUL, one after the other.
    names: Vec<u8>,
    entries: Vec<Listed>,
    /// Which of them comes next.
    next: usize,
    /// The offset at which a guest that reads on will ask.
    offset: u64,
    /// Entries may be kept until the next request.
    permit: Option<Permit>,
    /// They were not: the descriptor has gone beyond `offset`.
    is_beyond: bool,
}

#[derive(Debug)]
struct Listed {
    ino: u64,
    offset: u64,
    kind: FileType,
    name: Range<usize>,
}

impl Listing {
    /// Entries that memory is kept for.
    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        self.entries.capacity()
    }

    /// Goes to where the guest wants to read.
    fn go_to(&mut self, dir: BorrowedFd<'_>, offset: u64) -> Result<()> {
        let fresh = self.entries.is_empty() && self.next == 0;
        // A guest that begins anew wants to see what is new.
        if offset == self.offset && !self.is_beyond && (offset != 0 || fresh) {
            return Ok(());
        }
        seek(dir, SeekFrom::Start(offset))?;
        self.names.clear();
        self.entries.clear();
        self.next = 0;
        self.offset = offset;
        self.is_beyond = false;
        Ok(())
    }

    /// The request is over: what is left stays for the next one if the budget has room for it, and its memory goes if
    /// there is nothing.
    fn rest(&mut self, budget: &Budget) {
        let is_left = self.next < self.entries.len();
        if is_left && self.permit.is_none() {
            self.permit = budget.listing();
        }
        if !is_left || self.permit.is_none() {
            self.is_beyond |= is_left;
            self.permit = None;
            self.names = Vec::new();
            self.entries = Vec::new();
            // Not as before the first request: one at the beginning looks anew.
            self.next = 0;
        }
    }

    /// Reads more if everything has been given out. False at the end.
    fn fill(&mut self, dir: BorrowedFd<'_>) -> Result<bool> {
        if self.next < self.entries.len() {
            return Ok(true);
        }
        self.names.clear();
        self.entries.clear();
        self.next = 0;
        let mut buffer = [MaybeUninit::uninit(); BUFFER];
        let mut entries = RawDir::new(dir, &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let from = self.names.len();
            self.names
                .extend_from_slice(entry.file_name().to_bytes_with_nul());
            self.entries.push(Listed {
                ino: entry.ino(),
                offset: entry.next_entry_cookie(),
                kind: entry.file_type(),
                name: from..self.names.len(),
            });
            // The next step would ask the host again.
            if entries.is_buffer_empty() {
                break;
            }
        }
        Ok(!self.entries.is_empty())
    }

    fn advance(&mut self) {
        self.offset = self.entries[self.next].offset;
        self.next += 1;
    }

    fn name(&self, listed: &Listed) -> &CStr {
        CStr::from_bytes_with_nul(&self.names[listed.name.clone()]).unwrap_or_default()
    }
}

/// `DT_*`, which is how FUSE says it.
fn dirent_type(kind: FileType) -> u32 {
    match kind {
        FileType::Unknown => 0,
        known => (known.as_raw_mode() & 0o170_000) >> 12,
    }
}

/// An entry that was not looked up. It has a number, but no type: so it is told from others (`fuse/listing.rs`).
fn unknown(inode: u64) -> Entry {
    Entry {
        inode,
        ..Entry::default()
    }
}

fn is_dot(name: &CStr) -> bool {
    matches!(name.to_bytes(), b"." | b"..")
}

/// What is given out stands, or the guest would know inodes that it was never told of. An error behind it shows when
/// it reads on.
fn unless_given(given: usize, listed: Result<()>) -> Result<()> {
    if given > 0 { Ok(()) } else { listed }
}

fn give_out(
    listing: &mut Listing,
    dir: BorrowedFd<'_>,
    give: &mut dyn FnMut(&Listed, &CStr) -> Result<usize>,
) -> Result<()> {
    while listing.fill(dir)? {
        let listed = &listing.entries[listing.next];
        if give(listed, listing.name(listed))? == 0 {
            break;
        }
        listing.advance();
    }
    Ok(())
}

impl Share {
    /// Opens a directory for reading.
    pub(crate) fn opendir(&self, nodeid: u64) -> Result<u64> {
        let inode = self.inodes.get(nodeid)?;
        if inode.kind != FileType::Directory {
            return Err(Errno::NOTDIR);
        }
        let permit = self.common.budget.file().ok_or(Errno::NFILE)?;
        let fd = inode.open(&self.proc, OFlags::RDONLY | OFlags::DIRECTORY)?;
        self.files.insert(OpenFile::directory(nodeid, fd, permit))
    }

    /// Gives out entries from `offset` on until `add` takes no more.
    ///
    /// # Errors
    /// Also those of `add`.
    pub(crate) fn readdir(
        &self,
        nodeid: u64,
        handle: u64,
        offset: u64,
        add: &mut dyn FnMut(DirEntry<'_>) -> Result<usize>,
    ) -> Result<()> {
        let inode = self.inodes.get(nodeid)?;
        let mut given = 0;
        let listed = self.each_entry(nodeid, handle, offset, &mut |listed, name| {
            let added = add(DirEntry {
                ino: self.shown(&inode, listed.ino),
                offset: listed.offset,
                type_: dirent_type(listed.kind),
                name: name.to_bytes(),
            })?;
            given += added;
            Ok(added)
        });
        unless_given(given, listed)
    }

    /// As `readdir`, but the guest knows each inode that was taken once more. `room` is how many bytes `add` can take.
    pub(crate) fn readdirplus(
        &self,
        nodeid: u64,
        handle: u64,
        offset: u64,
        room: usize,
        add: &mut dyn FnMut(DirEntry<'_>, Entry) -> Result<usize>,
    ) -> Result<()> {
        let inode = self.inodes.get(nodeid)?;
        let dir = inode.path_fd()?;
        let mut left = room;
        let listed = self.each_entry(nodeid, handle, offset, &mut |listed, name| {
            let needed = ENTRY_OUT + (DIRENT + name.to_bytes().len()).next_multiple_of(8);
            if needed > left {
                return Ok(0);
            }
            let found = match is_dot(name) {
                true => None,
                false => match self.find(&inode, dir.as_fd(), name, None) {
                    Ok(found) => Some(found),
                    // Removed since the host listed it.
                    Err(Errno::NOENT) => return Ok(needed),
                    // A mount point whose server is gone, descriptors that have run out: one name is no reason to
                    // hide the others. Whoever looks it up is told.
                    Err(_) => None,
                },
            };
            let (mut entry, known) = match found {
                Some((found, stat)) => (self.entry(&found, &stat, &inode), Some(found.nodeid)),
                None => (unknown(self.shown(&inode, listed.ino)), None),
            };
            entry.attr.st_ino = entry.inode;
            let dirent = DirEntry {
                ino: entry.inode,
                offset: listed.offset,
                type_: dirent_type(listed.kind),
                name: name.to_bytes(),
            };
            let added = add(dirent, entry);
            match added {
                Ok(size) if size > 0 => left = left.saturating_sub(size),
                // The guest was not told of it after all.
                Ok(_) | Err(_) => {
                    if let Some(nodeid) = known {
                        self.inodes.forget(nodeid, 1);
                    }
                }
            }
            added
        });
        unless_given(room - left, listed)
    }

    fn each_entry(
        &self,
        nodeid: u64,
        handle: u64,
        offset: u64,
        give: &mut dyn FnMut(&Listed, &CStr) -> Result<usize>,
    ) -> Result<()> {
        let file = self.files.get(handle, nodeid)?;
        let listing = file.listing.as_ref().ok_or(Errno::NOTDIR)?;
        let mut listing = listing.lock().unwrap_or_else(PoisonError::into_inner);
        listing.go_to(file.as_fd(), offset)?;
        let given = give_out(&mut listing, file.as_fd(), give);
        listing.rest(&self.common.budget);
        given
    }

    /// The number of an entry that nobody looked up, the same that a lookup would show where it is no mount point.
    fn shown(&self, dir: &Inode, ino: u64) -> u64 {
        self.inodes.shown(&HostId { ino, ..dir.id })
    }

    /// Closes a directory.
    pub(crate) fn releasedir(&self, nodeid: u64, handle: u64) -> Result<()> {
        self.files.release(handle, nodeid)
    }
}
