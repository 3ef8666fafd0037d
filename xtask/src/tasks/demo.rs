//! The demo: a Debian userland in a microVM, its root file system fetched as it is read.
//!
//! Only starts programs and shows what they did; the table at its end is in `demo/table.rs`.

mod table;

use std::fs;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::thread;

use table::Report;

use crate::command::Cmd;
use crate::debian;
use crate::error::TaskError;
use crate::rootfs;
use crate::tasks::guest;
use crate::workspace::{Workspace, make_dir, remove};

/// What the guest runs. The share is at /share, where `nydusbox run` puts it.
const SCRIPT: &str = r#"
set -e
echo "--- cat /etc/os-release"
cat /etc/os-release
echo "--- the root file system, as the guest's kernel sees it"
uname -sr
grep ' / ' /proc/mounts
echo "--- a perl line that loads a few dozen files"
perl -MPOSIX -MFile::Find -MFile::Temp -MFile::Copy -MStorable -MEncode -MGetopt::Long -MIO::Socket::INET \
    -MData::Dumper -MDigest::SHA -MTime::Local -MText::Wrap \
    -e 'printf "perl %vd has loaded %d files\n", $^V, scalar keys %INC'
echo "--- a write into the overlay"
echo "written in the guest" > /etc/nydusbox-note
cat /etc/nydusbox-note
echo "--- a read from the share"
cat /share/from-host
echo "--- a write into the share"
echo "written by the guest, whose kernel is $(uname -r)" > /share/from-guest
"#;

pub(crate) fn run(workspace: &Workspace) -> Result<(), TaskError> {
    debian::ensure(&[debian::BUILD, debian::VM, debian::ROOTFS])?;
    let demo = workspace.demo();
    let image = demo.join("image");
    let (guest, rootfs) = provide(workspace, !image.exists())?;
    let nydusbox = workspace.release_binary();
    make_dir(&demo)?;
    if let Some(rootfs) = rootfs {
        Cmd::new(&nydusbox)
            .words("image build")
            .arg(&rootfs)
            .arg(&image)
            .shown()?;
    }

    let share = demo.join("share");
    remove(&share)?;
    make_dir(&share)?;
    write(&share.join("from-host"), "written on the host\n")?;
    // Or the second run would find in the cache all that the first one fetched.
    let data = demo.join("data");
    remove(&data)?;
    let report = demo.join("report.json");
    remove(&report)?;
    Cmd::new(&nydusbox)
        .arg("run")
        .arg(&image)
        .arg("--share")
        .arg(&share)
        .arg("--guest-root")
        .arg(&guest)
        .arg("--data-dir")
        .arg(&data)
        .arg("--report")
        .arg(&report)
        .args(["--", "sh", "-c", SCRIPT])
        .shown_as("nydusbox run target/demo/image --share target/demo/share -- sh -c '...'")?;

    println!("--- on the host: cat target/demo/share/from-guest");
    print!("{}", read(&share.join("from-guest"))?);
    let report: Report =
        serde_json::from_str(&read(&report)?).map_err(|source| TaskError::Report { path: report, source })?;
    print!("\n{report}");
    Ok(())
}

/// Builds the command and, meanwhile, makes what the machine consists of: the one waits for the processors, the
/// other for the network. The guest's directory, and the root file system where one is wanted.
fn provide(workspace: &Workspace, want_rootfs: bool) -> Result<(PathBuf, Option<PathBuf>), TaskError> {
    thread::scope(|scope| {
        let machine = scope.spawn(|| -> Result<_, TaskError> {
            let rootfs = want_rootfs
                .then(|| rootfs::ensure_archive(workspace))
                .transpose()?;
            Ok((guest::ensure(workspace)?, rootfs))
        });
        let built = Cmd::cargo()
            .words("build --release --locked --package nydusbox-cli")
            .dir(workspace.root())
            .shown();
        let machine = machine.join().unwrap_or_else(|panic| resume_unwind(panic));
        built?;
        machine
    })
}

fn write(path: &Path, text: &str) -> Result<(), TaskError> {
    fs::write(path, text).map_err(|source| TaskError::io("write", path, source))
}

fn read(path: &Path) -> Result<String, TaskError> {
    fs::read_to_string(path).map_err(|source| TaskError::io("read", path, source))
}
