//! A Debian 12 root file system, made once: as an archive for the demo, unpacked for the tests that compare what a
//! guest sees with what the host has, and with more and more packages for the benchmark of images.

use std::path::{Path, PathBuf};

use crate::command::Cmd;
use crate::debian;
use crate::error::TaskError;
use crate::workspace::{Workspace, make_dir, remove, replace};

const SUITE: &str = "bookworm";
/// What the benchmark's layers bring, one above the other: about 100 MB with the root file system below, gzipped.
const LAYERS: [(&str, &str); 2] = [
    ("python", "python3"),
    ("tools", "python3,git,perl,curl,ca-certificates"),
];

/// The archive's path; it is made when it isn't there.
pub(crate) fn ensure_archive(workspace: &Workspace) -> Result<PathBuf, TaskError> {
    let archive = workspace.rootfs();
    make(&archive, None)?;
    Ok(archive)
}

/// The archive's path, and those of archives that each have more than the one before.
pub(crate) fn ensure_layered(workspace: &Workspace) -> Result<Vec<PathBuf>, TaskError> {
    let mut archives = vec![ensure_archive(workspace)?];
    for (name, packages) in LAYERS {
        let archive = workspace.rootfs_with(name);
        make(&archive, Some(packages))?;
        archives.push(archive);
    }
    Ok(archives)
}

fn make(archive: &Path, packages: Option<&str>) -> Result<(), TaskError> {
    if archive.exists() {
        return Ok(());
    }
    debian::ensure(&[debian::ROOTFS])?;
    let with = packages.map_or(String::new(), |packages| format!(" with {packages}"));
    eprintln!("xtask: making a Debian 12 root file system{with} (once)");
    // Without sources of the machine's own, mmdebstrap knows where Debian is.
    let sources: Vec<_> = debian::sources()?
        .into_iter()
        .filter(|source| source.contains(SUITE))
        .collect();
    let partial = archive.with_extension("partial.tar");
    remove(&partial)?;
    Cmd::new("mmdebstrap")
        .arg("--variant=minbase")
        .args(packages.map(|packages| format!("--include={packages}")))
        .arg(SUITE)
        .arg(&partial)
        .args(sources)
        .shown()?;
    replace(&partial, archive)
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
