//! The initramfs the guest starts from: busybox, the modules and our `/init`. What the machine is for is not in it:
//! init is told by its control port ([`params`]).
//!
//! Made in memory, uncompressed (decompressing under emulation costs more than reading), and reproducible: the same
//! assets give the same bytes. `init.sh`, with what it looks up in the container (`container.sh`), is
//! the guest's whole user space outside the container; read it next.

pub(crate) mod cpio;
pub(crate) mod params;

use std::fs;
use std::io;
use std::path::PathBuf;

use crate::guest::{GuestAssets, PORT_MODULES};
use cpio::Archive;

/// The guest's `/init`.
const INIT: &[u8] = include_bytes!("initramfs/init.sh");
/// What `/init` reads from `/container.sh`.
const CONTAINER: &[u8] = include_bytes!("initramfs/container.sh");

/// A part of the initramfs that can't be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot put {path:?} into the initramfs")]
pub struct InitramfsError {
    /// The file.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// Builds the archive.
pub(crate) fn build(assets: &GuestAssets) -> Result<Vec<u8>, InitramfsError> {
    let read = |path: &std::path::Path| {
        fs::read(path).map_err(|source| InitramfsError {
            path: path.to_owned(),
            source,
        })
    };
    let mut archive = Archive::default();
    for dir in ["bin", "dev", "etc", "modules", "proc", "run", "sys", "tmp"] {
        archive.directory(dir, 0o755);
    }
    // The kernel opens it for /init before anything could mount devtmpfs.
    archive.character_device("dev/console", 0o600, 5, 1);
    archive.file("bin/busybox", 0o755, &read(assets.busybox())?);
    archive.symlink("bin/sh", "busybox");
    // Up to those for the ports, and the others, which may need them.
    let (mut ports, mut others) = (String::new(), String::new());
    for module in assets.modules() {
        let name = format!("{}.ko", module.name);
        archive.file(&format!("modules/{name}"), 0o644, &read(&module.path)?);
        others.push_str(&name);
        others.push('\n');
        if PORT_MODULES.contains(&module.name.as_str()) {
            ports.push_str(&std::mem::take(&mut others));
        }
    }
    archive.file("modules/ports", 0o644, ports.as_bytes());
    archive.file("modules/others", 0o644, others.as_bytes());
    archive.file("init", 0o755, INIT);
    archive.file("container.sh", 0o644, CONTAINER);
    Ok(archive.finish())
}

#[cfg(test)]
mod tests;
