//! The microVM's kernel, modules and busybox: Debian's packages, unpacked (not installed) below
//! `target/guest`.

use std::fs;
use std::path::{Path, PathBuf};

use crate::command::Cmd;
use crate::debian;
use crate::error::TaskError;
use crate::workspace::{Workspace, make_dir, remove, replace};

/// Always depends on the current kernel.
const KERNEL: &str = "linux-image-cloud-amd64";
const BUSYBOX: &str = "busybox-static";
/// Names the packages that were unpacked; written last.
const STAMP: &str = ".unpacked";

/// The directory, shaped like a root file system; it is filled when it isn't there.
pub(crate) fn ensure(workspace: &Workspace) -> Result<PathBuf, TaskError> {
    let guest = workspace.guest();
    if guest.join(STAMP).exists() {
        return Ok(guest);
    }
    eprintln!("xtask: unpacking a kernel and busybox below target/guest (once)");
    let partial = guest.with_extension("partial");
    remove(&partial)?;
    let archives = partial.join("archives");
    make_dir(&archives)?;
    debian::with_package_lists(|| download(&archives))?;

    let mut unpacked = String::new();
    for archive in files(&archives)? {
        Cmd::new("dpkg-deb")
            .arg("--extract")
            .arg(&archive)
            .arg(&partial)
            .output()?;
        let fields = Cmd::new("dpkg-deb")
            .arg("--showformat=${Package} ${Version}\n")
            .arg("--show");
        unpacked += &fields.arg(&archive).output()?;
    }
    remove(&archives)?;
    let stamp = partial.join(STAMP);
    fs::write(&stamp, &unpacked).map_err(|source| TaskError::io("write", &stamp, source))?;
    replace(&partial, &guest)?;
    eprint!("{unpacked}");
    Ok(guest)
}

fn download(to: &Path) -> Result<(), TaskError> {
    let kernel = kernel_package()?;
    // Without this option apt warns of any directory that its own user can't write to.
    debian::apt_get()
        .args(["-o", "APT::Sandbox::User=root", "download", &kernel, BUSYBOX])
        .dir(to)
        .shown()
}

fn kernel_package() -> Result<String, TaskError> {
    let depends = Cmd::new("apt-cache").args(["depends", KERNEL]).output()?;
    depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|package| package.starts_with("linux-image-"))
        .map(str::to_owned)
        .ok_or_else(|| TaskError::NoKernelPackage {
            package: KERNEL.to_owned(),
        })
}

fn files(dir: &Path) -> Result<Vec<PathBuf>, TaskError> {
    let listed = |source| TaskError::io("list", dir, source);
    fs::read_dir(dir)
        .map_err(listed)?
        .map(|entry| Ok(entry.map_err(listed)?.path()))
        .collect()
}
