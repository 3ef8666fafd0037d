//! Which files of the store nothing needs.
//!
//! Pure: from what there is to what goes. Who asks is `remove.rs`.

use std::collections::{BTreeMap, BTreeSet};

/// What is in the store, once the references that are to go are gone.
#[derive(Debug, Clone, Default)]
pub(super) struct Inventory {
    /// Blobs by name.
    pub(super) blobs: BTreeSet<String>,
    /// Bootstraps, by their image.
    pub(super) bootstraps: BTreeSet<String>,
    /// Images that a reference names or somebody uses, each with its blobs. `None` for one whose manifest can't be
    /// read.
    pub(super) needed: BTreeMap<String, Option<BTreeSet<String>>>,
}

/// What goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Removal {
    pub(super) blobs: Vec<String>,
    pub(super) bootstraps: Vec<String>,
}

/// What nothing needs. If it isn't known what an image needs, every blob may be one of its, and stays.
pub(super) fn plan(inventory: &Inventory) -> Removal {
    let unneeded = |bootstrap: &&String| !inventory.needed.contains_key(*bootstrap);
    let bootstraps = inventory.bootstraps.iter().filter(unneeded).cloned().collect();
    let mut blobs = inventory.blobs.clone();
    for needs in inventory.needed.values() {
        match needs {
            Some(needs) => blobs.retain(|blob| !needs.contains(blob)),
            None => blobs.clear(),
        }
    }
    Removal {
        blobs: blobs.into_iter().collect(),
        bootstraps,
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::{btree_map, btree_set};
    use proptest::option;
    use proptest::prelude::*;

    use super::*;

    fn inventory() -> impl Strategy<Value = Inventory> {
        let name = || (0_u8..12).prop_map(|number| number.to_string());
        let needs = option::weighted(0.9, btree_set(name(), 0..6));
        (
            btree_set(name(), 0..12),
            btree_set(name(), 0..12),
            btree_map(name(), needs, 0..5),
        )
            .prop_map(|(blobs, bootstraps, needed)| Inventory {
                blobs,
                bootstraps,
                needed,
            })
    }

    proptest! {
        /// Blob by blob and image by image, each asked whether anybody may need it.
        #[test]
        fn what_goes_is_exactly_what_nobody_may_need(inventory in inventory()) {
            let removal = plan(&inventory);
            for blob in &inventory.blobs {
                let needed = inventory
                    .needed
                    .values()
                    .any(|needs| needs.as_ref().is_none_or(|needs| needs.contains(blob)));
                prop_assert_eq!(removal.blobs.contains(blob), !needed, "{}", blob);
            }
            for bootstrap in &inventory.bootstraps {
                let needed = inventory.needed.keys().any(|image| image == bootstrap);
                prop_assert_eq!(removal.bootstraps.contains(bootstrap), !needed, "{}", bootstrap);
            }
            prop_assert!(removal.blobs.iter().all(|blob| inventory.blobs.contains(blob)));
            prop_assert!(removal.bootstraps.iter().all(|one| inventory.bootstraps.contains(one)));
        }
    }
}
