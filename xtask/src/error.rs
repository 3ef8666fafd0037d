//! Why a task failed: one sentence, and the last lines of the command it failed in.

use std::error::Error;
use std::fmt::{self, Write};
use std::io;
use std::num::ParseIntError;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use thiserror::Error;

#[derive(Debug, Error)]
pub(crate) enum TaskError {
    #[error("this program is started by `cargo xtask`")]
    NotByCargo,
    #[error("cannot start `{command}`")]
    Start {
        command: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot show what a command printed")]
    Output {
        #[source]
        source: io::Error,
    },
    #[error("`{command}` failed ({status}){tail}")]
    Command {
        command: String,
        status: ExitStatus,
        tail: Tail,
    },
    #[error("cannot {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is not a report of `nydusbox run`", path.display())]
    Report {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("the registry has no manifest of an image")]
    Manifest(#[source] serde_json::Error),
    #[error("what du printed is no size")]
    Size(#[source] ParseIntError),
    #[error("what the benchmark printed are no figures")]
    Figures(#[source] serde_json::Error),
    #[error("Debian packages are missing and need root to be installed; run:\n    sudo {command}")]
    NeedsRoot { command: String },
    #[error("Debian packages are needed ({packages}), and this machine has no dpkg-query to ask for them")]
    NotDebian {
        packages: String,
        #[source]
        source: io::Error,
    },
    #[error("apt-cache names no kernel package that {package} depends on")]
    NoKernelPackage { package: String },
    #[error("rustc does not name its host")]
    NoHost,
    #[error("cannot read the workspace's dependencies")]
    Metadata(#[source] cargo_metadata::Error),
    #[error("crate dependencies are not as designed:\n{}", .0.join("\n"))]
    Dependencies(Vec<String>),
}

impl TaskError {
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io {
            action,
            path: path.to_owned(),
            source,
        }
    }
}

/// The last lines a command wrote, for an error; empty when they went to the terminal.
#[derive(Debug, Default)]
pub(crate) struct Tail(Vec<String>);

impl Tail {
    const LINES: usize = 20;

    pub(crate) fn of(output: &[u8]) -> Self {
        let text = String::from_utf8_lossy(output);
        let lines: Vec<_> = text.lines().map(str::to_owned).collect();
        Self(lines[lines.len().saturating_sub(Self::LINES)..].to_vec())
    }
}

impl fmt::Display for Tail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return Ok(());
        }
        write!(f, "; its last lines:")?;
        self.0.iter().try_for_each(|line| write!(f, "\n    {line}"))
    }
}

/// An error and its causes, in one sentence.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let _ = write!(text, ": {cause}");
        next = cause.source();
    }
    text
}
