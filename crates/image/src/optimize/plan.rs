//! Which chunks a start-up needs, in which order. Pure.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use crate::rafs::load::Loaded;
use crate::trace::{StartupTrace, TraceRead};
use crate::tree::{Action, Chunk, Content, Entry, Kind};

/// A chunk by its blob and its number there.
pub(super) type ChunkKey = (u32, u32);

pub(super) fn key(chunk: &Chunk) -> ChunkKey {
    (chunk.blob, chunk.index)
}

/// What comes first.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// In order, each once.
    pub(super) chunks: Vec<ChunkKey>,
    /// Files all of whose chunks are among them, from `/` on, in the order in which they were read.
    pub(super) files: Vec<PathBuf>,
    /// Files of the trace that the image hasn't, or that have no content, each once.
    pub(super) missing: Vec<PathBuf>,
}

impl Plan {
    /// What of an image comes first if its start-up is to find it there. Chunks that are not `movable` stay.
    pub(super) fn new(image: &Loaded, trace: &StartupTrace, movable: impl Fn(&Chunk) -> bool) -> Self {
        let entries: HashMap<&Path, &Entry> = image
            .entries
            .iter()
            .map(|entry| (entry.path.as_path(), entry))
            .collect();
        let mut plan = Self::default();
        let (mut known, mut missing, mut read) = (HashSet::new(), HashSet::new(), Vec::new());
        let mut seen = HashSet::new();
        for part in &trace.reads {
            let Some((name, content)) = find(&entries, &part.path) else {
                if missing.insert(&part.path) {
                    plan.missing.push(part.path.clone());
                }
                continue;
            };
            for chunk in touched(content, part) {
                if movable(chunk) && known.insert(key(chunk)) {
                    plan.chunks.push(key(chunk));
                }
            }
            if seen.insert(name) {
                read.push((name, content));
            }
        }
        let whole = |content: &Content| content.chunks.iter().all(|chunk| known.contains(&key(chunk)));
        let files = read.into_iter().filter(|(_, content)| whole(content));
        plan.files = files.map(|(name, _)| Path::new("/").join(name)).collect();
        plan
    }
}

/// A file's first name, and its content if it has any.
fn find<'a>(entries: &HashMap<&'a Path, &'a Entry>, path: &Path) -> Option<(&'a Path, &'a Content)> {
    let path = path.strip_prefix("/").unwrap_or(path);
    let mut entry = entries.get(path)?;
    if let Action::Link(first) = &entry.action {
        entry = entries.get(first.as_path())?;
    }
    match &entry.action {
        Action::Put(inode) => match &inode.kind {
            Kind::File(content) if !content.chunks.is_empty() => Some((&entry.path, content)),
            _ => None,
        },
        Action::Link(_) | Action::Whiteout | Action::Opaque => None,
    }
}

/// The chunks that a part of a file is in.
fn touched<'a>(content: &'a Content, part: &TraceRead) -> impl Iterator<Item = &'a Chunk> {
    let end = part
        .length
        .map_or(u64::MAX, |length| part.offset.saturating_add(length));
    let start = part.offset;
    let mut at = 0_u64;
    content.chunks.iter().filter(move |chunk| {
        let from = at;
        at = at.saturating_add(u64::from(chunk.uncompressed_size));
        from < end && start < at
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::config::{ChunkSize, FsVersion};
    use crate::tree::Inode;

    fn chunk(blob: u32, index: u32) -> Chunk {
        Chunk {
            blob,
            index,
            id: [0; 32],
            compressed_offset: 0,
            compressed_size: 5,
            uncompressed_offset: 0,
            uncompressed_size: 10,
            is_compressed: true,
            is_batch: false,
        }
    }

    fn file(path: &str, chunks: &[ChunkKey]) -> Entry {
        let content = Content {
            size: 10 * chunks.len() as u64,
            chunks: chunks.iter().map(|(blob, index)| chunk(*blob, *index)).collect(),
        };
        let inode = Inode {
            kind: Kind::File(content),
            ..Inode::marker()
        };
        Entry {
            path: path.into(),
            action: Action::Put(Arc::new(inode)),
        }
    }

    fn image() -> Loaded {
        let directory = Entry {
            path: "d".into(),
            action: Action::Put(Arc::new(Inode::implicit_directory())),
        };
        let link = Entry {
            path: "d/link".into(),
            action: Action::Link("c".into()),
        };
        Loaded {
            fs_version: FsVersion::V6,
            chunk_size: ChunkSize::default(),
            blobs: Vec::new(),
            entries: vec![
                directory,
                file("a", &[(0, 0), (0, 1), (0, 2)]),
                file("b", &[(0, 2), (1, 0)]),
                file("c", &[(1, 7)]),
                file("empty", &[]),
                link,
            ],
        }
    }

    fn trace(parts: &[(&str, u64, Option<u64>)]) -> StartupTrace {
        let reads = parts.iter().map(|(path, offset, length)| TraceRead {
            path: path.into(),
            offset: *offset,
            length: *length,
            ms: None,
        });
        StartupTrace {
            reads: reads.collect(),
            ..StartupTrace::default()
        }
    }

    #[test]
    fn chunks_come_in_the_order_in_which_they_are_read_and_once() {
        let plan = Plan::new(
            &image(),
            &trace(&[
                ("/d/link", 0, Some(1)),
                ("/a", 19, Some(1)),
                ("/b", 0, None),
                ("/a", 15, Some(6)),
                ("/nowhere", 0, None),
                ("/d", 0, None),
                ("/empty", 0, None),
                ("/nowhere", 5, None),
                ("/a", 30, None),
            ]),
            |_| true,
        );
        assert_eq!(plan.chunks, [(1, 7), (0, 1), (0, 2), (1, 0)]);
        assert_eq!(
            plan.files,
            ["/c", "/b"].map(PathBuf::from),
            "all of a was not read"
        );
        assert_eq!(plan.missing, ["/nowhere", "/d", "/empty"].map(PathBuf::from));
    }

    #[test]
    fn what_cannot_be_moved_stays_and_its_file_is_not_named() {
        let plan = Plan::new(&image(), &trace(&[("/b", 0, None), ("/c", 0, None)]), |chunk| {
            chunk.blob == 1
        });
        assert_eq!(plan.chunks, [(1, 0), (1, 7)]);
        assert_eq!(plan.files, [PathBuf::from("/c")]);
    }
}
