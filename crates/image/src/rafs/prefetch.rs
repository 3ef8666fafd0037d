//! The prefetch table of a bootstrap: which files a daemon is to fetch before anybody asks, in order.
//!
//! nydus-builder writes one only if it finds the names on the standard input of its process, which is the user's. So
//! the table is put behind a finished bootstrap, and the superblock told of it. Call it inside [`super::with_nydus`].

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nydus_api::ConfigV2;
use nydus_rafs::metadata::RafsSuper;

use super::NydusError;

/// Of EROFS, and of RAFS v6: a bootstrap's length is a multiple of it.
const BLOCK_BYTES: u64 = 4096;
/// Where `RafsV5SuperBlock` has the table's offset, and how many entries it has.
const V5_OFFSET_AT: u64 = 40;
const V5_ENTRIES_AT: u64 = 60;
/// Where `RafsV6SuperBlockExt`, which begins behind EROFS' own, has the table's offset, and its length in bytes.
const V6_OFFSET_AT: u64 = 1024 + 128 + 40;
const V6_BYTES_AT: u64 = 1024 + 128 + 48;

/// Gives the bootstrap at `path`, which has none, a table of `files`, by their paths from `/` on. Names that aren't
/// there are left out.
pub(crate) fn add_table(path: &Path, files: &[PathBuf]) -> Result<(), NydusError> {
    let (rafs, _) = RafsSuper::load_from_file(path, Arc::new(ConfigV2::default()), false)?;
    let numbers = files.iter().filter_map(|file| rafs.ino_from_path(file).ok());
    let numbers: Vec<u32> = numbers.filter_map(|number| u32::try_from(number).ok()).collect();
    if numbers.is_empty() {
        return Ok(());
    }
    let is_v5 = rafs.meta.is_v5();
    // Opened to be read, and mapped.
    drop(rafs);
    append(&File::options().write(true).open(path)?, is_v5, &numbers)?;
    Ok(())
}

fn append(bootstrap: &File, is_v5: bool, numbers: &[u32]) -> io::Result<()> {
    let offset = bootstrap.metadata()?.len().next_multiple_of(BLOCK_BYTES);
    let table: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    let count = |n: usize| u32::try_from(n).map_err(io::Error::other);
    bootstrap.write_all_at(&table, offset)?;
    bootstrap.set_len((offset + table.len() as u64).next_multiple_of(BLOCK_BYTES))?;
    let (offset_at, length_at, length) = if is_v5 {
        (V5_OFFSET_AT, V5_ENTRIES_AT, count(numbers.len())?)
    } else {
        (V6_OFFSET_AT, V6_BYTES_AT, count(table.len())?)
    };
    bootstrap.write_all_at(&offset.to_le_bytes(), offset_at)?;
    bootstrap.write_all_at(&length.to_le_bytes(), length_at)
}
