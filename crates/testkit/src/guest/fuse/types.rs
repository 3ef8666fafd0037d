//! Reply bodies as values, decoded from bytes.

use super::wire::Take;

/// `fuse_attr`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attr {
    /// Inode number as the guest sees it.
    pub ino: u64,
    /// Bytes.
    pub size: u64,
    /// 512-byte blocks.
    pub blocks: u64,
    /// Modification time, seconds.
    pub mtime: u64,
    /// Modification time, nanoseconds.
    pub mtime_nsec: u32,
    /// File type and permissions.
    pub mode: u32,
    /// Hard links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a special file.
    pub rdev: u32,
    /// `FUSE_ATTR_*`.
    pub flags: u32,
}

impl Attr {
    /// The file type bits of the mode.
    pub fn file_type(&self) -> u32 {
        self.mode & 0o170_000
    }

    /// A directory.
    pub fn is_dir(&self) -> bool {
        self.file_type() == 0o040_000
    }

    /// A regular file.
    pub fn is_file(&self) -> bool {
        self.file_type() == 0o100_000
    }

    /// A symbolic link.
    pub fn is_symlink(&self) -> bool {
        self.file_type() == 0o120_000
    }

    pub(super) fn take(from: &mut Take<'_>) -> Self {
        let (ino, size, blocks) = (from.u64(), from.u64(), from.u64());
        let (_atime, mtime, _ctime) = (from.u64(), from.u64(), from.u64());
        let (_atime_nsec, mtime_nsec, _ctime_nsec) = (from.u32(), from.u32(), from.u32());
        let (mode, nlink, uid, gid, rdev) = (from.u32(), from.u32(), from.u32(), from.u32(), from.u32());
        let (_block_size, flags) = (from.u32(), from.u32());
        Self {
            ino,
            size,
            blocks,
            mtime,
            mtime_nsec,
            mode,
            nlink,
            uid,
            gid,
            rdev,
            flags,
        }
    }
}

/// `fuse_entry_out`: what a name leads to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Entry {
    /// The node to use in requests; 0 in a directory listing means "not looked up".
    pub nodeid: u64,
    /// Distinguishes reuses of a nodeid.
    pub generation: u64,
    /// How long the name may be cached, whole seconds.
    pub entry_valid: u64,
    /// How long the attributes may be cached, whole seconds.
    pub attr_valid: u64,
    /// The attributes.
    pub attr: Attr,
}

/// Bytes of a `fuse_entry_out`.
pub const ENTRY_BYTES: usize = 128;
/// Bytes of a `fuse_attr_out`.
pub const ATTR_OUT_BYTES: usize = 104;

impl Entry {
    pub(super) fn take(from: &mut Take<'_>) -> Self {
        let (nodeid, generation, entry_valid, attr_valid) = (from.u64(), from.u64(), from.u64(), from.u64());
        let _nsecs = from.u64();
        Self {
            nodeid,
            generation,
            entry_valid,
            attr_valid,
            attr: Attr::take(from),
        }
    }
}

/// `fuse_init_out`, flags joined to 64 bits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct InitOut {
    /// Always 7.
    pub major: u32,
    /// The daemon's minor version.
    pub minor: u32,
    /// Bytes.
    pub max_readahead: u32,
    /// What both ends support.
    pub flags: u64,
    /// Requests in the background.
    pub max_background: u16,
    /// Bytes of one WRITE.
    pub max_write: u32,
    /// Pages of one request, if MAX_PAGES.
    pub max_pages: u16,
}

impl InitOut {
    pub(super) fn take(from: &mut Take<'_>) -> Self {
        let (major, minor, max_readahead, low) = (from.u32(), from.u32(), from.u32(), from.u32());
        let (max_background, _congestion) = (from.u16(), from.u16());
        let (max_write, _granularity) = (from.u32(), from.u32());
        let (max_pages, _alignment) = (from.u16(), from.u16());
        let high = from.u32();
        let flags = u64::from(low) | u64::from(high) << 32;
        Self {
            major,
            minor,
            max_readahead,
            flags,
            max_background,
            max_write,
            max_pages,
        }
    }

    /// Whether a flag of [`super::wire::init`] was agreed.
    pub fn has(&self, flag: u64) -> bool {
        self.flags & flag != 0
    }
}

/// `fuse_open_out`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Opened {
    /// The handle.
    pub fh: u64,
    /// `FOPEN_*`.
    pub flags: u32,
    /// The daemon answered ENOSYS: opens need no message, the handle is 0 and is not released.
    pub zero_message: bool,
}

/// One name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// The name; any bytes but `/` and NUL.
    pub name: Vec<u8>,
    /// The inode number.
    pub ino: u64,
    /// Where the next listing goes on.
    pub offset: u64,
    /// `DT_*`.
    pub kind: u32,
    /// What READDIRPLUS adds.
    pub entry: Option<Entry>,
}

/// `fuse_kstatfs`, the fields tests look at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StatFs {
    /// Blocks in all.
    pub blocks: u64,
    /// Free blocks.
    pub bfree: u64,
    /// Inodes.
    pub files: u64,
    /// Bytes of a block.
    pub bsize: u32,
    /// The longest name.
    pub namelen: u32,
}

/// What SETATTR changes; `None` leaves a field alone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// Permissions.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Truncate or extend to this many bytes.
    pub size: Option<u64>,
    /// Modification time: seconds, nanoseconds.
    pub mtime: Option<(u64, u32)>,
    /// Through this handle.
    pub fh: Option<u64>,
}

pub(super) fn dir_entries(body: &[u8], plus: bool) -> Option<Vec<DirEntry>> {
    let mut from = Take::new(body);
    let mut out = Vec::new();
    while from.left() > 0 {
        let before = from.left();
        let entry = plus.then(|| Entry::take(&mut from));
        let (ino, offset, name_len, kind) = (from.u64(), from.u64(), from.u32(), from.u32());
        let name = from.bytes(usize::try_from(name_len).ok()?).to_vec();
        // Records are padded to 8 bytes, the last one too.
        let _padding = from.bytes((before - from.left()).next_multiple_of(8) - (before - from.left()));
        if !from.complete() || name.is_empty() || name.contains(&0) || name.contains(&b'/') {
            return None;
        }
        out.push(DirEntry {
            name,
            ino,
            offset,
            kind,
            entry,
        });
    }
    Some(out)
}
