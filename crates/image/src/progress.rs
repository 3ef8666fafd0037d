//! How a build says how far it is, and asks whether it should go on.
//!
//! Owns no output: drawing is the caller's. Read `build.rs` for who calls it.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// What a build is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Phase {
    /// Waiting for another process that fetches or converts the same image, or removes images. No positions.
    Wait,
    /// Looking through the source. Position: entries found so far. The total isn't known.
    Scan,
    /// Reading, compressing and writing the data. Position and total: bytes of the source's content.
    Data,
    /// Writing blobs that are not written yet, or sending them. Position and total: bytes of all blobs, those that
    /// need not be written among them.
    Send,
    /// Writing the metadata out, reading it back, putting the image in its place. No positions.
    Finish,
}

/// What is worth telling, and no reason to stop.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Note {
    /// Files in the source have extended attributes that no file system of Linux has; they are left out.
    XattrsLeftOut {
        /// The first such attribute.
        name: OsString,
        /// The file that has it.
        file: PathBuf,
        /// How many files there are with such attributes.
        files: u64,
    },
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::XattrsLeftOut { name, file, files } = self;
        match files {
            0 | 1 => write!(f, "the extended attribute {name:?} of {file:?} is left out")?,
            files => write!(
                f,
                "extended attributes of {files} files are left out, as {name:?} of {file:?}"
            )?,
        }
        f.write_str(": Linux has no such name space")
    }
}

/// Receives the progress of a build, and may stop it.
///
/// Called from the thread that called [`build`](crate::build()), while data passes every [`Self::interval`] at most.
pub trait Progress {
    /// How long at least between two reports, and two looks at whether to stop, while data passes.
    fn interval(&self) -> Duration {
        Duration::from_millis(100)
    }

    /// A phase begins; `total` is where [`Self::position`] will end, when that is known.
    fn begin(&self, phase: Phase, total: Option<u64>);

    /// How far the current phase is, in its own unit; never decreases within a phase.
    fn position(&self, position: u64);

    /// There is something to tell.
    fn note(&self, note: &Note) {
        tracing::warn!(%note);
    }

    /// Asked every [`Self::interval`], and once before a phase is called done: whether to give up. The build then ends with
    /// [`BuildError::Cancelled`](crate::BuildError::Cancelled) and leaves nothing behind.
    fn is_cancelled(&self) -> bool {
        false
    }
}

/// A [`Progress`] that says nothing and never stops the build.
#[derive(Debug, Clone, Copy, Default)]
pub struct Quiet;

impl Progress for Quiet {
    fn begin(&self, _phase: Phase, _total: Option<u64>) {}

    fn position(&self, _position: u64) {}
}
