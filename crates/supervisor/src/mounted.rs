//! What sandboxes have mounted, by what is written down: for whoever wants to remove images, and for sandboxes whose
//! supervisor is gone.
//!
//! Asks no process. A mount is written down before it is made, so that everything in
//! use is told, and at most more.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use nydusbox_protocol::{FsType, MountPoint, SandboxId};

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

/// The images of all sandboxes in `state_dir`, those that nobody supervises any more among them: their daemons may
/// live, and be adopted. A directory that does not exist has none.
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
            add(&mut images, &id, &entry.path())?;
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
    let document = bytes.map(|bytes| StateDocument::parse(&bytes).map_err(io::Error::other));
    document.transpose()
}

fn add(images: &mut Vec<MountedImage>, id: &SandboxId, dir: &Path) -> io::Result<()> {
    let Some(document) = document(dir)? else {
        return Ok(());
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
