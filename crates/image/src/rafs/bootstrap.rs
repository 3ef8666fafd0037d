//! Writes the bootstrap of a tree.
//!
//! The layout on disk is nydus-builder's; the tree, its hard links and its attributes are ours. Call it inside
//! [`super::with_nydus`].

use std::collections::HashSet;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nydus_api::ConfigV2;
use nydus_builder::attributes::Attributes;
use nydus_builder::{
    ArtifactStorage, BlobManager, Bootstrap, BootstrapContext, BuildContext, ChunkSource, ConversionType,
    Features, NodeChunk, Prefetch, PrefetchPolicy, TarBuilder, Tree as NydusTree, WhiteoutSpec,
};
use nydus_rafs::metadata::RafsVersion;
use nydus_rafs::metadata::chunk::ChunkWrapper;
use nydus_rafs::metadata::inode::InodeWrapper;
use nydus_rafs::metadata::layout::RafsXAttrs;
use nydus_utils::compress;
use nydus_utils::digest::{DigestHasher, RafsDigest};
use rustix::fs::FileType;

use super::NydusError;
use super::blob::{Blob, DIGESTER};
use super::tail::BlobFormat;
use crate::config::{ChunkSize, FsVersion};
use crate::merge::Merged;
use crate::tree::{Chunk, IMPLICIT_XATTR, Inode, Kind, NodeId, ORDER_XATTR, Tree};

/// What a bootstrap is made of.
#[derive(Debug)]
pub(crate) struct BootstrapPlan<'a> {
    pub(crate) tree: &'a Tree,
    pub(crate) fs_version: FsVersion,
    pub(crate) compressor: compress::Algorithm,
    pub(crate) chunk_size: ChunkSize,
    /// The table of blobs.
    pub(crate) blobs: &'a [Blob],
    /// For each layer, which of its blobs is which in the table.
    pub(crate) blob_indexes: &'a [Vec<u32>],
    /// Whether what a tree can't tell of the layer it is of is marked: for a bootstrap of one layer only.
    pub(crate) is_of_layer: bool,
}

/// A chunk that names a blob which isn't there: the layer's bootstrap lied.
#[derive(Debug, thiserror::Error)]
#[error("a chunk is in blob {blob} of its layer, which has fewer")]
struct NoSuchBlob {
    blob: u32,
}

impl<'a> BootstrapPlan<'a> {
    /// The bootstrap of a whole image.
    pub(crate) fn of_image(merged: &'a Merged, format: BlobFormat) -> Self {
        Self {
            tree: &merged.tree,
            fs_version: format.fs_version,
            compressor: format.compressor,
            chunk_size: format.chunk_size,
            blobs: &merged.blobs,
            blob_indexes: &merged.blob_indexes,
            is_of_layer: false,
        }
    }

    /// Writes it to `path`, which is made or overwritten.
    pub(crate) fn write(&self, path: &Path) -> Result<(), NydusError> {
        let version = match self.fs_version {
            FsVersion::V5 => RafsVersion::V5,
            FsVersion::V6 => RafsVersion::V6,
        };
        let mut context = BuildContext::new(
            String::new(),
            version.is_v6(),
            0,
            self.compressor,
            DIGESTER,
            true,
            WhiteoutSpec::None,
            ConversionType::TarToRafs,
            PathBuf::new(),
            // Any other policy reads a list of files from our standard input.
            Prefetch::new(PrefetchPolicy::None)?,
            None,
            None,
            false,
            Features::new(),
            false,
            Attributes::default(),
        );
        context.set_fs_version(version);
        context.set_chunk_size(self.chunk_size.bytes());
        context.set_configuration(Arc::new(ConfigV2::default()));

        let mut blobs = BlobManager::new(DIGESTER, false);
        for blob in self.blobs {
            blobs.add_blob(blob.context());
        }
        let tree = Maker {
            plan: self,
            version,
            builder: TarBuilder::new(true, 0, version),
            // Numbers of nodes that can't share an inode lie above all others.
            next_alone: u64::from(u32::MAX),
            seen: HashSet::new(),
            linked: linked(self.tree),
        }
        .subtree(None, Tree::ROOT)?;
        let mut storage = Some(ArtifactStorage::SingleFile(path.to_owned()));
        let mut writer = BootstrapContext::new(storage.clone(), false)?;
        let mut bootstrap = Bootstrap::new(tree)?;
        bootstrap.build(&mut context, &mut writer)?;
        let table = blobs.to_blob_table(&context)?;
        bootstrap.dump(&mut context, &mut storage, &mut writer, &table)?;
        Ok(())
    }
}

struct Maker<'a> {
    plan: &'a BootstrapPlan<'a>,
    version: RafsVersion,
    builder: TarBuilder,
    next_alone: u64,
    /// Nodes that had a name before.
    seen: HashSet<NodeId>,
    /// Nodes that have more than one.
    linked: HashSet<NodeId>,
}

impl Maker<'_> {
    /// Only the root has no name. As deep as the tree, which is bounded where it is made.
    fn subtree(&mut self, name: Option<&OsString>, id: NodeId) -> Result<NydusTree, NydusError> {
        let mut tree = self.node(name, id)?;
        let node = self.plan.tree.node(id);
        tree.children.reserve(node.children().len());
        for (name, child) in node.children() {
            // In order of names, as nydus has them.
            tree.children.push(self.subtree(Some(name), child)?);
        }
        tree.borrow_mut_node()
            .v5_set_dir_size(self.version, &tree.children);
        Ok(tree)
    }

    fn node(&mut self, name: Option<&OsString>, id: NodeId) -> Result<NydusTree, NydusError> {
        let source = self.plan.tree.node(id);
        let inode = &source.inode;
        // Each node keeps the names it is given, and nydus looks at no other than the last: all those from the root would
        // take memory that grows with the square of the depth.
        let mut path = vec![OsString::from("/")];
        path.extend(name.cloned());
        // The only way to a node of nydus' from outside; everything of it is set below.
        let mut node = self.builder.create_directory(&path)?;
        let mut wrapper = InodeWrapper::new(self.version);
        wrapper.set_mode(inode.mode | file_type(&inode.kind).as_raw_mode());
        wrapper.set_uid(inode.uid);
        wrapper.set_gid(inode.gid);
        wrapper.set_mtime(inode.mtime.cast_unsigned());
        wrapper.set_mtime_nsec(inode.mtime_nsec);
        wrapper.set_nlink(1);
        wrapper.set_name_size(path.last().map_or(0, |name| name.len()));
        wrapper.set_rdev(u32::MAX);
        let mut target = None;
        match &inode.kind {
            Kind::Directory => {}
            Kind::File(content) => {
                wrapper.set_size(content.size);
                wrapper.set_child_count(u32::try_from(content.chunks.len())?);
                let indexes = self.plan.blob_indexes.get(usize::from(source.layer));
                node.chunks = chunks(
                    self.version,
                    &content.chunks,
                    indexes.map_or(&[], |i| i.as_slice()),
                )?;
            }
            Kind::Symlink(to) => {
                wrapper.set_size(to.len() as u64);
                wrapper.set_symlink_size(to.len());
                target = Some(to.clone());
            }
            Kind::CharDevice(number) | Kind::BlockDevice(number) => wrapper.set_rdev(*number),
            Kind::Fifo | Kind::Socket => wrapper.set_rdev(0),
        }
        if let Some(digest) = own_digest(inode) {
            wrapper.set_digest(digest);
        }
        let xattrs = self.xattrs(id)?;
        wrapper.set_has_xattr(!xattrs.is_empty());
        let is_file = matches!(inode.kind, Kind::File(_));
        let number = if self.seen.insert(id) || is_file {
            id as u64 + 1
        } else {
            // RAFS can only share the inode of a regular file; a further name of anything else gets a copy.
            self.next_alone += 1;
            self.next_alone
        };
        wrapper.set_has_hardlink(is_file && self.linked.contains(&id));
        wrapper.set_ino(number);
        node.inode = wrapper;
        let info = Arc::make_mut(&mut node.info);
        info.src_ino = number;
        info.rdev = u64::from(node.inode.rdev());
        info.symlink = target;
        info.xattrs = xattrs;
        node.v5_set_inode_blocks();
        Ok(NydusTree::new(node))
    }

    fn xattrs(&self, id: NodeId) -> Result<RafsXAttrs, NydusError> {
        let node = self.plan.tree.node(id);
        let mut xattrs = RafsXAttrs::new();
        for (name, value) in &node.inode.xattrs {
            xattrs.add(name.clone(), value.clone())?;
        }
        // One of the two, since nydus writes several in any order, and the same layer is to be the same blob.
        if self.plan.is_of_layer && id == Tree::ROOT && self.plan.tree.order_matters() {
            xattrs.add(ORDER_XATTR.into(), b"y".to_vec())?;
        } else if self.plan.is_of_layer && node.implicit {
            xattrs.add(IMPLICIT_XATTR.into(), b"y".to_vec())?;
        }
        Ok(xattrs)
    }
}

fn linked(tree: &Tree) -> HashSet<NodeId> {
    let (mut seen, mut linked) = (HashSet::new(), HashSet::new());
    tree.walk(|_, id| {
        if !seen.insert(id) {
            linked.insert(id);
        }
    });
    linked
}

fn file_type(kind: &Kind) -> FileType {
    match kind {
        Kind::Directory => FileType::Directory,
        Kind::File(_) => FileType::RegularFile,
        Kind::Symlink(_) => FileType::Symlink,
        Kind::CharDevice(_) => FileType::CharacterDevice,
        Kind::BlockDevice(_) => FileType::BlockDevice,
        Kind::Fifo => FileType::Fifo,
        Kind::Socket => FileType::Socket,
    }
}

/// An inode's digest, which only RAFS v5 has; a directory's is made of its children's, by nydus.
fn own_digest(inode: &Inode) -> Option<RafsDigest> {
    let mut hasher = RafsDigest::hasher(DIGESTER);
    match &inode.kind {
        Kind::Directory => return None,
        Kind::File(content) => {
            for chunk in &content.chunks {
                hasher.digest_update(&chunk.id);
            }
        }
        Kind::Symlink(target) => hasher.digest_update(target.as_bytes()),
        Kind::CharDevice(_) | Kind::BlockDevice(_) | Kind::Fifo | Kind::Socket => {}
    }
    Some(hasher.digest_finalize())
}

fn chunks(version: RafsVersion, chunks: &[Chunk], indexes: &[u32]) -> Result<Vec<NodeChunk>, NydusError> {
    let mut file_offset = 0;
    let mut nodes = Vec::with_capacity(chunks.len());
    for chunk in chunks {
        let blob = usize::try_from(chunk.blob)
            .ok()
            .and_then(|blob| indexes.get(blob))
            .ok_or(NoSuchBlob { blob: chunk.blob })?;
        let mut wrapper = ChunkWrapper::new(version);
        wrapper.set_id(RafsDigest { data: chunk.id });
        wrapper.set_chunk_info(
            *blob,
            chunk.index,
            file_offset,
            chunk.uncompressed_offset,
            chunk.uncompressed_size,
            chunk.compressed_offset,
            chunk.compressed_size,
            chunk.is_compressed,
            false,
            false,
        )?;
        wrapper.set_batch(chunk.is_batch);
        file_offset += u64::from(chunk.uncompressed_size);
        nodes.push(NodeChunk {
            source: ChunkSource::Parent,
            inner: Arc::new(wrapper),
        });
    }
    Ok(nodes)
}
