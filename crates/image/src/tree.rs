//! A root file system as names and inodes: what layers are applied to and images are written from.
//!
//! Pure. [`Layer`] is what one layer says, in its order; [`Tree`] is what comes of applying some. How a layer is
//! applied is in `tree/apply.rs`; a layer's entries are made in `layers/` and read back in `rafs/load.rs`.

mod apply;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(crate) use apply::ApplyError;

/// What the names of attributes begin with that are marks of ours. No file of a layer has one.
pub(crate) const OUR_XATTRS: &[u8] = b"trusted.nydusbox.";
/// A layer that is recorded in an image by itself marks a directory that only its children ask for with this
/// attribute: a lower layer's directory keeps its owner, mode and times.
pub(crate) const IMPLICIT_XATTR: &str = "trusted.nydusbox.implicit";
/// Such a layer records a hard link to a lower layer's file as an empty file with the target in this attribute.
pub(crate) const LINK_XATTR: &str = "trusted.nydusbox.link";
/// The root of such a layer has this attribute if what it does to lower layers depends on the order of its entries.
pub(crate) const ORDER_XATTR: &str = "trusted.nydusbox.order";

/// Everything about a file but its names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Inode {
    /// Permissions with set-id and sticky bits; no type.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds since the epoch.
    pub(crate) mtime: i64,
    pub(crate) mtime_nsec: u32,
    pub(crate) xattrs: BTreeMap<OsString, Vec<u8>>,
    pub(crate) kind: Kind,
}

/// What an inode is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    File(Content),
    Symlink(OsString),
    /// The number as the kernel encodes it in 32 bits (`new_encode_dev`).
    CharDevice(u32),
    BlockDevice(u32),
    Fifo,
    Socket,
}

/// Where a file's content is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) size: u64,
    /// In the file's order, without gaps.
    pub(crate) chunks: Vec<Chunk>,
}

/// A piece of a file in a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chunk {
    /// Which of its layer's blobs.
    pub(crate) blob: u32,
    /// Which of the blob's chunks.
    pub(crate) index: u32,
    /// Digest of the content.
    pub(crate) id: [u8; 32],
    pub(crate) compressed_offset: u64,
    pub(crate) compressed_size: u32,
    /// In the blob's uncompressed form, as a cache has it.
    pub(crate) uncompressed_offset: u64,
    pub(crate) uncompressed_size: u32,
    pub(crate) is_compressed: bool,
    /// One of several that were compressed as one.
    pub(crate) is_batch: bool,
}

impl Inode {
    /// A directory nobody has described.
    pub(crate) fn implicit_directory() -> Self {
        Self {
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: 0,
            mtime_nsec: 0,
            xattrs: BTreeMap::new(),
            kind: Kind::Directory,
        }
    }

    /// An empty file that stands for something.
    pub(crate) fn marker() -> Self {
        Self {
            mode: 0o644,
            kind: Kind::File(Content::default()),
            ..Self::implicit_directory()
        }
    }

    pub(crate) fn is_dir(&self) -> bool {
        self.kind == Kind::Directory
    }
}

/// What one layer says, in its order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Layer {
    pub(crate) entries: Vec<Entry>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Relative to the root, without `.` and `..`; empty for the root.
    pub(crate) path: PathBuf,
    pub(crate) action: Action,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// There is such a file now.
    Put(Arc<Inode>),
    /// It is a further name of the file at this path.
    Link(PathBuf),
    /// Lower layers' file of this name is gone.
    Whiteout,
    /// Lower layers' files in this directory are gone.
    Opaque,
}

/// Position of a node in its tree.
pub(crate) type NodeId = usize;

/// A node: an inode where it is named first, and what is below it.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) inode: Arc<Inode>,
    /// The layer the inode comes from.
    pub(crate) layer: u16,
    /// Whether only its children ask for this directory.
    pub(crate) implicit: bool,
    children: BTreeMap<OsString, Child>,
    parent: NodeId,
    depth: u32,
    /// Of the names from the root to here, each with its slash.
    path_bytes: u32,
    /// The last layer that hid what lower ones have below it: once a layer is enough, however often it says so.
    purged: Option<u16>,
}

/// What has a name in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Child {
    node: NodeId,
    /// The last layer that named it: a higher one than the node's for a further name of a lower layer's file.
    layer: u16,
}

impl Node {
    /// What is in the directory, in order of names.
    pub(crate) fn children(
        &self,
    ) -> impl ExactSizeIterator<Item = (&OsString, NodeId)> + DoubleEndedIterator {
        self.children.iter().map(|(name, child)| (name, child.node))
    }
}

/// A root file system.
#[derive(Debug, Clone)]
pub(crate) struct Tree {
    /// The first is the root. What was removed stays here without a name.
    nodes: Vec<Node>,
    /// What directories that only a path asked for take, whether they are still there or not.
    implied_bytes: u64,
    /// What they may take.
    implied_most: u64,
    /// See [`Self::order_matters`].
    order_matters: bool,
    /// See [`Self::take_followed`].
    followed: bool,
}

impl Tree {
    /// An empty root.
    pub(crate) fn new() -> Self {
        let root = Node {
            inode: Arc::new(Inode::implicit_directory()),
            layer: 0,
            implicit: true,
            children: BTreeMap::new(),
            parent: Self::ROOT,
            depth: 0,
            path_bytes: 0,
            purged: None,
        };
        Self {
            nodes: vec![root],
            implied_bytes: 0,
            implied_most: apply::IMPLIED_BASE_BYTES,
            order_matters: false,
            followed: false,
        }
    }

    pub(crate) const ROOT: NodeId = 0;

    pub(crate) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id]
    }

    /// Calls `visit` for every name, a directory before what is in it, names in order; the root's path is `/`.
    pub(crate) fn walk(&self, mut visit: impl FnMut(&Path, NodeId)) {
        // A stack of our own; names are pushed last first.
        let mut pending = vec![(PathBuf::from("/"), Self::ROOT)];
        while let Some((path, id)) = pending.pop() {
            visit(&path, id);
            for (name, child) in self.nodes[id].children().rev() {
                pending.push((path.join(name), child));
            }
        }
    }
}
