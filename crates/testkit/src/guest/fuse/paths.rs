//! Paths on top of the calls: resolve, read, write, walk and sum up a tree.
//!
//! Paths are bytes, since names in a guest need not be UTF-8. `.` and `..` are not interpreted.

use std::collections::BTreeMap;

use rustix::io::Errno;
use sha2::{Digest, Sha256};

use super::types::{Attr, DirEntry, Entry};
use super::{FuseClient, FuseError, ROOT, ops};

type Result<T> = std::result::Result<T, FuseError>;

/// Bytes of one READ or WRITE of the helpers: the most Linux sends.
pub const TRANSFER: u32 = 1 << 20;
/// Bytes of one directory listing.
const LISTING: u32 = 32 << 10;

/// What a tree has at a path; equal trees have equal summaries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    /// File type and permissions.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// What it holds.
    pub content: Content,
}

/// What a file of each type holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Size in bytes and SHA-256.
    File(u64, [u8; 32]),
    /// Target.
    Symlink(Vec<u8>),
    /// Nothing of its own.
    Directory,
    /// Device number.
    Special(u32),
}

/// A tree by path, relative to where it was summed up, sorted.
pub type TreeSum = BTreeMap<Vec<u8>, Leaf>;

fn components(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|b| *b == b'/').filter(|part| !part.is_empty())
}

#[expect(
    clippy::missing_errors_doc,
    reason = "each is made of FUSE calls and fails as FuseError says"
)]
impl FuseClient {
    /// Looks a path up from the root.
    pub fn resolve(&mut self, path: impl AsRef<[u8]>) -> Result<Entry> {
        let mut entry = Entry {
            nodeid: ROOT,
            attr: self.getattr(ROOT)?,
            ..Entry::default()
        };
        for name in components(path.as_ref()) {
            entry = self.lookup(entry.nodeid, name)?;
        }
        Ok(entry)
    }

    /// The most bytes one READ may ask for on this guest.
    pub fn transfer_size(&mut self) -> u32 {
        let pages = self.guest().max_data_segments();
        let segment = self.guest().config().segment;
        u32::try_from(pages * segment).unwrap_or(TRANSFER).min(TRANSFER)
    }

    /// Opens, reads to the end in requests of up to 1 MiB, four of them in flight, and releases.
    pub fn read_file(&mut self, path: impl AsRef<[u8]>) -> Result<Vec<u8>> {
        let entry = self.resolve(path)?;
        self.read_node(entry.nodeid, entry.attr.size)
    }

    /// As [`Self::read_file`], of a node with a known size.
    pub fn read_node(&mut self, nodeid: u64, size: u64) -> Result<Vec<u8>> {
        let handle = self.open(nodeid, 0)?;
        let content = self.read_all(nodeid, handle.fh, size);
        self.release(nodeid, handle)?;
        content
    }

    fn read_all(&mut self, nodeid: u64, fh: u64, size: u64) -> Result<Vec<u8>> {
        let step = self.transfer_size();
        let mut tickets = std::collections::VecDeque::new();
        let (mut sent, mut out) = (0_u64, Vec::new());
        while sent < size || !tickets.is_empty() {
            while sent < size && tickets.len() < 4 {
                // Whole pages, also past the end, as the kernel's page cache asks.
                let pages = (size - sent).next_multiple_of(4096);
                let len = u32::try_from(pages).unwrap_or(step).min(step);
                tickets.push_back(self.submit(ops::read(nodeid, fh, sent, len))?);
                sent += u64::from(len);
            }
            if let Some(ticket) = tickets.pop_front() {
                out.extend(self.wait(ticket)?);
            }
        }
        Ok(out)
    }

    /// Creates or truncates a file and writes it in requests of up to 1 MiB.
    pub fn write_file(&mut self, path: impl AsRef<[u8]>, data: &[u8]) -> Result<Entry> {
        let path = path.as_ref();
        let at = path.iter().rposition(|b| *b == b'/').map_or(0, |slash| slash + 1);
        let (parent, name) = path.split_at(at);
        let parent = self.resolve(parent)?.nodeid;
        let flags = 0o1 | 0o100 | 0o1000; // O_WRONLY | O_CREAT | O_TRUNC
        let (entry, handle) = self.create(parent, name, 0o644, flags)?;
        let mut offset = 0;
        while offset < data.len() {
            let end = data.len().min(offset + self.transfer_size() as usize);
            let written = self.write(entry.nodeid, handle.fh, offset as u64, &data[offset..end])?;
            if written == 0 {
                return Err(FuseError::Malformed {
                    call: "WRITE",
                    got: 0,
                });
            }
            offset += written as usize;
        }
        self.flush(entry.nodeid, handle.fh)?;
        self.release(entry.nodeid, handle)?;
        Ok(entry)
    }

    /// All names of a directory with their attributes, without the dots, sorted.
    pub fn list(&mut self, nodeid: u64) -> Result<Vec<(Vec<u8>, Entry)>> {
        let handle = self.opendir(nodeid)?;
        let found = self.list_open(nodeid, handle.fh);
        self.releasedir(nodeid, handle)?;
        let mut out = Vec::new();
        for found in found? {
            if matches!(found.name.as_slice(), b"." | b"..") {
                continue;
            }
            let entry = match found.entry {
                Some(entry) if entry.nodeid != 0 => entry,
                _ => self.lookup(nodeid, &found.name)?,
            };
            out.push((found.name, entry));
        }
        out.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(out)
    }

    fn list_open(&mut self, nodeid: u64, fh: u64) -> Result<Vec<DirEntry>> {
        let (mut offset, mut plus, mut out) = (0, true, Vec::new());
        loop {
            let batch = if plus {
                match self.readdirplus(nodeid, fh, offset, LISTING) {
                    Err(FuseError::Errno {
                        errno: Errno::NOSYS, ..
                    }) => {
                        plus = false;
                        continue;
                    }
                    batch => batch?,
                }
            } else {
                self.readdir(nodeid, fh, offset, LISTING)?
            };
            let Some(last) = batch.last() else {
                return Ok(out);
            };
            offset = last.offset;
            out.extend(batch);
        }
    }

    /// Everything below a path, depth first in the order of names; paths relative to it.
    pub fn walk(&mut self, path: impl AsRef<[u8]>) -> Result<Vec<(Vec<u8>, Entry)>> {
        let root = self.resolve(path)?;
        let mut out = Vec::new();
        let mut stack = vec![(Vec::new(), root)];
        while let Some((path, entry)) = stack.pop() {
            if entry.attr.is_dir() {
                for (name, child) in self.list(entry.nodeid)?.into_iter().rev() {
                    let mut below = path.clone();
                    if !below.is_empty() {
                        below.push(b'/');
                    }
                    below.extend(name);
                    stack.push((below, child));
                }
            }
            if !path.is_empty() {
                out.push((path, entry));
            }
        }
        Ok(out)
    }

    /// Reads every file below a path and sums the tree up.
    pub fn checksum_tree(&mut self, path: impl AsRef<[u8]>) -> Result<TreeSum> {
        let mut sum = TreeSum::new();
        for (path, entry) in self.walk(path)? {
            let content = self.content(entry.nodeid, &entry.attr)?;
            let Attr { mode, uid, gid, .. } = entry.attr;
            sum.insert(
                path,
                Leaf {
                    mode,
                    uid,
                    gid,
                    content,
                },
            );
        }
        Ok(sum)
    }

    fn content(&mut self, nodeid: u64, attr: &Attr) -> Result<Content> {
        Ok(if attr.is_file() {
            let bytes = self.read_node(nodeid, attr.size)?;
            Content::File(bytes.len() as u64, Sha256::digest(&bytes).into())
        } else if attr.is_dir() {
            Content::Directory
        } else if attr.is_symlink() {
            Content::Symlink(self.readlink(nodeid)?)
        } else {
            Content::Special(attr.rdev)
        })
    }
}
