//! A FUSE request, read from guest memory wherever the guest has put it: once.
//!
//! A guest may change its memory at any time. What was looked at and what is done must be one and the same, so that
//! everybody behind this sees the copy that is made here; only the data of a WRITE stay where they are, because nobody
//! decides anything by them. Next: `screen.rs` for what is refused.

use rustix::io::Errno;
use vm_memory::{Bytes, GuestAddress};

use crate::transport::Chain;

/// Size of `fuse_in_header`, in bytes.
pub(super) const IN_HEADER_LEN: u32 = 40;
const HEADER: usize = IN_HEADER_LEN as usize;
/// Size of `fuse_write_in`, in bytes; the data come behind it.
pub(super) const WRITE_IN_LEN: u32 = 40;
/// The longest request, in bytes: a WRITE of all that FUSE_INIT allows, with room for what comes before it.
pub(super) const MOST_BYTES: u32 = (1 << 20) + 4096;
/// What a driver's buffers may have beyond what its header says, in bytes. Those of Linux, Windows and edk2 have nothing.
const SLACK: u64 = 4096;

/// Opcodes this module has to know by name (`enum fuse_opcode`).
pub(super) mod opcode {
    pub(in crate::fuse) const LOOKUP: u32 = 1;
    pub(in crate::fuse) const FORGET: u32 = 2;
    pub(in crate::fuse) const GETATTR: u32 = 3;
    pub(in crate::fuse) const SETATTR: u32 = 4;
    pub(in crate::fuse) const READLINK: u32 = 5;
    pub(in crate::fuse) const SYMLINK: u32 = 6;
    pub(in crate::fuse) const MKNOD: u32 = 8;
    pub(in crate::fuse) const MKDIR: u32 = 9;
    pub(in crate::fuse) const UNLINK: u32 = 10;
    pub(in crate::fuse) const RMDIR: u32 = 11;
    pub(in crate::fuse) const RENAME: u32 = 12;
    pub(in crate::fuse) const LINK: u32 = 13;
    pub(in crate::fuse) const OPEN: u32 = 14;
    pub(in crate::fuse) const READ: u32 = 15;
    pub(in crate::fuse) const WRITE: u32 = 16;
    pub(in crate::fuse) const FSYNC: u32 = 20;
    pub(in crate::fuse) const SETXATTR: u32 = 21;
    pub(in crate::fuse) const GETXATTR: u32 = 22;
    pub(in crate::fuse) const LISTXATTR: u32 = 23;
    pub(in crate::fuse) const REMOVEXATTR: u32 = 24;
    pub(in crate::fuse) const FLUSH: u32 = 25;
    pub(in crate::fuse) const INIT: u32 = 26;
    pub(in crate::fuse) const READDIR: u32 = 28;
    pub(in crate::fuse) const FSYNCDIR: u32 = 30;
    pub(in crate::fuse) const CREATE: u32 = 35;
    pub(in crate::fuse) const INTERRUPT: u32 = 36;
    pub(in crate::fuse) const DESTROY: u32 = 38;
    pub(in crate::fuse) const IOCTL: u32 = 39;
    pub(in crate::fuse) const BATCH_FORGET: u32 = 42;
    pub(in crate::fuse) const FALLOCATE: u32 = 43;
    pub(in crate::fuse) const READDIRPLUS: u32 = 44;
    pub(in crate::fuse) const RENAME2: u32 = 45;
    pub(in crate::fuse) const LSEEK: u32 = 46;
    pub(in crate::fuse) const COPY_FILE_RANGE: u32 = 47;
    pub(in crate::fuse) const SETUPMAPPING: u32 = 48;
    pub(in crate::fuse) const REMOVEMAPPING: u32 = 49;
    pub(in crate::fuse) const SYNCFS: u32 = 50;
    pub(in crate::fuse) const TMPFILE: u32 = 51;
}

/// Where a worker keeps the request that it serves.
#[derive(Debug, Default)]
pub(crate) struct Scratch(Vec<u8>);

impl Scratch {
    /// Room that is kept for good, in bytes: all but some requests for extended attributes and of many FORGETs fit.
    const USUAL: usize = 8192;

    fn room(&mut self, len: usize) -> &mut [u8] {
        let wanted = len.max(Self::USUAL);
        if self.0.len() < len || self.0.len() > wanted {
            self.0 = vec![0; wanted];
        }
        &mut self.0[..len]
    }
}

/// A request as it was when it was taken.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request<'m> {
    pub(super) len: u32,
    pub(super) opcode: u32,
    pub(super) unique: u64,
    pub(super) nodeid: u64,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) pid: u32,
    /// Bytes of extensions at the end of the request.
    pub(super) extensions: u32,
    /// What the guest has sent, with the header; of a WRITE without the data, and of what is refused for its length,
    /// or lies outside memory, the header only.
    raw: &'m [u8],
    /// Its buffers and its length fit each other.
    pub(super) is_sound: bool,
}

impl<'m> Request<'m> {
    /// `None` if there is not even a header.
    pub(super) fn read(chain: &Chain<'_>, scratch: &'m mut Scratch) -> Option<Self> {
        let mut header = [0; HEADER];
        copy(chain, 0, &mut header)?;
        let (len, opcode) = (u32_at(&header, 0), u32_at(&header, 4));
        // Descriptors may all name the same page: what can be read is no measure of what a guest has.
        let readable = chain.readable().iter().map(|s| u64::from(s.len)).sum::<u64>();
        let is_sound = len >= IN_HEADER_LEN && readable <= u64::from(len) + SLACK;
        let whole = match opcode {
            _ if !is_sound || len > MOST_BYTES => HEADER,
            opcode::WRITE => usize::try_from(readable)
                .ok()?
                .min(HEADER + WRITE_IN_LEN as usize),
            _ => usize::try_from(readable).ok()?,
        };
        let raw = scratch.room(whole);
        raw[..HEADER].copy_from_slice(&header);
        let is_there = whole == HEADER || copy(chain, IN_HEADER_LEN.into(), &mut raw[HEADER..]).is_some();
        Some(Self {
            len,
            opcode,
            unique: u64_at(&header, 8),
            nodeid: u64_at(&header, 16),
            uid: u32_at(&header, 24),
            gid: u32_at(&header, 28),
            pid: u32_at(&header, 32),
            extensions: (u32_at(&header, 36) & 0xffff) * 8,
            raw: if is_there { raw } else { &raw[..HEADER] },
            is_sound,
        })
    }

    /// All of it that was read.
    pub(super) fn raw(&self) -> &'m [u8] {
        self.raw
    }

    /// What comes behind the header, up to where the request ends by its own account.
    ///
    /// # Errors
    /// `IO` if it is shorter than it says.
    pub(super) fn body(&self) -> Result<&'m [u8], Errno> {
        self.part(HEADER, (self.len as usize).saturating_sub(HEADER))
    }

    /// The first bytes behind the header.
    ///
    /// # Errors
    /// `IO` if there are not so many.
    pub(super) fn argument<const N: usize>(&self) -> Result<[u8; N], Errno> {
        let part = self.part(HEADER, N)?;
        part.try_into().map_err(|_| Errno::IO)
    }

    /// So many bytes from an offset on.
    ///
    /// # Errors
    /// `IO` if there are not so many.
    pub(super) fn part(&self, from: usize, len: usize) -> Result<&'m [u8], Errno> {
        let rest = self.raw.get(from..).ok_or(Errno::IO)?;
        rest.get(..len).ok_or(Errno::IO)
    }
}

/// A field of a request; the caller knows that it is there.
pub(super) fn u32_at(raw: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([raw[at], raw[at + 1], raw[at + 2], raw[at + 3]])
}

/// A field of a request; the caller knows that it is there.
pub(super) fn u64_at(raw: &[u8], at: usize) -> u64 {
    u64::from(u32_at(raw, at)) | u64::from(u32_at(raw, at + 4)) << 32
}

/// Fills `buf` from offset `skip` of the readable part of the chain; `None` when it is shorter or lies outside
/// the guest's memory.
fn copy(chain: &Chain<'_>, skip: u64, buf: &mut [u8]) -> Option<()> {
    let mut skip = skip;
    let mut filled = 0;
    for segment in chain.readable() {
        let len = u64::from(segment.len);
        if skip >= len {
            skip -= len;
            continue;
        }
        let here = usize::try_from(len - skip).ok()?.min(buf.len() - filled);
        let from = segment.addr.checked_add(skip)?;
        let part = &mut buf[filled..filled + here];
        match chain.piece(from, here) {
            Some(piece) => piece.copy_to(part),
            None => {
                chain.memory().read_slice(part, GuestAddress(from)).ok()?;
                here
            }
        };
        filled += here;
        skip = 0;
        if filled == buf.len() {
            return Some(());
        }
    }
    (filled == buf.len()).then_some(())
}
