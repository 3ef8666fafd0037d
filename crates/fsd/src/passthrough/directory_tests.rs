//! Directories whose entries are many.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use fuse_backend_rs::api::filesystem::DirEntry;

use super::tests::Shared;

#[test]
fn entries_of_a_directory_are_kept_within_the_budget_and_listed_once_beyond_it() {
    let shared = Shared::new();
    for n in 0..1000 {
        shared.file(&format!("file-{n}"), "");
    }
    let (root, handle) = (shared.root(), shared.share.opendir(shared.root()).unwrap());
    // Three names for each request, as a guest with little room has it; how much is kept after the first of them.
    let list = || {
        let (mut names, mut offset, mut kept) = (Vec::new(), 0, None);
        loop {
            let (mut room, at) = (3, offset);
            let mut add = |entry: DirEntry<'_>| {
                if room == 0 {
                    return Ok(0);
                }
                room -= 1;
                offset = entry.offset;
                names.push(entry.name.to_vec());
                Ok(1)
            };
            shared.share.readdir(root, handle, at, &mut add).unwrap();
            let file = shared.share.files.get(handle, root).unwrap();
            let now = file.listing.as_ref().unwrap().lock().unwrap().kept();
            if room == 3 {
                names.sort();
                return (names, kept.unwrap_or_default(), now);
            }
            kept = kept.or(Some(now));
        }
    };
    let (names, kept, at_the_end) = list();
    assert!(names.len() == 1002 && kept > 0 && at_the_end == 0);
    let taken: Vec<_> = std::iter::from_fn(|| shared.share.common.budget.listing()).collect();
    assert_eq!(list(), (names.clone(), 0, 0));
    drop(taken);
    assert_eq!(list(), (names, kept, 0));
}
