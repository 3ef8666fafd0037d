//! The scan of a directory tree. Symbolic links aren't followed, except the root itself.
//!
//! Never opens a regular file: whether it could be is asked of the kernel, so that a file without read
//! permission is named now and not after half the data was compressed. Read `scan.rs` for the result.

use std::fs;
use std::io;
use std::path::Path;

use rustix::fs::{Access, AtFlags, CWD};

use super::Totals;
use crate::error::BuildError;
use crate::progress::Progress;

pub(super) fn scan(root: &Path, progress: &dyn Progress) -> Result<Totals, BuildError> {
    let mut totals = Totals::default();
    totals.add(0, progress)?;
    // A stack of our own: the depth of a directory tree is the source's choice, not our thread's.
    let mut pending = vec![root.to_owned()];
    while let Some(dir) = pending.pop() {
        let unreadable = |source| unreadable(&dir, source);
        for entry in fs::read_dir(&dir).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            let path = entry.path();
            // `DirEntry::metadata` doesn't follow symbolic links.
            let meta = entry
                .metadata()
                .map_err(|source| self::unreadable(&path, source))?;
            let mut bytes = 0;
            if meta.is_dir() {
                pending.push(path);
            } else if meta.is_file() {
                rustix::fs::accessat(CWD, &path, Access::READ_OK, AtFlags::EACCESS)
                    .map_err(|errno| self::unreadable(&path, errno.into()))?;
                bytes = meta.len();
            }
            totals.add(bytes, progress)?;
        }
    }
    Ok(totals)
}

fn unreadable(path: &Path, source: io::Error) -> BuildError {
    BuildError::Unreadable {
        path: path.to_owned(),
        source,
    }
}
