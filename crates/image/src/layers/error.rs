//! Why a layer can't be converted. Messages are fragments; who reports them names the layer.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// What is wrong with a tar archive itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TarProblem {
    /// No header where one belongs.
    #[error("a header has a wrong checksum, or there is none")]
    Checksum,
    /// A number that is none, or doesn't fit.
    #[error("a header has a malformed number")]
    Number,
    /// A record of an extended header that isn't of the length it says.
    #[error("an extended header has a malformed record")]
    PaxRecord,
    /// Extended headers and long names of one entry that are of more than 1 MiB.
    #[error("an entry has extended headers of more than 1 MiB")]
    ExtensionTooLong,
    /// A map of a sparse file that doesn't fit its data, or of an unknown version.
    #[error("a sparse file has a map that does not fit its data")]
    Sparse,
}

/// What is wrong with an entry of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum EntryProblem {
    /// Its path, or its link's, climbs out with `..`.
    #[error("its path contains \"..\"")]
    ParentComponent,
    /// A name of its path is longer than Linux allows.
    #[error("a name in its path is longer than 255 bytes")]
    NameTooLong,
    /// Its path or the target of its symbolic link is longer than Linux allows.
    #[error("its path or link target is longer than 4095 bytes")]
    PathTooLong,
    /// A NUL in its path or link.
    #[error("its path or link target contains a NUL")]
    Nul,
    /// A whiteout of nothing, or of `.` and `..`.
    #[error("it is a whiteout that names no file")]
    Whiteout,
    /// A type that isn't a file, directory, link, device or FIFO.
    #[error("entry type {:?} is not supported", char::from(*type_flag))]
    Type {
        /// The type flag of its header.
        type_flag: u8,
    },
    /// An owner that isn't a number of 32 bits.
    #[error("its owner is out of range")]
    Owner,
    /// A device number Linux doesn't have.
    #[error("its device number is out of range")]
    Device,
    /// A symbolic link to nowhere.
    #[error("it is a symbolic link without a target")]
    NoTarget,
    /// An extended attribute that RAFS has no place for.
    #[error("an extended attribute is too long, or has no name in its name space")]
    Xattr,
    /// A file of more chunks than RAFS can number.
    #[error("it is too large")]
    TooLarge,
    /// A hard link to something that isn't there, or to a directory.
    #[error("its hard link target is not there, or is a directory")]
    LinkTarget,
    /// A path through something that is no directory.
    #[error("its path leads through a file")]
    ThroughFile,
    /// A path through symbolic links that lead in a circle.
    #[error("its path leads through too many symbolic links")]
    SymlinkLoop,
    /// Deeper than any path that Linux takes can name.
    #[error("its directory is nested too deeply")]
    TooDeep,
    /// Something other than a directory for the root.
    #[error("it would replace the root directory")]
    Root,
}

/// A stream that is no tar archive, or can't be read.
#[derive(Debug, Error)]
pub(crate) enum StreamError {
    #[error(transparent)]
    Tar(#[from] TarProblem),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Why a layer can't be converted.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LayerError {
    /// Not a tar archive, or not one to its end.
    #[error("the layer's archive is damaged")]
    Damaged {
        /// What was met.
        #[source]
        source: TarProblem,
    },
    /// It can't be read to its end: cut off, not what its digest says, or not to be had.
    #[error("the layer cannot be read to its end")]
    Unreadable {
        /// What was met.
        #[source]
        source: io::Error,
    },
    /// It has an entry that no image can have.
    #[error("the layer has an entry that cannot be used: {}: {problem}", entry.display())]
    Entry {
        /// The entry's path.
        entry: PathBuf,
        /// What is wrong with it.
        problem: EntryProblem,
    },
    /// What is to be remembered of its files is out of all proportion to its length.
    #[error("the layer names more files, or says more of them, than one of its length has reason to")]
    TooMuch,
    /// More distinct chunks than a blob can have.
    #[error("the layer has too many chunks; larger ones are needed")]
    TooManyChunks,
    /// The blob can't be written.
    #[error("cannot write {}", path.display())]
    Output {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The bootstrap can't be made or read back.
    #[error("the bootstrap cannot be made")]
    Bootstrap {
        /// What nydus met.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Told to stop.
    #[error("cancelled")]
    Cancelled,
}

impl From<StreamError> for io::Error {
    fn from(error: StreamError) -> Self {
        match error {
            StreamError::Tar(problem) => Self::new(io::ErrorKind::InvalidData, problem),
            StreamError::Io(error) => error,
        }
    }
}

impl From<StreamError> for LayerError {
    fn from(error: StreamError) -> Self {
        match error {
            StreamError::Tar(source) => Self::Damaged { source },
            StreamError::Io(source) => Self::Unreadable { source },
        }
    }
}
