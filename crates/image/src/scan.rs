//! The look through a source before it is built: how much there is, and what can't work, found early.
//!
//! Never writes, and never reads the content of files in a directory. What is wrong inside an archive is found when
//! it is read, which is once. Directories are in `scan/directory.rs`; who uses the result is `build.rs`.

mod directory;
mod tar_archive;

use std::fs;
use std::path::PathBuf;

use crate::config::{BuildConfig, Source};
use crate::error::BuildError;
use crate::progress::Progress;

/// What a source amounts to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    /// Files, directories and everything else of a directory, the root included; or archives.
    pub(crate) entries: u64,
    /// Bytes that will be read: file content for a directory, the file for an archive.
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
        Source::Tar(path) => tar_archive::check(path).and_then(|()| sizes(std::slice::from_ref(path))),
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
