//! A Debian 12 root file system, made once: as an archive for the demo, and unpacked for the tests that
//! compare what a guest sees with what the host has.

use std::path::PathBuf;

use crate::command::Cmd;
use crate::debian;
use crate::error::TaskError;
use crate::workspace::{Workspace, make_dir, remove, replace};

const SUITE: &str = "bookworm";

/// The archive's path; it is made when it isn't there.
pub(crate) fn ensure_archive(workspace: &Workspace) -> Result<PathBuf, TaskError> {
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

/// The unpacked directory's path; it is made when it isn't there.
pub(crate) fn ensure_tree(workspace: &Workspace) -> Result<PathBuf, TaskError> {
    let tree = workspace.test_rootfs();
    if tree.exists() {
        return Ok(tree);
    }
    let archive = ensure_archive(workspace)?;
    let partial = tree.with_extension("partial");
    remove(&partial)?;
    make_dir(&partial)?;
    // Only root can make devices; nothing compares them.
    let devices = (!debian::is_root()).then_some("--exclude=./dev/*");
    Cmd::new("tar")
        .args(["--extract", "--preserve-permissions", "--numeric-owner"])
        .args(devices)
        .arg("--file")
        .arg(&archive)
        .arg("--directory")
        .arg(&partial)
        .shown()?;
    replace(&partial, &tree)?;
    Ok(tree)
}
