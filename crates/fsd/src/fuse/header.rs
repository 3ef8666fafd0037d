//! The header of a FUSE request, read from guest memory wherever the guest has put it.

use vm_memory::{Bytes, GuestAddress};

use crate::transport::Chain;

/// Size of `fuse_in_header`, in bytes.
pub(super) const IN_HEADER_LEN: u32 = 40;

/// Opcodes this module has to know by name (`enum fuse_opcode`).
pub(super) mod opcode {
    pub(in crate::fuse) const LOOKUP: u32 = 1;
    pub(in crate::fuse) const FORGET: u32 = 2;
    pub(in crate::fuse) const GETATTR: u32 = 3;
    pub(in crate::fuse) const MKNOD: u32 = 8;
    pub(in crate::fuse) const MKDIR: u32 = 9;
    pub(in crate::fuse) const UNLINK: u32 = 10;
    pub(in crate::fuse) const RMDIR: u32 = 11;
    pub(in crate::fuse) const RENAME: u32 = 12;
    pub(in crate::fuse) const LINK: u32 = 13;
    pub(in crate::fuse) const READ: u32 = 15;
    pub(in crate::fuse) const WRITE: u32 = 16;
    pub(in crate::fuse) const GETXATTR: u32 = 22;
    pub(in crate::fuse) const LISTXATTR: u32 = 23;
    pub(in crate::fuse) const REMOVEXATTR: u32 = 24;
    pub(in crate::fuse) const INIT: u32 = 26;
    pub(in crate::fuse) const READDIR: u32 = 28;
    pub(in crate::fuse) const CREATE: u32 = 35;
    pub(in crate::fuse) const INTERRUPT: u32 = 36;
    pub(in crate::fuse) const DESTROY: u32 = 38;
    pub(in crate::fuse) const IOCTL: u32 = 39;
    pub(in crate::fuse) const BATCH_FORGET: u32 = 42;
    pub(in crate::fuse) const READDIRPLUS: u32 = 44;
    pub(in crate::fuse) const RENAME2: u32 = 45;
    pub(in crate::fuse) const COPY_FILE_RANGE: u32 = 47;
    pub(in crate::fuse) const SETUPMAPPING: u32 = 48;
    pub(in crate::fuse) const REMOVEMAPPING: u32 = 49;
    pub(in crate::fuse) const SYNCFS: u32 = 50;
    pub(in crate::fuse) const TMPFILE: u32 = 51;
}

/// `fuse_in_header`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct InHeader {
    pub(super) len: u32,
    pub(super) opcode: u32,
    pub(super) unique: u64,
    pub(super) nodeid: u64,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) pid: u32,
    /// Bytes of extensions at the end of the request.
    pub(super) extensions: u32,
}

impl InHeader {
    pub(super) fn read(chain: &Chain<'_>) -> Option<Self> {
        let mut raw = [0; IN_HEADER_LEN as usize];
        read_at(chain, 0, &mut raw)?;
        Some(Self {
            len: u32_at(&raw, 0),
            opcode: u32_at(&raw, 4),
            unique: u64_at(&raw, 8),
            nodeid: u64_at(&raw, 16),
            uid: u32_at(&raw, 24),
            gid: u32_at(&raw, 28),
            pid: u32_at(&raw, 32),
            extensions: (u32_at(&raw, 36) & 0xffff) * 8,
        })
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
pub(super) fn read_at(chain: &Chain<'_>, skip: u64, buf: &mut [u8]) -> Option<()> {
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
