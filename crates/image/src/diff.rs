//! How two images in nydus' form differ, by their bootstraps: no blob is read.
//!
//! Contents are the same if their chunks have the same digests; images of other chunk sizes or digests can't be
//! compared so, and are told to differ in every file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::nydus_image::NydusImage;
use crate::shown_path;
use crate::tree::{Action, Inode, Kind};

/// A path at which two images differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Difference {
    /// The path in the image.
    #[serde(serialize_with = "shown_path::one")]
    pub path: PathBuf,
    /// In what way.
    pub change: Change,
    /// What is changed, for [`Change::Changed`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub aspects: Vec<Aspect>,
}

/// In what way images differ at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Only the second has it.
    Added,
    /// Only the first has it.
    Removed,
    /// Both have something else.
    Changed,
}

/// What is changed about a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Aspect {
    /// Its type.
    Type,
    /// Permissions.
    Mode,
    /// User or group.
    Owner,
    /// Modification time.
    Time,
    /// Extended attributes.
    Xattrs,
    /// Content, target of a symbolic link, or device number.
    Content,
}

impl NydusImage {
    /// Where `other` differs from this, in the order of paths.
    #[must_use]
    pub fn diff(&self, other: &Self) -> Vec<Difference> {
        let (left, right) = (self.by_path(), other.by_path());
        let mut differences = Vec::new();
        for (path, inode) in &left {
            let found = |change, aspects| Difference {
                path: Path::new("/").join(path),
                change,
                aspects,
            };
            match right.get(path) {
                None => differences.push(found(Change::Removed, Vec::new())),
                Some(now) => {
                    let aspects = aspects(inode, now);
                    if !aspects.is_empty() {
                        differences.push(found(Change::Changed, aspects));
                    }
                }
            }
        }
        let added = right.keys().filter(|path| !left.contains_key(*path));
        differences.extend(added.map(|path| Difference {
            path: Path::new("/").join(path),
            change: Change::Added,
            aspects: Vec::new(),
        }));
        differences.sort_by(|left, right| left.path.cmp(&right.path));
        differences
    }

    /// Every name with its inode.
    fn by_path(&self) -> BTreeMap<&Path, &Inode> {
        let mut all: BTreeMap<&Path, &Inode> = BTreeMap::new();
        for entry in &self.loaded.entries {
            let inode = match &entry.action {
                Action::Put(inode) => Some(&**inode),
                // A first name is met before its further ones.
                Action::Link(first) => all.get(&**first).copied(),
                Action::Whiteout | Action::Opaque => None,
            };
            if let Some(inode) = inode {
                all.insert(&entry.path, inode);
            }
        }
        all
    }
}

fn aspects(left: &Inode, right: &Inode) -> Vec<Aspect> {
    let same_type = std::mem::discriminant(&left.kind) == std::mem::discriminant(&right.kind);
    let same_content = match (&left.kind, &right.kind) {
        (Kind::File(left), Kind::File(right)) => {
            let ids = |content: &crate::tree::Content| -> Vec<_> {
                content.chunks.iter().map(|chunk| chunk.id).collect()
            };
            left.size == right.size && ids(left) == ids(right)
        }
        (left, right) => left == right,
    };
    let changed = [
        (Aspect::Type, !same_type),
        (Aspect::Mode, left.mode != right.mode),
        (Aspect::Owner, (left.uid, left.gid) != (right.uid, right.gid)),
        (
            Aspect::Time,
            (left.mtime, left.mtime_nsec) != (right.mtime, right.mtime_nsec),
        ),
        (Aspect::Xattrs, left.xattrs != right.xattrs),
        (Aspect::Content, same_type && !same_content),
    ];
    changed
        .into_iter()
        .filter_map(|(aspect, is_changed)| is_changed.then_some(aspect))
        .collect()
}
