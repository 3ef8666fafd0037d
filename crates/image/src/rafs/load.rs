//! Reads a bootstrap back: as a tree, or as the layer it was made of.
//!
//! The format is read by nydus-rafs, which trusts much of what it reads: call it inside
//! [`super::with_nydus`] unless the bootstrap is our own.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nydus_api::ConfigV2;
use nydus_rafs::metadata::{RafsInodeExt, RafsInodeWalkAction, RafsSuper};
use nydus_storage::device::BlobChunkInfo;

use super::NydusError;
use super::blob::Blob;
use super::bounds::{BadBlobId, BadName, Budget, PATH_MAX_BYTES, check_ids, is_file_name};
use super::tail::BlobFormat;
use crate::config::{ChunkSize, FsVersion};
use crate::layers::{OPAQUE_WHITEOUT, WHITEOUT_PREFIX};
use crate::tree::{
    Action, Chunk, Content, Entry, IMPLICIT_XATTR, Inode, Kind, LINK_XATTR, Layer, ORDER_XATTR,
};

/// As deep as [`crate::tree`] makes them.
const MAX_DEPTH: usize = 2048;

/// A bootstrap's content, every name of a file an entry of its own.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) fs_version: FsVersion,
    pub(crate) chunk_size: ChunkSize,
    pub(crate) blobs: Vec<Blob>,
    /// A directory before what is in it, and there whiteouts first; a file's further names are links to its first.
    pub(crate) entries: Vec<Entry>,
}

impl Loaded {
    /// Whether its chunks can stand in an image of that format.
    pub(crate) fn is_of(&self, format: BlobFormat) -> bool {
        self.fs_version == format.fs_version
            && self.chunk_size == format.chunk_size
            && self
                .blobs
                .iter()
                .all(|blob| blob.is_original() || blob.compressor == format.compressor)
    }
}

#[derive(Debug, thiserror::Error)]
#[error("a directory is nested too deeply")]
struct TooDeep;

#[derive(Debug, thiserror::Error)]
#[error("a directory has two names, or is in itself")]
struct TwoNames;

#[derive(Debug, thiserror::Error)]
#[error("a file has fewer bytes in its chunks than it says")]
struct ShortFile;

/// The version of the format a bootstrap is in, by the magic numbers of the two.
pub(crate) fn version_of(bootstrap: &File) -> io::Result<FsVersion> {
    /// Where RAFS v6, as EROFS, has its superblock, in bytes.
    const V6_AT: u64 = 1024;
    const V6_MAGIC: u32 = 0xe0f5_e1e2;
    const V5_MAGIC: u32 = 0x5241_4653;
    let magic = |at| {
        let mut word = [0; 4];
        bootstrap.read_exact_at(&mut word, at)?;
        io::Result::Ok(u32::from_le_bytes(word))
    };
    if magic(V6_AT)? == V6_MAGIC {
        Ok(FsVersion::V6)
    } else if magic(0)? == V5_MAGIC {
        Ok(FsVersion::V5)
    } else {
        Err(io::Error::other("it is of neither version of RAFS"))
    }
}

/// The blobs that the bootstrap at `path` has data in; its files aren't looked at.
pub(crate) fn blobs_of(path: &Path) -> Result<Vec<Blob>, NydusError> {
    let (rafs, _) = RafsSuper::load_from_file(path, Arc::new(ConfigV2::default()), false)?;
    Ok(blobs_in(&rafs)?)
}

fn blobs_in(rafs: &RafsSuper) -> Result<Vec<Blob>, BadBlobId> {
    let infos = rafs.superblock.get_blob_infos();
    let blobs: Vec<_> = infos.iter().map(|info| Blob::of(info)).collect();
    check_ids(&blobs)?;
    Ok(blobs)
}

/// Reads the bootstrap at `path`.
pub(crate) fn load(path: &Path) -> Result<Loaded, NydusError> {
    let (rafs, _) = RafsSuper::load_from_file(path, Arc::new(ConfigV2::default()), false)?;
    let blobs = blobs_in(&rafs)?;
    let mut loader = Loader {
        rafs: &rafs,
        directories: HashSet::new(),
        first_names: HashMap::new(),
        entries: Vec::new(),
        budget: Budget::of(path.metadata()?.len()),
    };
    loader.load_tree()?;
    let entries = loader.entries;
    Ok(Loaded {
        fs_version: if rafs.meta.is_v5() {
            FsVersion::V5
        } else {
            FsVersion::V6
        },
        chunk_size: ChunkSize::new(u64::from(rafs.meta.chunk_size))?,
        blobs,
        entries,
    })
}

impl Loaded {
    /// Whether the layer whose own bootstrap this is links to lower layers' files, or is marked: it doesn't tell what came
    /// first, and what is linked to may be what the layer then hides or replaces, also by another path.
    pub(crate) fn is_ambiguous(&self) -> bool {
        let mut inodes = self.entries.iter().filter_map(|entry| match &entry.action {
            Action::Put(inode) => Some(inode),
            Action::Link(_) | Action::Whiteout | Action::Opaque => None,
        });
        let marks = [LINK_XATTR, ORDER_XATTR].map(std::ffi::OsStr::new);
        inodes.any(|inode| marks.iter().any(|mark| inode.xattrs.contains_key(*mark)))
    }

    /// The layer whose own bootstrap this is: what stands for whiteouts and links is them again.
    pub(crate) fn into_layer(self) -> Layer {
        let mut entries = Vec::with_capacity(self.entries.len());
        for mut entry in self.entries {
            let name = entry.path.file_name().unwrap_or_default().as_bytes();
            if name == OPAQUE_WHITEOUT.as_bytes() {
                entry.path = entry.path.parent().unwrap_or(Path::new("")).to_owned();
                entry.action = Action::Opaque;
            } else if let Some(hidden) = name.strip_prefix(WHITEOUT_PREFIX.as_bytes()) {
                entry.path = entry.path.with_file_name(OsString::from_vec(hidden.to_vec()));
                entry.action = Action::Whiteout;
            } else if let Action::Put(inode) = &entry.action {
                if inode.xattrs.contains_key(std::ffi::OsStr::new(IMPLICIT_XATTR)) {
                    continue;
                }
                if let Some(target) = inode.xattrs.get(std::ffi::OsStr::new(LINK_XATTR)) {
                    entry.action = Action::Link(PathBuf::from(OsString::from_vec(target.clone())));
                }
            }
            entries.push(entry);
        }
        Layer { entries }
    }
}

struct Loader<'a> {
    rafs: &'a RafsSuper,
    /// Those that were met.
    directories: HashSet<u64>,
    /// Of files with several.
    first_names: HashMap<u64, PathBuf>,
    entries: Vec<Entry>,
    budget: Budget,
}

impl Loader<'_> {
    fn load_tree(&mut self) -> Result<(), NydusError> {
        let root = self
            .rafs
            .get_extended_inode(self.rafs.superblock.root_ino(), false)?;
        // A stack of our own: how deep it goes is the image's choice.
        let mut pending = vec![(PathBuf::new(), root, 0)];
        while let Some((path, inode, depth)) = pending.pop() {
            if depth > MAX_DEPTH || path.as_os_str().len() > PATH_MAX_BYTES {
                return Err(TooDeep.into());
            }
            if inode.is_dir() {
                if !self.directories.insert(inode.ino()) {
                    return Err(TwoNames.into());
                }
                for name in self.names(&*inode)?.into_iter().rev() {
                    let child = inode.get_child_by_name(&name)?;
                    let path = path.join(name);
                    self.budget.take(size_of::<Entry>() + path.as_os_str().len())?;
                    pending.push((path, child, depth + 1));
                }
            }
            let action = self.action(&path, &*inode)?;
            self.entries.push(Entry { path, action });
        }
        Ok(())
    }

    fn action(&mut self, path: &Path, inode: &dyn RafsInodeExt) -> Result<Action, NydusError> {
        if inode.is_reg() && inode.get_attr().nlink > 1 {
            if let Some(first) = self.first_names.get(&inode.ino()) {
                return Ok(Action::Link(first.clone()));
            }
            self.first_names.insert(inode.ino(), path.to_owned());
        }
        Ok(Action::Put(Arc::new(read_inode(inode, &mut self.budget)?)))
    }

    /// A directory's names, those first that may stand for whiteouts: such are of what lower layers have in the
    /// directory, which may be one only by this layer, and of nothing that this layer puts there.
    ///
    /// Asking nydus for its entries by number takes time that grows with the square of how many there are; by name it
    /// searches.
    fn names(&mut self, dir: &dyn RafsInodeExt) -> Result<Vec<OsString>, NydusError> {
        let mut names = Vec::new();
        dir.walk_children_inodes(0, &mut |_, name, _, _| {
            self.budget.take(name.len() + 1).map_err(io::Error::other)?;
            if name != "." && name != ".." {
                if !is_file_name(&name) {
                    return Err(io::Error::other(BadName { name }));
                }
                names.push(name);
            }
            Ok(RafsInodeWalkAction::Continue)
        })?;
        names.sort_by_key(|name| !name.as_bytes().starts_with(WHITEOUT_PREFIX.as_bytes()));
        Ok(names)
    }
}

fn read_inode(inode: &dyn RafsInodeExt, budget: &mut Budget) -> Result<Inode, NydusError> {
    let attr = inode.get_attr();
    let mut xattrs = BTreeMap::new();
    for name in inode.get_xattrs()? {
        let name = OsString::from_vec(name);
        let value = inode.get_xattr(&name)?.unwrap_or_default();
        budget.take(name.len() + value.len())?;
        xattrs.insert(name, value);
    }
    let kind = if inode.is_dir() {
        Kind::Directory
    } else if inode.is_reg() {
        Kind::File(content(inode, budget)?)
    } else if inode.is_symlink() {
        Kind::Symlink(inode.get_symlink()?)
    } else if inode.is_chrdev() {
        Kind::CharDevice(attr.rdev)
    } else if inode.is_blkdev() {
        Kind::BlockDevice(attr.rdev)
    } else if inode.is_fifo() {
        Kind::Fifo
    } else {
        Kind::Socket
    };
    Ok(Inode {
        mode: attr.mode & 0o7777,
        uid: attr.uid,
        gid: attr.gid,
        mtime: attr.mtime.cast_signed(),
        mtime_nsec: attr.mtimensec,
        xattrs,
        kind,
    })
}

fn content(inode: &dyn RafsInodeExt, budget: &mut Budget) -> Result<Content, NydusError> {
    let mut content = Content {
        size: inode.size(),
        chunks: Vec::new(),
    };
    let mut sum = 0;
    for index in 0..inode.get_chunk_count() {
        let info = inode.get_chunk_info(index)?;
        budget.take(size_of::<Chunk>())?;
        sum += u64::from(info.uncompressed_size());
        content.chunks.push(chunk(&*info));
    }
    if sum < content.size {
        return Err(ShortFile.into());
    }
    Ok(content)
}

fn chunk(info: &dyn BlobChunkInfo) -> Chunk {
    Chunk {
        blob: info.blob_index(),
        index: info.id(),
        id: info.chunk_id().data,
        compressed_offset: info.compressed_offset(),
        compressed_size: info.compressed_size(),
        uncompressed_offset: info.uncompressed_offset(),
        uncompressed_size: info.uncompressed_size(),
        is_compressed: info.is_compressed(),
        is_batch: info.is_batch(),
    }
}

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
