//! A Debian 12 root file system as a tar archive, made once: for the demo and for tests in the microVM.

use std::path::PathBuf;

use crate::command::Cmd;
use crate::debian;
use crate::error::TaskError;
use crate::workspace::{Workspace, remove, replace};

const SUITE: &str = "bookworm";

/// The archive's path; it is made when it isn't there.
pub(crate) fn ensure(workspace: &Workspace) -> Result<PathBuf, TaskError> {
    let archive = workspace.rootfs();
    if archive.exists() {
        return Ok(archive);
    }
    debian::ensure(&[debian::ROOTFS])?;
    eprintln!("xtask: making a Debian 12 root file system (once)");
    // Without sources of the machine's own, mmdebstrap knows where Debian is.
    let sources: Vec<_> = debian::sources()?
        .into_iter()
        .filter(|source| source.contains(SUITE))
        .collect();
    let partial = archive.with_extension("partial.tar");
    remove(&partial)?;
    Cmd::new("mmdebstrap")
        .args(["--variant=minbase", SUITE])
        .arg(&partial)
        .args(sources)
        .shown()?;
    replace(&partial, &archive)?;
    Ok(archive)
}
