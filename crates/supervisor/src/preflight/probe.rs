//! Asks a program for its help and its version, once per file.
//!
//! The answers are kept for the life of this process, by path and what identifies the file's content; they never
//! change anything but how long a later start takes. The child is a [`Process`]: dropping the future ends it.

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::OnceCell;
use tokio::time::timeout;

use super::help::Options;
use crate::exit::ExitCause;
use crate::process::Process;
use crate::program::Program;

/// A help text takes milliseconds.
const DEADLINE: Duration = Duration::from_secs(5);
/// The version is asked for at the same time.
const VERSION_DEADLINE: Duration = Duration::from_secs(1);
/// nydusd's has 2 KiB.
const HELP_LIMIT_BYTES: u64 = 256 << 10;

/// Why a program could not be asked for its options.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PreflightError {
    /// It could not be run.
    #[error("ask {exe:?} for its options")]
    Run {
        /// The program.
        exe: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// It did not answer in time.
    #[error("ask {exe:?} for its options: no answer within {after:?}")]
    TimedOut {
        /// The program.
        exe: PathBuf,
        /// How long it had.
        after: Duration,
    },
    /// It has no `virtiofs` command, or is no nydusd at all.
    #[error("ask {exe:?} for its options: `virtiofs --help` {cause} and names no --sock and --apisock")]
    NoVirtiofs {
        /// The program.
        exe: PathBuf,
        /// How it ended.
        cause: ExitCause,
    },
}

/// A file's identity: another file, or other content, is another key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    exe: PathBuf,
    device: u64,
    inode: u64,
    len: u64,
    modified: (i64, i64),
}

impl Key {
    fn of(exe: &Path) -> io::Result<Self> {
        let metadata = std::fs::metadata(exe)?;
        Ok(Self {
            exe: exe.to_owned(),
            device: metadata.dev(),
            inode: metadata.ino(),
            len: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        })
    }
}

type Known = Mutex<HashMap<Key, Arc<OnceCell<Arc<Options>>>>>;

static KNOWN: LazyLock<Known> = LazyLock::new(Known::default);

/// The options of a program's `virtiofs` command.
pub(super) async fn options(program: &Program) -> Result<Arc<Options>, PreflightError> {
    let failed = |source| PreflightError::Run {
        exe: program.exe().to_owned(),
        source,
    };
    let key = Key::of(program.exe()).map_err(failed)?;
    let cell = {
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        known.entry(key).or_default().clone()
    };
    cell.get_or_try_init(|| async { ask(program).await.map(Arc::new) })
        .await
        .cloned()
}

async fn ask(program: &Program) -> Result<Options, PreflightError> {
    let exe = || program.exe().to_owned();
    let version = timeout(VERSION_DEADLINE, said(program, &["--version"]));
    let (help, version) = tokio::join!(timeout(DEADLINE, said(program, &["virtiofs", "--help"])), version);
    // Only for people: a program that does not tell can be used all the same.
    let version = version
        .ok()
        .and_then(Result::ok)
        .map_or_else(String::new, |said| said.text);
    match help {
        Err(_) => Err(PreflightError::TimedOut {
            exe: exe(),
            after: DEADLINE,
        }),
        Ok(Err(source)) => Err(PreflightError::Run { exe: exe(), source }),
        Ok(Ok(Said { cause, text })) => {
            let options = Options::parse(&text).of_version(&version);
            let serves = ["sock", "apisock"]
                .iter()
                .all(|o| options.takes_value(o) == Some(true));
            if serves {
                Ok(options)
            } else {
                Err(PreflightError::NoVirtiofs { exe: exe(), cause })
            }
        }
    }
}

/// What a program prints, and how it ends.
struct Said {
    cause: ExitCause,
    text: String,
}

async fn said(program: &Program, arguments: &[&str]) -> io::Result<Said> {
    let (reader, writer) = io::pipe()?;
    let mut command = Command::new(program.exe());
    command
        .args(arguments)
        .envs(program.env())
        .stdin(Stdio::null())
        .stdout(writer)
        .stderr(Stdio::null());
    let mut process = Process::spawn(&mut command)?;
    drop(command);
    let mut text = Vec::new();
    Receiver::from_owned_fd(reader.into())?
        .take(HELP_LIMIT_BYTES)
        .read_to_end(&mut text)
        .await?;
    let cause = process.exited().await;
    Ok(Said {
        cause,
        text: String::from_utf8_lossy(&text).into_owned(),
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// A program that notes each time it is asked for its options, and has these.
    fn script(dir: &Path, options: &str) -> Program {
        let path = dir.join("nydusd");
        // Written under another name first: a file that is open for writing cannot be executed.
        let draft = dir.join("draft");
        let text = format!(
            "#!/bin/sh\nif [ \"$1\" = --version ]; then echo 'Version: v9.9'; exit; fi\n\
             echo run >> {}\necho '{options}'\n",
            dir.join("runs").display()
        );
        std::fs::write(&draft, text).unwrap();
        std::fs::set_permissions(&draft, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::rename(&draft, &path).unwrap();
        Program::stock(path).unwrap()
    }

    fn runs(dir: &Path) -> usize {
        std::fs::read_to_string(dir.join("runs"))
            .unwrap_or_default()
            .lines()
            .count()
    }

    #[tokio::test]
    async fn a_program_is_asked_once_and_again_when_it_changed() {
        let dir = tempfile::tempdir().unwrap();
        let program = script(dir.path(), "  --sock <S>\n  --apisock <A>");
        for _ in 0..3 {
            let (one, two) = tokio::join!(options(&program), options(&program));
            let one = one.unwrap();
            assert_eq!(one.version(), Some("v9.9"));
            assert_eq!(one, two.unwrap());
        }
        assert_eq!(runs(dir.path()), 1);
        let program = script(dir.path(), "  --sock <S>\n  --apisock <A>\n  --new");
        assert_eq!(options(&program).await.unwrap().takes_value("new"), Some(false));
        assert_eq!(runs(dir.path()), 2);
    }

    #[tokio::test]
    async fn a_program_without_the_command_is_told_and_asked_again() {
        let dir = tempfile::tempdir().unwrap();
        let program = script(dir.path(), "usage: something else");
        for asked in 1..3 {
            let error = options(&program).await.unwrap_err();
            assert!(
                matches!(
                    error,
                    PreflightError::NoVirtiofs {
                        cause: ExitCause::Code(0),
                        ..
                    }
                ),
                "{error:?}"
            );
            assert_eq!(runs(dir.path()), asked);
        }
    }
}
