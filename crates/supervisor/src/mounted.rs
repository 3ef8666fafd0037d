//! What sandboxes have mounted, by what is written down: for whoever wants to remove images, and for sandboxes whose
//! supervisor is gone.
//!
//! Asks no process. A mount is written down before it is made, so that everything in
//! use is told, and at most more.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use nydusbox_protocol::{FsType, MountPoint, SandboxId};

use crate::dir::LookedAt;
use crate::state::{self, StateDocument};
use crate::status::MountStatus;

/// An image of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountedImage {
    /// The sandbox.
    pub sandbox: SandboxId,
    /// The bootstrap that is mounted.
    pub bootstrap: PathBuf,
}

/// Why it cannot be said what a sandbox has mounted.
#[derive(Debug, thiserror::Error)]
#[error("find out what the sandbox in {path:?} has mounted")]
struct NotKnown {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// The images of all sandboxes in `state_dir`, those that nobody supervises any more among them: their daemons may
/// live, and be adopted. A directory that does not exist has none, and neither has one that is no sandbox's.
///
/// # Errors
/// When a directory or a state cannot be read, or a state not be understood: then it cannot be said what is in use.
pub fn mounted_images(state_dir: impl AsRef<Path>) -> io::Result<Vec<MountedImage>> {
    let entries = match std::fs::read_dir(state_dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut images = Vec::new();
    for entry in entries {
        let entry = entry?;
        let id = entry
            .file_name()
            .to_str()
            .and_then(|name| SandboxId::new(name).ok());
        if let Some(id) = id
            && entry.file_type()?.is_dir()
        {
            let path = entry.path();
            add(&mut images, &id, &path)
                .map_err(|source| io::Error::new(source.kind(), NotKnown { path, source }))?;
        }
    }
    Ok(images)
}

/// What the sandbox with this directory has mounted, or was mounting, in the order in which it did. Nothing of it is
/// confirmed: that takes its daemon, which may be gone. A sandbox that does not exist has none.
///
/// # Errors
/// When its state cannot be read or not be understood.
pub fn recorded_mounts(sandbox_dir: impl AsRef<Path>) -> io::Result<Vec<MountStatus>> {
    let Some(document) = document(sandbox_dir.as_ref())? else {
        return Ok(Vec::new());
    };
    let bind = |at: &MountPoint| document.binds.iter().find(|record| record.at == *at);
    let mounts = document.mounts.iter().map(|record| MountStatus {
        at: record.at.clone(),
        fs_type: record.command.fs_type,
        source: record.command.source.clone(),
        snapshotdir: bind(&record.at).map(|record| record.bind.source.clone()),
        confirmed: false,
    });
    Ok(mounts.collect())
}

fn document(dir: &Path) -> io::Result<Option<StateDocument>> {
    let bytes = match File::open(dir) {
        Ok(dir) => state::read(&dir)?,
        // It went while we looked.
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    // An empty one is none: the machine stopped before its content was on the disk.
    let written = bytes.filter(|bytes| !bytes.is_empty());
    let document = written.map(|bytes| StateDocument::parse(&bytes).map_err(io::Error::other));
    document.transpose()
}

fn add(images: &mut Vec<MountedImage>, id: &SandboxId, dir: &Path) -> io::Result<()> {
    let document = match document(dir) {
        Ok(Some(document)) if document.sandbox == *id => document,
        // A copy is no sandbox's.
        Ok(Some(_) | None) => return Ok(()),
        // One that can't be opened may be.
        Err(error) if File::open(dir).is_err() => return Err(error),
        Err(error) => match LookedAt::new(dir).is_some_and(|found| found.is_sandbox()) {
            true => return Err(error),
            false => return Ok(()),
        },
    };
    for mount in &document.mounts {
        for command in mount.replacements.iter().chain([&mount.command]) {
            if command.fs_type == FsType::Rafs {
                images.push(MountedImage {
                    sandbox: id.clone(),
                    bootstrap: command.source.clone().into(),
                });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::dir::{LOCK, SandboxDir};
    use crate::state::STATE;

    #[test]
    fn only_a_sandbox_whose_state_is_not_understood_is_in_the_way_and_it_is_named() {
        let state_dir = tempfile::tempdir().unwrap();
        let dir = |name: &str| state_dir.path().join(name);
        for (name, state) in [("project", "{}"), ("empty", "")] {
            std::fs::create_dir(dir(name)).unwrap();
            std::fs::write(dir(name).join(STATE), state).unwrap();
        }
        std::fs::create_dir_all(dir("directory").join(STATE)).unwrap();
        // The machine was switched off.
        SandboxDir::claim(&dir("crashed")).unwrap().leave();
        std::fs::write(dir("crashed").join(STATE), "").unwrap();
        assert_eq!(mounted_images(state_dir.path()).unwrap(), []);
        assert_eq!(recorded_mounts(dir("crashed")).unwrap(), []);

        std::fs::write(dir("crashed").join(STATE), "{}").unwrap();
        assert!(dir("crashed").join(LOCK).exists());
        let error = mounted_images(state_dir.path()).unwrap_err();
        assert!(error.to_string().contains("crashed"), "{error}");
    }
}
