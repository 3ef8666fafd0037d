#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;
use proptest::prelude::*;

/// A little tree of modules as `depmod` leaves it.
fn tree(dep: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let kernel = dir.path().join("kernel/drivers");
    fs::create_dir_all(&kernel).unwrap();
    for file in ["a.ko", "b-b.ko", "c.ko.xz"] {
        fs::write(kernel.join(file), "no elf").unwrap();
    }
    fs::write(dir.path().join("modules.builtin"), "kernel/fs/built-in.ko\n").unwrap();
    fs::write(dir.path().join("modules.dep"), dep).unwrap();
    dir
}

fn names(modules: &[ModuleFile]) -> Vec<&str> {
    modules.iter().map(|m| m.name.as_str()).collect()
}

#[test]
fn dependencies_come_first_and_builtin_ones_not_at_all() {
    let dir =
        tree("kernel/drivers/a.ko: kernel/drivers/b-b.ko kernel/fs/built-in.ko\nkernel/drivers/b-b.ko:\n");
    let modules = load_order(dir.path(), &["a", "built_in", "b_b"]).unwrap();
    assert_eq!(names(&modules), ["b_b", "a"]);
    assert!(modules[0].path.ends_with("kernel/drivers/b-b.ko"));
}

#[test]
fn what_cannot_be_loaded_is_named() {
    let dir = tree("kernel/drivers/a.ko: kernel/drivers/c.ko.xz\n");
    let error = |wanted: &str| load_order(dir.path(), &[wanted]).unwrap_err();
    assert!(matches!(error("a"), ModuleError::Compressed { module, .. } if module == "c"));
    assert!(matches!(error("nowhere"), ModuleError::Missing { module, .. } if module == "nowhere"));
    // Not in modules.dep, so its own .modinfo is asked, and it has none.
    assert!(matches!(error("b_b"), ModuleError::NotAModule { module, .. } if module == "b_b"));
}

#[test]
fn a_cycle_ends() {
    let dir =
        tree("kernel/drivers/a.ko: kernel/drivers/b-b.ko\nkernel/drivers/b-b.ko: kernel/drivers/a.ko\n");
    assert!(matches!(
        load_order(dir.path(), &["a"]),
        Err(ModuleError::Cycle { .. })
    ));
}

#[test]
fn modinfo_lists_dependencies() {
    assert_eq!(
        parse_modinfo(b"license=GPL\0depends=fuse,virtio-ring\0name=virtiofs\0"),
        ["fuse", "virtio_ring"]
    );
    assert!(parse_modinfo(b"license=GPL\0depends=\0").is_empty());
    assert!(parse_modinfo(b"").is_empty());
}

proptest! {
    /// Any acyclic graph (edges only to smaller numbers): every module once, after all it needs.
    #[test]
    fn every_module_follows_what_it_needs(edges in proptest::collection::vec((1usize..12, 0usize..12), 0..30)) {
        let needs_of = |module: usize| -> Vec<usize> {
            edges.iter().filter(|&&(from, to)| from == module && to < from).map(|&(_, to)| to).collect()
        };
        let ordered = order(&["11", "3"], |module| {
            Ok(Some(needs_of(module.parse().unwrap()).iter().map(ToString::to_string).collect()))
        }).unwrap();
        let place = |module: usize| ordered.iter().position(|m| *m == module.to_string());
        prop_assert!(place(11).is_some() && place(3).is_some());
        for (at, module) in ordered.iter().enumerate() {
            for needed in needs_of(module.parse().unwrap()) {
                prop_assert!(place(needed).unwrap() < at);
            }
        }
        let once: HashSet<&String> = ordered.iter().collect();
        prop_assert_eq!(once.len(), ordered.len());
    }
}
