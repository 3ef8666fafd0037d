//! What an entry of a layer's archive means: a file, a further name, or a whiteout.
//!
//! Pure, and where hostile archives are refused: what comes out has a path inside the root, a type that RAFS
//! knows, and attributes it can store. Read `tree/apply.rs` for what is done with it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::Names;
use super::error::EntryProblem;
use super::tar_stream::TarEntry;
use crate::tree::{Content, Inode, Kind, OUR_XATTRS};

/// Name prefix of a whiteout (OCI image specification, layer.md).
pub(crate) const WHITEOUT_PREFIX: &str = ".wh.";
/// Name of an opaque whiteout.
pub(crate) const OPAQUE_WHITEOUT: &str = ".wh..wh..opq";
/// What AUFS kept for itself in a layer; extractors leave it out.
const AUFS_PREFIX: &[u8] = b".wh..wh.";
/// NAME_MAX and PATH_MAX (less its NUL) on Linux.
const NAME_MAX_BYTES: usize = 255;
const PATH_MAX_BYTES: usize = 4095;
/// Longest value of an extended attribute, and most of them together, that an inode of RAFS v6 has room for.
const XATTR_MAX_BYTES: usize = 1 << 16;
const XATTR_NAME_SPACES: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];
const ACL_XATTRS: [&[u8]; 2] = [b"system.posix_acl_access", b"system.posix_acl_default"];

/// What to do about an entry.
#[derive(Debug)]
pub(super) enum Meaning {
    /// There is such a file; a regular one's content follows in the archive.
    File(Inode),
    Link(PathBuf),
    Whiteout,
    Opaque,
    /// Nothing.
    Ignored,
}

/// The path an entry is about, and what it says.
pub(super) fn interpret(entry: TarEntry, names: Names) -> Result<(PathBuf, Meaning), EntryProblem> {
    let path = relative(&entry.path)?;
    let name = match names {
        Names::OfLayer => path.file_name().map(OsStrExt::as_bytes).unwrap_or_default(),
        Names::Plain => b"",
    };
    if name == OPAQUE_WHITEOUT.as_bytes() {
        let dir = path.parent().unwrap_or(Path::new("")).to_owned();
        return Ok((dir, Meaning::Opaque));
    }
    if name.starts_with(AUFS_PREFIX) {
        return Ok((path, Meaning::Ignored));
    }
    if let Some(hidden) = name.strip_prefix(WHITEOUT_PREFIX.as_bytes()) {
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(EntryProblem::Whiteout);
        }
        let hidden = path.with_file_name(OsString::from_vec(hidden.to_vec()));
        return Ok((hidden, Meaning::Whiteout));
    }
    if entry.type_flag == b'1' {
        return Ok((path, Meaning::Link(relative(&entry.link_path)?)));
    }
    let inode = inode(entry)?;
    Ok((path, Meaning::File(inode)))
}

fn inode(entry: TarEntry) -> Result<Inode, EntryProblem> {
    let id = |number| u32::try_from(number).map_err(|_| EntryProblem::Owner);
    let kind = match entry.type_flag {
        b'0' => Kind::File(Content::default()),
        b'2' => Kind::Symlink(link_target(entry.link_path)?),
        b'3' => Kind::CharDevice(device(entry.device)?),
        b'4' => Kind::BlockDevice(device(entry.device)?),
        b'5' => Kind::Directory,
        b'6' => Kind::Fifo,
        type_flag => return Err(EntryProblem::Type { type_flag }),
    };
    let mode = match kind {
        // As Linux has it. Archives say this and that, and extractors don't look at it.
        Kind::Symlink(_) => 0o777,
        // Archivers differ in whether they put the type in here too.
        _ => u32::try_from(entry.mode & 0o7777).unwrap_or_default(),
    };
    Ok(Inode {
        mode,
        uid: id(entry.uid)?,
        gid: id(entry.gid)?,
        mtime: entry.mtime.0,
        mtime_nsec: entry.mtime.1,
        xattrs: xattrs(entry.xattrs)?,
        kind,
    })
}

fn link_target(target: Vec<u8>) -> Result<OsString, EntryProblem> {
    match target.len() {
        0 => Err(EntryProblem::NoTarget),
        length if length > PATH_MAX_BYTES => Err(EntryProblem::PathTooLong),
        _ if target.contains(&0) => Err(EntryProblem::Nul),
        _ => Ok(OsString::from_vec(target)),
    }
}

/// As Linux encodes a device number in 32 bits: 12 of the major, 20 of the minor (`new_encode_dev`).
fn device((major, minor): (i64, i64)) -> Result<u32, EntryProblem> {
    let within = |number: i64, bits: u32| {
        u32::try_from(number)
            .ok()
            .filter(|number| number >> bits == 0)
            .ok_or(EntryProblem::Device)
    };
    let (major, minor) = (within(major, 12)?, within(minor, 20)?);
    Ok((minor & 0xff) | (major << 8) | ((minor & !0xff) << 12))
}

/// Whether an extended attribute is in a name space that files have on Linux. macOS, for one, has others; containerd
/// leaves out what the file system doesn't take.
pub(super) fn is_of_linux(name: &[u8]) -> bool {
    ACL_XATTRS.contains(&name) || XATTR_NAME_SPACES.iter().any(|space| name.starts_with(space))
}

fn xattrs(pairs: Vec<(Vec<u8>, Vec<u8>)>) -> Result<BTreeMap<OsString, Vec<u8>>, EntryProblem> {
    let mut xattrs = BTreeMap::new();
    let mut bytes = 0;
    for (name, value) in pairs {
        // What is a mark of ours would be taken for one when the layer is used again.
        if !is_of_linux(&name) || name.starts_with(OUR_XATTRS) {
            continue;
        }
        bytes += name.len() + value.len();
        let fits = name.len() <= NAME_MAX_BYTES && value.len() < XATTR_MAX_BYTES && bytes < XATTR_MAX_BYTES;
        if !fits || XATTR_NAME_SPACES.contains(&&*name) || name.contains(&0) {
            return Err(EntryProblem::Xattr);
        }
        xattrs.insert(OsString::from_vec(name), value);
    }
    Ok(xattrs)
}

/// A path relative to the root, without `.` and doubled slashes.
fn relative(bytes: &[u8]) -> Result<PathBuf, EntryProblem> {
    if bytes.len() > PATH_MAX_BYTES {
        return Err(EntryProblem::PathTooLong);
    }
    if bytes.contains(&0) {
        return Err(EntryProblem::Nul);
    }
    let mut path = PathBuf::new();
    for name in bytes.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => return Err(EntryProblem::ParentComponent),
            _ if name.len() > NAME_MAX_BYTES => return Err(EntryProblem::NameTooLong),
            _ => path.push(std::ffi::OsStr::from_bytes(name)),
        }
    }
    Ok(path)
}
