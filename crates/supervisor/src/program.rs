//! The executable that serves a sandbox, and which of two dialects it speaks.
//!
//! Owns the checks that can be made before anything is started. It never runs the program; what is passed to it
//! is decided in [`crate::command`].

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};
use serde::{Deserialize, Serialize};

use crate::state::{OsText, ProgramRecord};

/// Why a path cannot be the daemon's executable.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProgramError {
    /// Nothing there, or not reachable.
    #[error("use {exe:?} as the daemon program")]
    Missing {
        /// The path.
        exe: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// A directory, a socket, a device.
    #[error("use {exe:?} as the daemon program: it is not a regular file")]
    NotAFile {
        /// The path.
        exe: PathBuf,
    },
    /// A file this process may not execute.
    #[error("use {exe:?} as the daemon program: it is not executable")]
    NotExecutable {
        /// The path.
        exe: PathBuf,
    },
}

/// Which command line a program understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProgramKind {
    /// `virtiofs` with `--sock-fd` and `--apisock-fd`: serves on listening sockets it inherits.
    Embedded,
    /// A stock nydusd: binds its sockets itself, and hangs on SIGTERM until a frontend has come and gone.
    Stock,
}

impl ProgramKind {
    /// The largest request body the program reads.
    pub(crate) fn body_limit_bytes(self) -> usize {
        match self {
            Self::Embedded => 1 << 20,
            Self::Stock => 51_200,
        }
    }
}

/// A daemon program: checked to exist and to be executable when it was named.
#[derive(Clone)]
pub struct Program {
    kind: ProgramKind,
    exe: PathBuf,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
}

impl Program {
    /// A program that takes `virtiofs --sock P --sock-fd N --apisock P --apisock-fd N --id ID`.
    ///
    /// # Errors
    /// [`ProgramError`] when the path is missing, no regular file or not executable.
    pub fn embedded(exe: impl AsRef<Path>) -> Result<Self, ProgramError> {
        Self::new(ProgramKind::Embedded, exe.as_ref())
    }

    /// A stock nydusd, built with its `virtiofs` feature.
    ///
    /// # Errors
    /// As for [`Program::embedded`].
    pub fn stock(exe: impl AsRef<Path>) -> Result<Self, ProgramError> {
        Self::new(ProgramKind::Stock, exe.as_ref())
    }

    fn new(kind: ProgramKind, exe: &Path) -> Result<Self, ProgramError> {
        let missing = |source| ProgramError::Missing {
            exe: exe.to_owned(),
            source,
        };
        // Absolute, so that a bare name is never looked up in PATH behind the caller's back.
        let path = std::path::absolute(exe).map_err(missing)?;
        let metadata = std::fs::metadata(&path).map_err(missing)?;
        if !metadata.is_file() {
            return Err(ProgramError::NotAFile { exe: path });
        }
        if access(&path, Access::EXEC_OK).is_err() {
            return Err(ProgramError::NotExecutable { exe: path });
        }
        Ok(Self {
            kind,
            exe: path,
            args: Vec::new(),
            env: Vec::new(),
        })
    }

    /// Adds arguments after those the supervisor passes. nydusd refuses an option given twice.
    #[must_use]
    pub fn with_args(mut self, args: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets an environment variable for the daemon, which otherwise inherits this process' environment.
    #[must_use]
    pub fn with_env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Which command line it understands.
    #[must_use]
    pub fn kind(&self) -> ProgramKind {
        self.kind
    }

    /// The executable, an absolute path.
    #[must_use]
    pub fn exe(&self) -> &Path {
        &self.exe
    }

    /// What has to be known to start it again.
    pub(crate) fn record(&self) -> ProgramRecord {
        let Self { kind, exe, args, env } = self;
        let text = |text: &OsString| OsText(text.clone());
        ProgramRecord {
            kind: *kind,
            exe: OsText(exe.clone().into()),
            args: args.iter().map(text).collect(),
            env: env
                .iter()
                .map(|(name, value)| (text(name), text(value)))
                .collect(),
            version: String::new(),
        }
    }

    /// A program that was checked by someone else; its file may be gone or replaced since.
    pub(crate) fn recorded(record: &ProgramRecord) -> Self {
        let text = |text: &OsText| text.0.clone();
        Self {
            kind: record.kind,
            exe: record.exe.0.clone().into(),
            args: record.args.iter().map(text).collect(),
            env: record
                .env
                .iter()
                .map(|(name, value)| (text(name), text(value)))
                .collect(),
        }
    }

    pub(crate) fn args(&self) -> &[OsString] {
        &self.args
    }

    pub(crate) fn env(&self) -> impl Iterator<Item = (&OsStr, &OsStr)> {
        self.env.iter().map(|(k, v)| (k.as_os_str(), v.as_os_str()))
    }
}

impl fmt::Debug for Program {
    /// Leaves the values of environment variables out: nydusd takes registry credentials from one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Program")
            .field("kind", &self.kind)
            .field("exe", &self.exe)
            .field("args", &self.args)
            .field("env", &self.env.iter().map(|(k, _)| k).collect::<Vec<_>>())
            .finish()
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn refuses_what_cannot_be_run() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("nydusd");
        assert!(matches!(Program::stock(&file), Err(ProgramError::Missing { .. })));
        assert!(matches!(
            Program::stock(dir.path()),
            Err(ProgramError::NotAFile { .. })
        ));
        std::fs::write(&file, "#!/bin/sh\n").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(
            Program::stock(&file),
            Err(ProgramError::NotExecutable { .. })
        ));
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(Program::stock(&file).unwrap().kind(), ProgramKind::Stock);
    }

    #[test]
    fn debug_shows_no_value_of_the_environment() {
        let text = format!(
            "{:?}",
            Program::stock("/bin/sh")
                .unwrap()
                .with_env("IMAGE_PULL_AUTH", "c2VjcmV0")
        );
        assert!(
            text.contains("IMAGE_PULL_AUTH") && !text.contains("c2VjcmV0"),
            "{text}"
        );
    }
}
