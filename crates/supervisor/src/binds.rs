//! A snapshot's directory made visible in the share: the bind mount at `<share>/<container>/snapshotdir`.
//!
//! The guest writes into the share, so nothing in it is trusted: every component is opened without following a
//! symlink, below the descriptor of the one before. What is unmounted must be the very mount that was made, in this boot:
//! by its number, by the directory that was bound and by the one it is in, because numbers are given out again and another
//! sandbox may have bound the same directory. (Where a predecessor could not write those down: by the directory that was
//! bound, at the place where it was to be.) Directories are removed only if they were made here, only when empty, never as a tree.
//! The files below `fs/` and `work/` are not touched by anything in this file. Whoever calls [`Bind::make`] has
//! entered the [`Bind`] in the [`book`] before, so that it is undone whatever happens. The steps on the file
//! system are in [`steps`].

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nydusbox_protocol::ContainerId;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::apart::apart;
use crate::dir::Leftover;
use crate::state::boot_id;

mod book;
mod steps;

pub(crate) use book::BindBook;
use steps::{ContainerDir, Detached, Share};

/// Where a container's snapshot directory appears, in the container's directory of the share.
const SNAPSHOTDIR: &str = "snapshotdir";
/// Where the guest mounts the container's overlay.
const ROOTFS: &str = "rootfs";

/// Waits until a snapshot's directory can be opened or not, which are for [`Bind::plan`] to tell apart: a file system
/// may never answer.
pub(crate) async fn answers(source: &Path, within: Duration) -> Result<(), BindError> {
    let path = source.to_owned();
    apart(source, within, move || drop(steps::open_source(&path)))
        .await
        .map_err(|error| BindError::Io {
            action: "open",
            path: source.to_owned(),
            source: error,
        })
}

/// Why a snapshot's directory could not be bound.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// Mounting takes CAP_SYS_ADMIN in the user namespace that owns this mount namespace.
    #[error("bind {source_dir:?} at {target:?}: mounting needs CAP_SYS_ADMIN in this mount namespace")]
    NotPermitted {
        /// The snapshot's directory.
        source_dir: PathBuf,
        /// Where it was to appear.
        target: PathBuf,
    },
    /// A symlink in a path; following it could lead anywhere.
    #[error("use {path:?}: it has a symlink in it")]
    Symlink {
        /// The path.
        path: PathBuf,
    },
    /// A mount is in the way.
    #[error("use {path:?}: something is mounted there")]
    Occupied {
        /// The path.
        path: PathBuf,
    },
    /// The directory is not the one it was when it was asked for.
    #[error("bind {path:?}: it was replaced meanwhile")]
    Replaced {
        /// The path.
        path: PathBuf,
    },
    /// A step failed.
    #[error("{action} {path:?}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
}

/// A directory by what it is, not by what it is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Inode {
    pub(crate) dev: u64,
    pub(crate) ino: u64,
}

/// Which directories of the share are made for the bind; the others were there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Made {
    pub(crate) container: bool,
    pub(crate) snapshotdir: bool,
    pub(crate) rootfs: bool,
}

/// One snapshot directory in the share: planned, made or undone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Bind {
    pub(crate) share: PathBuf,
    pub(crate) container: ContainerId,
    pub(crate) source: PathBuf,
    pub(crate) inode: Inode,
    pub(crate) made: Made,
    /// The boot in which it was planned: no mount outlives that. Empty in older documents, which do not say.
    #[serde(default)]
    pub(crate) boot_id: String,
    #[serde(default, rename = "mount", skip_serializing_if = "Mounted::is_not_known")]
    pub(crate) mounted: Mounted,
}

/// Whether the directory is mounted where it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(from = "Option<Mount>", into = "Option<Mount>")]
pub(crate) enum Mounted {
    /// Not by us: it failed, or is undone. What is left are directories.
    Not,
    /// Not yet: it is to be done for the request that is being carried out.
    Planned,
    /// A predecessor may have done it: it was not written down any more.
    #[default]
    Perhaps,
    /// As this mount.
    As(Mount),
}

/// A mount, by what does not change when directories above it are renamed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mount {
    /// Its number in `/proc/self/mountinfo`, which is given out again once it is gone.
    pub(crate) id: u64,
    /// The directory in which it is mounted.
    pub(crate) parent: Inode,
}

impl Mounted {
    fn known(self) -> Option<Mount> {
        match self {
            Self::Not | Self::Planned | Self::Perhaps => None,
            Self::As(mount) => Some(mount),
        }
    }

    fn is_not_known(&self) -> bool {
        self.known().is_none()
    }
}

impl From<Option<Mount>> for Mounted {
    fn from(mount: Option<Mount>) -> Self {
        mount.map_or(Self::Perhaps, Self::As)
    }
}

impl From<Mounted> for Option<Mount> {
    fn from(mounted: Mounted) -> Self {
        mounted.known()
    }
}

impl Bind {
    /// Looks at both ends and says what is to be done; changes nothing.
    pub(crate) fn plan(share: &Path, container: &ContainerId, source: &Path) -> Result<Self, BindError> {
        let (_fd, inode) = steps::open_source(source)?;
        let made = match Share::open(share)?.container(container) {
            Ok(dir) => Made {
                container: false,
                snapshotdir: !dir.has(SNAPSHOTDIR)?,
                rootfs: !dir.has(ROOTFS)?,
            },
            Err(BindError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Made {
                container: true,
                snapshotdir: true,
                rootfs: true,
            },
            Err(error) => return Err(error),
        };
        Ok(Self {
            share: share.to_owned(),
            container: container.clone(),
            source: source.to_owned(),
            inode,
            made,
            boot_id: boot_id().map_err(|error| BindError::Io {
                action: "learn which boot this is, to bind",
                path: source.to_owned(),
                source: error,
            })?,
            mounted: Mounted::Planned,
        })
    }

    /// Plans anew what was undone but for directories, which are still ours to remove.
    fn plan_again(&mut self, new: Self) {
        let was = self.made;
        *self = new;
        self.made.container |= was.container;
        self.made.snapshotdir |= was.snapshotdir;
        self.made.rootfs |= was.rootfs;
    }

    /// Whether both put the same directory at the same place.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        (&self.share, &self.container, self.inode) == (&other.share, &other.container, other.inode)
    }

    /// Where it is, or is to be.
    pub(crate) fn target(&self) -> PathBuf {
        self.share.join(self.container.as_str()).join(SNAPSHOTDIR)
    }

    /// Makes the directories and the mount. On an error what was done so far is undone.
    pub(crate) fn make(&mut self) -> Result<(), BindError> {
        match self.try_make() {
            Ok(mount) => {
                self.mounted = Mounted::As(mount);
                Ok(())
            }
            Err(error) => {
                for left in self.undo() {
                    tracing::warn!(error = &left as &dyn std::error::Error, "left behind");
                }
                Err(error)
            }
        }
    }

    fn try_make(&self) -> Result<Mount, BindError> {
        let (source, inode) = steps::open_source(&self.source)?;
        if inode != self.inode {
            return Err(BindError::Replaced {
                path: self.source.clone(),
            });
        }
        let share = Share::open(&self.share)?;
        if self.made.container {
            share.make_container(&self.container)?;
        }
        let dir = share.container(&self.container)?;
        if self.made.rootfs {
            dir.make(ROOTFS)?;
        }
        if self.made.snapshotdir {
            dir.make(SNAPSHOTDIR)?;
        }
        dir.attach(&source, &self.source, SNAPSHOTDIR)
    }

    /// Looks whether the snapshot's directory is mounted where it should be, if that is not known.
    fn find_mount(&mut self) {
        if self.mounted != Mounted::Perhaps {
            return;
        }
        let find = || {
            let dir = Share::open(&self.share).ok()?.container(&self.container).ok()?;
            let (inode, mount) = dir.mounted(SNAPSHOTDIR).ok()??;
            (inode == self.inode && self.is_of_this_boot()).then_some(mount)
        };
        self.mounted = find().map_or(Mounted::Not, Mounted::As);
    }

    /// Takes the mount and the directories away, each whatever became of the others; says what is left. What is
    /// gone already is no failure.
    pub(crate) fn undo(&mut self) -> Vec<Leftover> {
        let mut left = Vec::new();
        let share = Share::open(&self.share);
        let dir = share.as_ref().ok().map(|share| share.container(&self.container));
        // Also where the share is out of reach: the mount may not be.
        match self.detach(dir.as_ref().and_then(|dir| dir.as_ref().ok())) {
            None => self.mounted = Mounted::Not,
            Some(mount) => left.push(mount),
        }
        let (share, dir) = match (share, dir) {
            (Ok(share), Some(dir)) => (share, dir),
            (Err(error), _) => {
                note(&mut left, &self.share, error);
                return left;
            }
            (Ok(_), None) => return left,
        };
        let path = self.share.join(self.container.as_str());
        match dir {
            Ok(dir) => {
                for (name, made) in [(SNAPSHOTDIR, self.made.snapshotdir), (ROOTFS, self.made.rootfs)] {
                    if made && let Err(error) = dir.remove(name) {
                        note(&mut left, &path.join(name), error);
                    }
                }
            }
            Err(error) => note(&mut left, &path, error),
        }
        if self.made.container
            && left.is_empty()
            && let Err(error) = share.remove_container(&self.container)
        {
            note(&mut left, &path, error);
        }
        left
    }

    /// Takes the mount away, if there is one of ours; what is left of it.
    fn detach(&self, dir: Option<&ContainerDir>) -> Option<Leftover> {
        let mount = match self.mounted {
            Mounted::Not | Mounted::Planned => return None,
            Mounted::Perhaps => None,
            Mounted::As(mount) => Some(mount),
        };
        if !self.is_of_this_boot() {
            return None;
        }
        let detached = dir.map_or(Ok(Detached::Nothing), |dir| {
            dir.detach(SNAPSHOTDIR, self.inode, mount)
        });
        let why = match detached {
            Ok(Detached::Ours) => return None,
            // It may have moved: the guest can rename the container's directory, the mount goes along.
            Ok(Detached::Nothing) => return mount.and_then(|mount| self.detach_elsewhere(mount)),
            Ok(Detached::Covered) => io::Error::other("something else is mounted on it"),
            Err(error) => io::Error::other(error),
        };
        Some(Leftover::Mount {
            path: self.target(),
            source: why,
        })
    }

    fn detach_elsewhere(&self, mount: Mount) -> Option<Leftover> {
        let listed = steps::find(mount.id).map_err(|source| Leftover::Mount {
            path: self.target(),
            source,
        });
        let path = match listed {
            Ok(path) => path?,
            Err(left) => return Some(left),
        };
        match steps::detach_at(&path, SNAPSHOTDIR, self.inode, mount) {
            Ok(true) => {
                tracing::info!(path = %path.display(), "unmounted a snapshot directory that had moved");
                None
            }
            Ok(false) => None,
            Err(source) => Some(Leftover::Mount { path, source }),
        }
    }

    fn is_of_this_boot(&self) -> bool {
        self.boot_id.is_empty() || boot_id().map_or(true, |found| found == self.boot_id)
    }
}

fn note(left: &mut Vec<Leftover>, path: &Path, error: BindError) {
    let source = match error {
        BindError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => return,
        BindError::Io { source, .. } => source,
        other => io::Error::other(other),
    };
    left.push(Leftover::Path {
        path: path.to_owned(),
        source,
    });
}

fn failed(action: &'static str, path: &Path, errno: Errno) -> BindError {
    let path = path.to_owned();
    match errno {
        Errno::LOOP => BindError::Symlink { path },
        Errno::XDEV => BindError::Occupied { path },
        errno => BindError::Io {
            action,
            path,
            source: errno.into(),
        },
    }
}

#[cfg(test)]
#[path = "binds_tests.rs"]
mod tests;
