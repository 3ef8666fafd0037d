//! What can be asked of a running sandbox: a mount, checked as far as it can be without the daemon.

use std::fmt;
use std::path::{Path, PathBuf};

use nydusbox_protocol::{ContainerId, FilePart, MountCommand, MountPoint, ShareConfig};

use crate::program::ProgramKind;
use crate::shared_command::SharedCommand;

/// Why a request cannot be made. The value is not told: whoever confuses two has put credentials there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MountRequestError {
    /// The daemon resolves paths in its own working directory; a relative one would be a guess.
    #[error("use the {what}: it is not an absolute path")]
    NotAbsolute {
        /// Which path: `bootstrap`, `snapshotdir` or `directory`.
        what: &'static str,
    },
    /// The API carries paths as text.
    #[error("use the {what}: its path is not UTF-8")]
    NotUtf8 {
        /// Which path, as above.
        what: &'static str,
    },
}

/// How much of a request to a stock nydusd, which takes 51200 bytes, may be names of files out of parts.
const MOST_STOCK_PREFETCH_BYTES: usize = 32 << 10;

/// A mount to be made.
#[derive(Clone, PartialEq, Eq)]
pub struct MountRequest {
    at: MountPoint,
    command: SharedCommand,
    snapshotdir: Option<Snapshotdir>,
}

/// A container's writable directory and the container it is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Snapshotdir {
    pub(crate) container: ContainerId,
    pub(crate) source: PathBuf,
}

impl MountRequest {
    /// Shares the host directory `source` at `at`.
    ///
    /// # Errors
    /// [`MountRequestError`] when the path is relative or not UTF-8.
    pub fn passthrough(at: MountPoint, source: impl AsRef<Path>) -> Result<Self, MountRequestError> {
        let command = MountCommand::passthrough(text("directory", source.as_ref())?);
        Ok(Self {
            at,
            command: command.into(),
            snapshotdir: None,
        })
    }

    /// Asks for a share's configuration, which only our daemon understands: a stock nydusd ignores it.
    #[must_use]
    pub fn with_share_config(mut self, config: &ShareConfig) -> Self {
        self.command = self
            .command
            .with(|command| *command = command.clone().with_share_config(config));
        self
    }

    /// Mounts a container's RAFS image at `/rafs/<container>/lowerdir`. `config` is a nydusd configuration, JSON
    /// or TOML.
    ///
    /// # Errors
    /// [`MountRequestError`] when the bootstrap's path is relative or not UTF-8.
    pub fn rafs(
        container: &ContainerId,
        bootstrap: impl AsRef<Path>,
        config: impl Into<String>,
    ) -> Result<Self, MountRequestError> {
        Ok(Self {
            at: MountPoint::rafs_lowerdir(container),
            command: MountCommand::rafs(text("bootstrap", bootstrap.as_ref())?, config).into(),
            snapshotdir: None,
        })
    }

    /// Mounts one of a container's layers, counted from 0 at the top, at [`MountPoint::rafs_layer`]. The topmost is
    /// [`MountRequest::rafs`].
    ///
    /// # Errors
    /// As for [`MountRequest::rafs`].
    pub fn rafs_layer(
        container: &ContainerId,
        layer: usize,
        bootstrap: impl AsRef<Path>,
        config: impl Into<String>,
    ) -> Result<Self, MountRequestError> {
        Ok(Self {
            at: MountPoint::rafs_layer(container, layer),
            ..Self::rafs(container, bootstrap, config)?
        })
    }

    /// Mounts a container's RAFS image as [`MountRequest::rafs`] does, and shows the directory `snapshotdir` (with
    /// `fs` and `work` in it, for the container's writes) in the share: it is bound to
    /// `<share>/<container>/snapshotdir` for as long as the image is mounted, and the empty directory
    /// `<share>/<container>/rootfs` is made beside it. Nothing in `snapshotdir` is ever removed. Its path must have
    /// no symlink in it. Takes a sandbox with a shared directory, and CAP_SYS_ADMIN.
    ///
    /// # Errors
    /// [`MountRequestError`] when one of the paths is relative or not UTF-8.
    pub fn rafs_with_snapshotdir(
        container: &ContainerId,
        bootstrap: impl AsRef<Path>,
        config: impl Into<String>,
        snapshotdir: impl AsRef<Path>,
    ) -> Result<Self, MountRequestError> {
        let source = PathBuf::from(text("snapshotdir", snapshotdir.as_ref())?);
        Ok(Self {
            snapshotdir: Some(Snapshotdir {
                container: container.clone(),
                source,
            }),
            ..Self::rafs(container, bootstrap, config)?
        })
    }

    /// A RAFS image anywhere.
    #[cfg(test)]
    pub(crate) fn rafs_at(at: MountPoint, bootstrap: &str, config: &str) -> Self {
        let command = MountCommand::rafs(bootstrap, config);
        Self {
            at,
            command: command.into(),
            snapshotdir: None,
        }
    }

    /// Files of the image to fetch ahead, absolute paths inside it.
    #[must_use]
    pub fn with_prefetch(mut self, files: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let files: Vec<String> = files.into_iter().map(Into::into).collect();
        let files = Some(files).filter(|f| !f.is_empty());
        self.command = self.command.with(|command| command.prefetch_files = files);
        self
    }

    /// Parts of files of the image to fetch ahead, after those of [`MountRequest::with_prefetch`]. A stock nydusd is
    /// given the files they are of, as far as their names are plain text and no more than 32 KiB.
    #[must_use]
    pub fn with_prefetch_parts(mut self, parts: impl IntoIterator<Item = FilePart>) -> Self {
        let parts: Vec<FilePart> = parts.into_iter().collect();
        let parts = Some(parts).filter(|p| !p.is_empty());
        self.command = self.command.with(|command| command.prefetch_parts = parts);
        self
    }

    /// Where the program may be that is to be started, absolute paths inside the image in the order in which it is
    /// looked for: our daemon fetches ahead what it needs, its libraries for one, unless the image or the request names
    /// something else. A stock nydusd cannot be asked for that, and is not.
    #[must_use]
    pub fn with_prefetch_program(mut self, candidates: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let candidates: Vec<String> = candidates.into_iter().map(Into::into).collect();
        let candidates = Some(candidates).filter(|c| !c.is_empty());
        self.command = self.command.with(|command| command.prefetch_program = candidates);
        self
    }

    /// As a program of this kind understands it.
    pub(crate) fn fitted(mut self, kind: ProgramKind) -> Self {
        let understood = self.command.prefetch_parts.is_none() && self.command.prefetch_program.is_none();
        if kind == ProgramKind::Embedded || understood {
            return self;
        }
        self.command = self.command.with(|command| {
            command.prefetch_program = None;
            if let Some(parts) = command.prefetch_parts.take() {
                let mut files = command.prefetch_files.take().unwrap_or_default();
                add_files(&mut files, parts);
                command.prefetch_files = Some(files).filter(|f| !f.is_empty());
            }
        });
        self
    }

    /// Where it goes.
    #[must_use]
    pub fn at(&self) -> &MountPoint {
        &self.at
    }

    pub(crate) fn command(&self) -> &SharedCommand {
        &self.command
    }

    pub(crate) fn snapshotdir(&self) -> Option<&Snapshotdir> {
        self.snapshotdir.as_ref()
    }
}

impl fmt::Debug for MountRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // MountCommand's own Debug leaves the configuration out.
        f.debug_struct("MountRequest")
            .field("at", &self.at)
            .field("command", &self.command)
            .field("snapshotdir", &self.snapshotdir)
            .finish()
    }
}

/// Adds the files that parts are of, as far as a stock nydusd can be told them.
fn add_files(files: &mut Vec<String>, parts: Vec<FilePart>) {
    let mut bytes = 0;
    for FilePart { path, .. } in parts {
        if path.contains(['%', '"', '\\']) || files.contains(&path) {
            continue;
        }
        // With quotes and a comma. The rest is fetched when it is read.
        bytes += path.len() + 3;
        if bytes > MOST_STOCK_PREFETCH_BYTES {
            break;
        }
        files.push(path);
    }
}

fn text(what: &'static str, path: &Path) -> Result<String, MountRequestError> {
    if !path.is_absolute() {
        return Err(MountRequestError::NotAbsolute { what });
    }
    let text = path.to_str().map(str::to_owned);
    text.ok_or(MountRequestError::NotUtf8 { what })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn part(path: &str, offset: u64) -> FilePart {
        FilePart {
            path: path.into(),
            offset,
            length: Some(7),
        }
    }

    #[test]
    fn a_stock_nydusd_is_given_files_for_the_parts_it_does_not_know() {
        let request = |parts: Vec<FilePart>| {
            MountRequest::rafs(&ContainerId::new("c").unwrap(), "/boot", "{}")
                .unwrap()
                .with_prefetch(["/first"])
                .with_prefetch_parts(parts)
                .with_prefetch_program(["/bin/sh"])
        };
        let parts = vec![
            part("/b", 9),
            part("/first", 0),
            part("/b", 0),
            part("/%ff", 0),
            part("/a", 1),
        ];
        let ours = request(parts.clone()).fitted(ProgramKind::Embedded);
        assert_eq!(ours, request(parts.clone()));
        let stock = request(parts).fitted(ProgramKind::Stock);
        assert_eq!(stock.command.prefetch_parts, None);
        assert_eq!(stock.command.prefetch_program, None);
        assert_eq!(
            stock.command.prefetch_files.clone().unwrap(),
            ["/first", "/b", "/a"]
        );
        let many = (0..10_000).map(|n| part(&format!("/{n}"), 0)).collect();
        let stock = request(many).fitted(ProgramKind::Stock);
        let len_bytes = stock.command().json().len();
        assert!(len_bytes < ProgramKind::Stock.body_limit_bytes(), "{len_bytes}");
        let nothing = MountRequest::rafs(&ContainerId::new("c").unwrap(), "/boot", "{}").unwrap();
        assert_eq!(nothing.clone().fitted(ProgramKind::Stock), nothing);
    }
}
