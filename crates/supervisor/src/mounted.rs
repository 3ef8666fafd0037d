//! Which images the sandboxes of a state directory use, for whoever wants to remove some.
//!
//! Reads what is written down and asks no process. A mount is written down before it is made, so that everything in
//! use is told, and at most more.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use nydusbox_protocol::{FsType, SandboxId};

use crate::state::{self, StateDocument};

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

fn add(images: &mut Vec<MountedImage>, id: &SandboxId, dir: &Path) -> io::Result<()> {
    let bytes = match File::open(dir) {
        Ok(dir) => state::read(&dir)?,
        // It went while we looked.
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let Some(bytes) = bytes else { return Ok(()) };
    let document = StateDocument::parse(&bytes).map_err(io::Error::other)?;
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
