//! What the demo is compared with: everything is downloaded and unpacked, then the same machine boots on the directory.
//!
//! skopeo and umoci do it, umoci without the manifest of all files that it would make for a bundle. The machine has the
//! directory as Kata shows one without a snapshotter of nydus': as a share.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::Runner;
use super::image::{TAG, skopeo};
use super::registry::Registry;
use crate::command::Cmd;
use crate::debian;
use crate::error::TaskError;
use crate::workspace::{make_dir, remove};

/// What it took.
#[derive(Debug)]
pub(super) struct Download {
    pub(super) download: Duration,
    pub(super) unpack: Duration,
    /// From the start of `nydusbox` on.
    pub(super) boot: Duration,
    /// What the registry has sent.
    pub(super) sent_bytes: u64,
    /// What the files have, unpacked.
    pub(super) unpacked_bytes: u64,
}

/// Does it below `dir`. `command` is run by the directory's shell.
pub(super) fn measure(
    runner: &Runner<'_>,
    registry: &Registry,
    dir: &Path,
    command: &str,
) -> Result<Download, TaskError> {
    remove(dir)?;
    make_dir(dir)?;
    let image = busybox_image(runner, dir)?;
    let (layout, rootfs) = (dir.join("layout"), dir.join("rootfs"));
    let layout = format!("{}:{TAG}", layout.display());
    let (since, sent) = (Instant::now(), registry.sent());
    skopeo("copy --quiet --src-tls-verify=false")
        .arg(registry.reference(TAG))
        .arg(format!("oci:{layout}"))
        .output()?;
    let (download, sent_bytes) = (since.elapsed(), registry.sent() - sent);
    let since = Instant::now();
    let rootless = (!debian::is_root()).then_some("--rootless");
    Cmd::new("umoci")
        .words("raw unpack --image")
        .arg(&layout)
        .args(rootless)
        .arg(&rootfs)
        .output()?;
    let unpack = since.elapsed();
    let unpacked_bytes = size(&rootfs)?;
    let run = runner
        .run(&image)?
        .arg("--share")
        .arg(format!("{}:/mnt:ro", rootfs.display()))
        .args(["--", "/bin/busybox", "chroot", "/mnt", "/bin/sh", "-c", command]);
    // What it says was said before.
    let boot = run.streamed(
        "nydusbox run … --share target/demo/download/rootfs",
        &mut std::io::sink(),
    )?;
    remove(dir)?;
    Ok(Download {
        download,
        unpack,
        boot,
        sent_bytes,
        unpacked_bytes,
    })
}

/// An image with nothing in it but a shell that goes into the directory.
fn busybox_image(runner: &Runner<'_>, dir: &Path) -> Result<PathBuf, TaskError> {
    let (source, image) = (dir.join("busybox"), dir.join("image"));
    let bin = source.join("bin");
    make_dir(&bin)?;
    let busybox = runner.guest.join("bin/busybox");
    fs::copy(&busybox, bin.join("busybox")).map_err(|error| TaskError::io("copy", &busybox, error))?;
    Cmd::new(runner.nydusbox)
        .words("image build")
        .args([&source, &image])
        .output()?;
    Ok(image)
}

/// What the files below a directory have, in bytes.
fn size(dir: &Path) -> Result<u64, TaskError> {
    let printed = Cmd::new("du").words("--summarize --bytes").arg(dir).output()?;
    let size = printed.split_whitespace().next().unwrap_or_default();
    size.parse().map_err(TaskError::Size)
}
