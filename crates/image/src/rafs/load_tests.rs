//! A layer that is read back from its own bootstrap does to lower layers what it did before.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use proptest::collection::btree_map;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::config::RafsFormat;
use crate::rafs::bootstrap::BootstrapPlan;
use crate::tree::Tree;

/// What one may be told from another by, at each path.
type Found = BTreeMap<PathBuf, (Kind, u32, bool)>;

fn found_in(tree: &Tree) -> Found {
    let mut found = BTreeMap::new();
    tree.walk(|path, id| {
        let node = tree.node(id);
        let here = (node.inode.kind.clone(), node.inode.uid, node.implicit);
        found.insert(path.to_owned(), here);
    });
    found
}

/// The layer as its own bootstrap has it; none if it isn't one that would be used again.
fn read_back(layer: &Layer) -> Option<Layer> {
    let format = BlobFormat::from(RafsFormat::default());
    let tree = Tree::of_one(layer, |_| true).ok()?;
    let plan = BootstrapPlan {
        tree: &tree,
        fs_version: format.fs_version,
        compressor: format.compressor,
        chunk_size: format.chunk_size,
        blobs: &[],
        blob_indexes: &[vec![0]],
        is_of_layer: true,
    };
    let file = tempfile::NamedTempFile::new().unwrap();
    plan.write(file.path()).unwrap();
    let loaded = load(file.path()).unwrap();
    (!loaded.is_ambiguous()).then(|| loaded.into_layer())
}

/// A layer as archivers write it: a directory before what is in it, name by name. What is hidden comes in its place or
/// in front.
fn layer(uid: u32) -> impl Strategy<Value = Layer> {
    let name = || select(vec!["a", "b", "+"]);
    let path = prop::collection::vec(name(), 1..4).prop_map(|names| names.into_iter().collect::<PathBuf>());
    let put = move |kind| {
        Action::Put(Arc::new(Inode {
            kind,
            uid,
            ..Inode::marker()
        }))
    };
    let target = prop_oneof![
        name().prop_map(str::to_owned),
        name().prop_map(|name| format!("/{name}"))
    ];
    let actions = prop_oneof![
        2 => Just(vec![put(Kind::File(Content::default()))]),
        4 => Just(vec![put(Kind::Directory)]),
        2 => Just(vec![put(Kind::Directory), Action::Opaque]),
        2 => target.prop_map(move |target| vec![put(Kind::Symlink(target.into()))]),
        2 => Just(vec![Action::Whiteout]),
        1 => Just(vec![Action::Whiteout, put(Kind::Directory)]),
        1 => Just(vec![Action::Opaque]),
    ];
    (btree_map(path, actions, 0..8), any::<bool>()).prop_map(|(all, hides_first)| {
        let is_dir = |path: &Path| {
            all.get(path)
                .is_none_or(|actions| match &actions[actions.len() - 1] {
                    Action::Put(inode) => inode.is_dir(),
                    Action::Opaque => true,
                    Action::Link(_) | Action::Whiteout => false,
                })
        };
        let kept = all
            .iter()
            .filter(|(path, _)| path.ancestors().skip(1).all(is_dir));
        let mut entries: Vec<_> = kept
            .flat_map(|(path, actions)| {
                actions.iter().map(|action| Entry {
                    path: path.clone(),
                    action: action.clone(),
                })
            })
            .collect();
        if hides_first {
            entries.sort_by_key(|entry| !matches!(entry.action, Action::Whiteout));
        }
        Layer { entries }
    })
}

/// A layer as nobody writes it but who means harm: anything in any order.
fn disorder(uid: u32) -> impl Strategy<Value = Layer> {
    let name = || select(vec!["a", "b", "+"]);
    let path =
        || prop::collection::vec(name(), 1..4).prop_map(|names| names.into_iter().collect::<PathBuf>());
    let put = move |kind| {
        Action::Put(Arc::new(Inode {
            kind,
            uid,
            ..Inode::marker()
        }))
    };
    let targets = select(vec!["a", "/b", "+", "../a", "a/b", "+/../b", "b/+/../a"]);
    let action = prop_oneof![
        3 => Just(put(Kind::File(Content::default()))),
        3 => Just(put(Kind::Directory)),
        3 => targets.prop_map(move |target| put(Kind::Symlink(target.into()))),
        1 => path().prop_map(Action::Link),
        2 => Just(Action::Whiteout),
        1 => Just(Action::Opaque),
    ];
    let entry = (path(), action).prop_map(|(path, action)| Entry { path, action });
    prop::collection::vec(entry, 0..7).prop_map(|entries| Layer { entries })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn a_layer_that_is_read_back_does_what_it_did(lower in layer(1), upper in layer(2)) {
        let mut below = Tree::new();
        prop_assume!(below.apply(&lower, 0).is_ok());
        let mut before = below.clone();
        prop_assume!(before.apply(&upper, 1).is_ok());
        if let Some(again) = read_back(&upper) {
            let mut after = below;
            prop_assert!(after.apply(&again, 1).is_ok(), "{:?}", again);
            prop_assert_eq!(found_in(&before), found_in(&after), "{:?}", again);
        }
    }
}

proptest! {
    // Half of what comes in any order can't be applied.
    #![proptest_config(ProptestConfig { max_global_rejects: 10_000, ..ProptestConfig::with_cases(1000) })]

    #[test]
    fn a_layer_that_would_do_otherwise_is_known(lower in disorder(1), upper in disorder(2)) {
        let mut below = Tree::new();
        prop_assume!(below.apply(&lower, 0).is_ok());
        below.take_followed();
        let mut before = below.clone();
        prop_assume!(before.apply(&upper, 1).is_ok());
        if let Some(again) = read_back(&upper) {
            let mut after = below;
            if after.apply(&again, 1).is_ok() && !after.take_followed() {
                prop_assert_eq!(found_in(&before), found_in(&after), "{:?}", again);
            }
        }
    }
}
