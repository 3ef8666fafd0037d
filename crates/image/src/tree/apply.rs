//! Applying a layer to a tree, as unpacking its archive over the lower layers' files would.
//!
//! By the OCI image specification (layer.md) and, where it is silent, as containerd does: entries act in their
//! order, a later one replaces an earlier; symbolic links on the way to an entry are followed inside the root,
//! and never out of it; a directory that is missing is made, one that is there is kept. Whiteouts hide lower
//! layers' files only.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use super::{Action, Child, Entry, Inode, Kind, Layer, Node, NodeId, Tree};
use crate::layers::EntryProblem;

/// As Linux: more links on one path are taken for a circle.
const MAX_SYMLINKS: u32 = 40;
/// Names of one byte each in the longest path Linux takes.
const MAX_DEPTH: u32 = 2048;
/// What a directory that nobody describes takes in memory beside its path: here, and when the tree is written.
const IMPLIED_BYTES: u64 = 1024;
/// What all of them in an image may take, beside one for each entry. A path of 4 KiB asks for 2000, the target of a link on
/// the way for nearly as many.
pub(super) const IMPLIED_BASE_BYTES: u64 = 128 << 20;

/// Why a layer can't be applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ApplyError {
    /// It has an entry that can't be.
    Entry { path: PathBuf, problem: EntryProblem },
    /// Paths ask for more directories than there is room for.
    TooMuch,
}

impl Tree {
    /// Applies `layer` as the layer of this number, which is higher than that of every one before.
    pub(crate) fn apply(&mut self, layer: &Layer, number: u16) -> Result<(), ApplyError> {
        self.implied_most += layer.entries.len() as u64 * IMPLIED_BYTES;
        for entry in &layer.entries {
            self.apply_entry(entry, number)
                .map_err(|problem| ApplyError::Entry {
                    path: entry.path.clone(),
                    problem,
                })?;
            if self.implied_bytes > self.implied_most {
                return Err(ApplyError::TooMuch);
            }
        }
        Ok(())
    }

    /// What `layer` looks like by itself, whiteouts as files of their names, hard links to what it doesn't have
    /// as marked files. `take` is told what directories take that only a path asks for, and whether there is room.
    pub(crate) fn of_one(layer: &Layer, mut take: impl FnMut(u64) -> bool) -> Result<Self, ApplyError> {
        let mut tree = Self::new();
        for entry in &layer.entries {
            let plain = match &entry.action {
                Action::Put(_) => entry.clone(),
                Action::Whiteout => {
                    let mut name = OsString::from(crate::layers::WHITEOUT_PREFIX);
                    name.push(entry.path.file_name().unwrap_or_default());
                    marker(entry.path.with_file_name(name))
                }
                Action::Opaque => marker(entry.path.join(crate::layers::OPAQUE_WHITEOUT)),
                // What is in a directory that nobody describes was hidden, it may be, below a lower layer's file.
                Action::Link(target) => match tree.find(target, 0) {
                    Some(node) if !tree.nodes[node].implicit => entry.clone(),
                    _ => link_marker(&entry.path, target),
                },
            };
            tree.order_matters |= tree.hides_implied(entry);
            let hides = matches!(entry.action, Action::Whiteout | Action::Opaque);
            let implied = tree.implied_bytes;
            match tree.apply_entry(&plain, 0) {
                Ok(()) => {}
                // Archivers also say what is gone from below a directory that this layer made a file.
                Err(EntryProblem::ThroughFile) if hides => {}
                Err(problem) => {
                    return Err(ApplyError::Entry {
                        path: entry.path.clone(),
                        problem,
                    });
                }
            }
            if tree.implied_bytes > implied && !take(tree.implied_bytes - implied) {
                return Err(ApplyError::TooMuch);
            }
        }
        Ok(tree)
    }

    /// Whether a layer, of which this is the [tree by itself](Self::of_one), did more than can be told of it: something
    /// went through a directory that only a path asked for, and which then was hidden, replaced, described or left by
    /// `..`: where lower layers have a link of that name, it went elsewhere. Or a directory was something else before.
    pub(crate) fn order_matters(&self) -> bool {
        self.order_matters
    }

    /// Whether a layer since then went through a link of another. A layer that was read back has its entries in the order
    /// of their names, and what has two names by that link may be another's for it.
    pub(crate) fn take_followed(&mut self) -> bool {
        std::mem::take(&mut self.followed)
    }

    fn hides_implied(&mut self, entry: &Entry) -> bool {
        let hides = matches!(entry.action, Action::Whiteout | Action::Opaque);
        hides
            && self.implied_bytes > 0
            && self
                .find(&entry.path, 0)
                .is_some_and(|node| self.nodes[node].inode.is_dir())
    }

    fn apply_entry(&mut self, entry: &Entry, layer: u16) -> Result<(), EntryProblem> {
        let Some(name) = entry.path.file_name() else {
            return self.apply_to_root(&entry.action, layer);
        };
        let parent_path = entry.path.parent().unwrap_or(Path::new(""));
        match &entry.action {
            Action::Put(inode) => {
                let parent = self.make_dirs(parent_path, layer)?;
                self.put(parent, name, inode, layer)
            }
            Action::Link(target) => {
                let target = self.find(target, layer).ok_or(EntryProblem::LinkTarget)?;
                if self.nodes[target].inode.is_dir() {
                    return Err(EntryProblem::LinkTarget);
                }
                let parent = self.make_dirs(parent_path, layer)?;
                self.name(parent, name, target, layer);
                Ok(())
            }
            Action::Whiteout => {
                if let Some(parent) = self.resolve(parent_path, layer, false)?
                    && let Some(child) = self.nodes[parent].children.get(name).copied()
                {
                    self.purge(parent, name, child, layer);
                }
                Ok(())
            }
            Action::Opaque => {
                if let Some(dir) = self.resolve(&entry.path, layer, false)? {
                    self.purge_children(dir, layer);
                }
                Ok(())
            }
        }
    }

    fn apply_to_root(&mut self, action: &Action, layer: u16) -> Result<(), EntryProblem> {
        match action {
            Action::Put(inode) if inode.is_dir() => {
                let root = &mut self.nodes[Self::ROOT];
                (root.inode, root.layer, root.implicit) = (Arc::clone(inode), layer, false);
                Ok(())
            }
            Action::Put(_) | Action::Link(_) => Err(EntryProblem::Root),
            Action::Whiteout => Err(EntryProblem::Whiteout),
            Action::Opaque => {
                self.purge_children(Self::ROOT, layer);
                Ok(())
            }
        }
    }

    fn put(
        &mut self,
        parent: NodeId,
        name: &OsStr,
        inode: &Arc<Inode>,
        layer: u16,
    ) -> Result<(), EntryProblem> {
        if inode.is_dir()
            && let Some(there) = self.nodes[parent].children.get(name).copied()
            && self.nodes[there.node].inode.is_dir()
        {
            let node = &mut self.nodes[there.node];
            self.order_matters |= node.implicit;
            (node.inode, node.layer, node.implicit) = (Arc::clone(inode), layer, false);
            self.name(parent, name, there.node, layer);
            return Ok(());
        }
        self.add(parent, name, Arc::clone(inode), layer, false).map(drop)
    }

    /// Gives `name` to a new node, whatever had it before.
    fn add(
        &mut self,
        parent: NodeId,
        name: &OsStr,
        inode: Arc<Inode>,
        layer: u16,
        implicit: bool,
    ) -> Result<NodeId, EntryProblem> {
        let depth = self.nodes[parent].depth + 1;
        if depth > MAX_DEPTH {
            return Err(EntryProblem::TooDeep);
        }
        let name_bytes = u32::try_from(name.len()).unwrap_or(u32::MAX);
        let path_bytes = self.nodes[parent].path_bytes.saturating_add(name_bytes + 1);
        if implicit {
            self.implied_bytes += IMPLIED_BYTES + u64::from(path_bytes);
        }
        let id = self.nodes.len();
        self.nodes.push(Node {
            inode,
            layer,
            implicit,
            children: std::collections::BTreeMap::new(),
            parent,
            depth,
            path_bytes,
            purged: None,
        });
        self.name(parent, name, id, layer);
        Ok(id)
    }

    /// Gives `name` to a node for a layer.
    fn name(&mut self, parent: NodeId, name: &OsStr, node: NodeId, layer: u16) {
        let child = Child { node, layer };
        let before = self.nodes[parent].children.insert(name.to_owned(), child);
        self.order_matters |= before.is_some_and(|before| {
            let was_dir = self.nodes[before.node].inode.is_dir();
            match self.nodes[node].inode.is_dir() {
                // Something of a path that went through it stays elsewhere.
                false => was_dir && self.implied_bytes > 0,
                // What was not a directory in between has hidden what lower layers have in it.
                true => !was_dir,
            }
        });
    }

    /// The node at `path`, links on the way followed, one at its end not.
    fn find(&mut self, path: &Path, layer: u16) -> Option<NodeId> {
        let Some(name) = path.file_name() else {
            return Some(Self::ROOT);
        };
        let parent = path.parent().unwrap_or(Path::new(""));
        let parent = self.resolve(parent, layer, false).ok().flatten()?;
        self.nodes[parent].children.get(name).map(|child| child.node)
    }

    fn make_dirs(&mut self, path: &Path, layer: u16) -> Result<NodeId, EntryProblem> {
        // Where directories are made there is always an answer.
        Ok(self.resolve(path, layer, true)?.unwrap_or(Self::ROOT))
    }

    /// The directory that `path` leads the layer to, all links followed. What is missing is made if it is to `make` it;
    /// else there is none then, nor where something else is in the way.
    fn resolve(&mut self, path: &Path, layer: u16, make: bool) -> Result<Option<NodeId>, EntryProblem> {
        let mut at = Self::ROOT;
        let mut pending: VecDeque<OsString> = steps(path).collect();
        let mut links = 0;
        while let Some(step) = pending.pop_front() {
            if step == ".." {
                self.order_matters |= self.nodes[at].implicit && at != Self::ROOT;
                at = self.nodes[at].parent;
                continue;
            }
            let Some(Child {
                node: child,
                layer: named_by,
            }) = self.nodes[at].children.get(&step).copied()
            else {
                if !make {
                    return Ok(None);
                }
                at = self.add(at, &step, Arc::new(Inode::implicit_directory()), layer, true)?;
                continue;
            };
            match &self.nodes[child].inode.kind {
                Kind::Directory => at = child,
                Kind::Symlink(target) => {
                    self.followed |= named_by != layer;
                    links += 1;
                    if links > MAX_SYMLINKS {
                        return Err(EntryProblem::SymlinkLoop);
                    }
                    let target = Path::new(target);
                    if target.has_root() {
                        at = Self::ROOT;
                    }
                    for step in steps(target).collect::<Vec<_>>().into_iter().rev() {
                        pending.push_front(step);
                    }
                }
                _ if make => return Err(EntryProblem::ThroughFile),
                _ => return Ok(None),
            }
        }
        Ok(Some(at))
    }

    /// Takes away what lower layers have at and below a name; whether anything of this layer remains.
    fn purge(&mut self, parent: NodeId, name: &OsStr, child: Child, layer: u16) -> bool {
        let remains = self.purge_children(child.node, layer);
        if child.layer == layer {
            return true;
        }
        if remains {
            // The lower layers' directory is gone; this one is there for its children.
            let node = &mut self.nodes[child.node];
            (node.inode, node.layer, node.implicit) = (Arc::new(Inode::implicit_directory()), layer, true);
            self.name(parent, name, child.node, layer);
        } else {
            self.nodes[parent].children.remove(name);
        }
        remains
    }

    /// Depth is bounded by [`MAX_DEPTH`], and so is this recursion.
    fn purge_children(&mut self, id: NodeId, layer: u16) -> bool {
        if self.nodes[id].purged.replace(layer) == Some(layer) {
            return !self.nodes[id].children.is_empty();
        }
        let children: Vec<_> = self.nodes[id]
            .children
            .iter()
            .map(|(name, child)| (name.clone(), *child))
            .collect();
        let mut remains = false;
        for (name, child) in children {
            remains |= self.purge(id, &name, child, layer);
        }
        remains
    }
}

fn steps(path: &Path) -> impl Iterator<Item = OsString> {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    })
}

fn marker(path: PathBuf) -> Entry {
    Entry {
        path,
        action: Action::Put(Arc::new(Inode::marker())),
    }
}

fn link_marker(path: &Path, target: &Path) -> Entry {
    use std::os::unix::ffi::OsStrExt;
    let mut inode = Inode::marker();
    inode
        .xattrs
        .insert(super::LINK_XATTR.into(), target.as_os_str().as_bytes().to_vec());
    Entry {
        path: path.to_owned(),
        action: Action::Put(Arc::new(inode)),
    }
}

#[cfg(test)]
#[path = "apply_tests.rs"]
mod tests;
