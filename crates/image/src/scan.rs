//! The look through a source before it is built: how much there is, and what can't work, found early.
//!
//! Never writes, and never reads the content of files in a directory. The two kinds of source are in
//! `scan/directory.rs` and `scan/tar_archive.rs`; who uses the result is `build.rs`.

mod directory;
mod tar_archive;

pub(crate) use tar_archive::open_stream;

use std::fs;
use std::path::PathBuf;

use crate::config::{BuildConfig, Source};
use crate::error::BuildError;
use crate::progress::Progress;

/// What a source amounts to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    /// Entries: files, directories and everything else, the root included for a directory.
    pub(crate) entries: u64,
    /// Bytes the builder will read: file content for a directory, the uncompressed stream for an archive.
    pub(crate) bytes: u64,
}

/// How many entries go by between two reports (and two looks at whether to stop).
const REPORT_EVERY: u64 = 256;

impl Totals {
    /// Counts one entry of `bytes`, reporting now and then.
    fn add(&mut self, bytes: u64, progress: &dyn Progress) -> Result<(), BuildError> {
        self.entries += 1;
        self.bytes += bytes;
        if self.entries.is_multiple_of(REPORT_EVERY) {
            progress.position(self.entries);
            if progress.is_cancelled() {
                return Err(BuildError::Cancelled);
            }
        }
        Ok(())
    }
}

/// Looks through the source of `config`.
pub(crate) fn scan(config: &BuildConfig, progress: &dyn Progress) -> Result<Totals, BuildError> {
    let totals = match &config.source {
        Source::Directory(path) => directory::scan(path, progress),
        Source::Tar(path) => tar_archive::scan(path, config.format.fs_version, progress),
        Source::Layers(paths) => sizes(paths),
    }?;
    progress.position(totals.entries);
    Ok(totals)
}

/// Layers are looked through while they are converted: what is known before is how much there is to read.
fn sizes(paths: &[PathBuf]) -> Result<Totals, BuildError> {
    let mut totals = Totals::default();
    for path in paths {
        let Source::Tar(_) = Source::detect(path)? else {
            return Err(BuildError::SourceUnsupported { path: path.clone() });
        };
        let meta = fs::metadata(path).map_err(|source| BuildError::Unreadable {
            path: path.clone(),
            source,
        })?;
        totals.entries += 1;
        totals.bytes += meta.len();
    }
    Ok(totals)
}
