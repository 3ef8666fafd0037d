//! Tells what is no archive before anything is made of it. Read `layers/tar_stream.rs` for how one is read.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::error::BuildError;
use crate::layers::{decompressed, is_first_block};

/// Whether `path` has a header, or the end of an archive, where the first belongs.
pub(super) fn check(path: &Path) -> Result<(), BuildError> {
    let file = File::open(path).map_err(|source| BuildError::Unreadable {
        path: path.to_owned(),
        source,
    })?;
    let mut block = [0; 512];
    let read = decompressed(file).and_then(|mut archive| archive.read_exact(&mut block));
    if read.is_ok() && is_first_block(&block) {
        Ok(())
    } else {
        Err(BuildError::NotATar {
            path: path.to_owned(),
        })
    }
}
