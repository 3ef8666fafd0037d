//! Images built of generated trees, read back three ways: with nydus-rafs, with this crate, and with the
//! genuine nydus-image.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod archives;
mod cache;
mod convert;
mod layers;
mod layout;
mod look;
mod nydusd;
mod oci;
mod optimize;
mod peers;
mod progress;
mod reference;
mod refusals;
mod round_trip;
mod sources;
mod store;
mod store_reference;
mod tree;
mod walk;

use std::path::Path;

use tempfile::TempDir;

/// A directory on the disk of the build, where extended attributes and sparse files work (a tmpfs at /tmp
/// may have neither).
fn temp_dir() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// Everything in `dir`, sorted.
fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = dir
        .read_dir()
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}
