//! Applying layers is held against a map of paths, which has no inodes to share and nothing to remember.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::super::{Content, LINK_XATTR};
use super::*;

/// What is at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Found {
    is_dir: bool,
    /// Which entry made it; 0 where none did.
    made_by: i64,
}

/// Paths with what is there, and the last layer that named it.
#[derive(Debug, Default)]
struct Model(BTreeMap<PathBuf, (Found, u16)>);

impl Model {
    fn apply(&mut self, entry: &Entry, layer: u16) -> Result<(), EntryProblem> {
        let path = &entry.path;
        let is_dir = |model: &Self, path: &Path| {
            path.as_os_str().is_empty() || model.0.get(path).is_some_and(|(found, _)| found.is_dir)
        };
        match &entry.action {
            Action::Put(inode) => {
                self.make_dirs(path, layer)?;
                if !(inode.is_dir() && is_dir(self, path)) {
                    self.0.retain(|other, _| !other.starts_with(path));
                }
                let found = Found {
                    is_dir: inode.is_dir(),
                    made_by: inode.mtime,
                };
                self.0.insert(path.clone(), (found, layer));
            }
            Action::Link(target) => {
                let (target, _) = self.0.get(target).copied().ok_or(EntryProblem::LinkTarget)?;
                if target.is_dir {
                    return Err(EntryProblem::LinkTarget);
                }
                self.make_dirs(path, layer)?;
                self.0.retain(|other, _| !other.starts_with(path));
                self.0.insert(path.clone(), (target, layer));
            }
            Action::Whiteout => self.hide(layer, |other| other.starts_with(path)),
            Action::Opaque if is_dir(self, path) => {
                self.hide(layer, |other| other.starts_with(path) && other != path);
            }
            Action::Opaque => {}
        }
        Ok(())
    }

    fn make_dirs(&mut self, path: &Path, layer: u16) -> Result<(), EntryProblem> {
        let above: Vec<_> = path.ancestors().skip(1).collect();
        for dir in above.into_iter().rev().filter(|dir| !dir.as_os_str().is_empty()) {
            let implicit = Found {
                is_dir: true,
                made_by: 0,
            };
            let (found, _) = self.0.entry(dir.to_owned()).or_insert((implicit, layer));
            if !found.is_dir {
                return Err(EntryProblem::ThroughFile);
            }
        }
        Ok(())
    }

    /// Lower layers' names go; directories stay for what stays in them.
    fn hide(&mut self, layer: u16, is_hidden: impl Fn(&Path) -> bool) {
        let stays: Vec<_> = self
            .0
            .iter()
            .filter(|(path, (_, by))| !is_hidden(path) || *by == layer)
            .map(|(path, _)| path.clone())
            .collect();
        self.0.retain(|path, (found, by)| {
            if !is_hidden(path) || *by == layer {
                return true;
            }
            let is_needed = stays.iter().any(|other| other.starts_with(path));
            (found.made_by, *by) = (0, layer);
            is_needed
        });
    }
}

/// What is in a tree, but for the root.
fn found_in(tree: &Tree) -> BTreeMap<PathBuf, Found> {
    let mut found = BTreeMap::new();
    tree.walk(|path, id| {
        let inode = &tree.node(id).inode;
        let here = Found {
            is_dir: inode.is_dir(),
            made_by: inode.mtime,
        };
        found.insert(path.strip_prefix("/").unwrap_or(path).to_owned(), here);
    });
    found.remove(Path::new(""));
    found
}

fn path() -> impl Strategy<Value = PathBuf> {
    vec(select(vec!["a", "b"]), 1..4).prop_map(|names| names.into_iter().collect())
}

fn action() -> impl Strategy<Value = Action> {
    let put = |kind: Kind| {
        Action::Put(Arc::new(Inode {
            kind,
            ..Inode::marker()
        }))
    };
    prop_oneof![
        3 => Just(put(Kind::File(Content::default()))),
        3 => Just(put(Kind::Directory)),
        3 => path().prop_map(Action::Link),
        2 => Just(Action::Whiteout),
        2 => Just(Action::Opaque),
    ]
}

fn layers() -> impl Strategy<Value = Vec<Vec<Entry>>> {
    let entry = (path(), action()).prop_map(|(path, action)| Entry { path, action });
    vec(vec(entry, 0..8), 1..4)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn layers_are_applied_as_to_a_map_of_paths(layers in layers()) {
        let (mut tree, mut model) = (Tree::new(), Model::default());
        let mut made_by = 0;
        for (layer, entries) in (0..).zip(layers) {
            for mut entry in entries {
                if let Action::Put(inode) = &mut entry.action {
                    made_by += 1;
                    Arc::make_mut(inode).mtime = made_by;
                }
                // What can't be applied ends the conversion; here nothing comes of it.
                let before = tree.clone();
                match tree.apply_entry(&entry, layer) {
                    Ok(()) => prop_assert_eq!(model.apply(&entry, layer), Ok(())),
                    Err(problem) => {
                        let kept = Model(model.0.clone());
                        prop_assert_eq!(model.apply(&entry, layer), Err(problem));
                        (tree, model) = (before, kept);
                    }
                }
                let expected: BTreeMap<_, _> =
                    model.0.iter().map(|(path, (found, _))| (path.clone(), *found)).collect();
                prop_assert_eq!(found_in(&tree), expected, "after {:?} of layer {}", entry, layer);
            }
        }
    }
}

#[test]
fn directories_that_only_a_link_asks_for_are_bounded() {
    let apply = |links: usize| {
        let put = |path: String, kind| Entry {
            path: path.into(),
            action: Action::Put(Arc::new(Inode {
                kind,
                ..Inode::marker()
            })),
        };
        let steps: String = (100..900).map(|name| format!("{name}/../")).collect();
        let link = |at| put(format!("{at}"), Kind::Symlink(format!("in-{at}/{steps}").into()));
        let through = |at| put(format!("{at}/x"), Kind::Fifo);
        let mut tree = Tree::new();
        tree.apply(
            &Layer {
                entries: (0..links).map(link).collect(),
            },
            0,
        )?;
        tree.apply(
            &Layer {
                entries: (0..links).map(through).collect(),
            },
            1,
        )
    };
    assert_eq!(apply(10), Ok(()));
    assert_eq!(apply(200), Err(ApplyError::TooMuch));
}

#[test]
fn a_hard_link_is_to_a_lower_file_below_whose_name_something_is_hidden() {
    let entry = |path: &str, action| Entry {
        path: path.into(),
        action,
    };
    let lower = Layer {
        entries: vec![entry("file", Action::Put(Arc::new(Inode::marker())))],
    };
    let upper = Layer {
        entries: vec![
            entry("file/hidden", Action::Whiteout),
            entry("link", Action::Link("file".into())),
        ],
    };
    let alone = Tree::of_one(&upper, |_| true).unwrap();
    let mut marked = false;
    alone.walk(|path, id| {
        marked |=
            path == Path::new("/link") && alone.node(id).inode.xattrs.contains_key(OsStr::new(LINK_XATTR));
    });
    assert!(marked);
    let mut tree = Tree::new();
    assert_eq!(tree.apply(&lower, 0), Ok(()));
    assert_eq!(tree.apply(&upper, 1), Ok(()));
    assert_eq!(tree.find(Path::new("link"), 1), tree.find(Path::new("file"), 1));
}
