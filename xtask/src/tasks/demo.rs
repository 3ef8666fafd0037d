//! The demo: from a registry to a Debian userland in a microVM, its root file system fetched as it is read.
//!
//! Only starts programs and shows what they did. `demo/registry.rs` has the registry, `demo/image.rs` what is in it,
//! `demo/download.rs` what this is compared with, `demo/table.rs` the table at the end.

mod download;
mod image;
mod registry;
mod table;

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

use registry::Registry;
use table::Figures;

use crate::command::Cmd;
use crate::debian;
use crate::error::TaskError;
use crate::rootfs;
use crate::tasks::guest;
use crate::workspace::{Workspace, make_dir, remove};

/// What the guest runs then. The share is at /share, where `nydusbox run` puts it.
const SCRIPT: &str = r#"
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

/// What is compared: the same words, by whichever way the shell has come.
const FIRST_WORDS: &str = "echo '--- cat /etc/os-release'; cat /etc/os-release";

pub(crate) fn run(workspace: &Workspace) -> Result<(), TaskError> {
    debian::ensure(&[debian::BUILD, debian::VM, debian::ROOTFS, debian::IMAGES])?;
    let demo = workspace.demo();
    let storage = demo.join("registry");
    make_dir(&storage)?;
    let registry = Registry::start(&storage)?;
    let (guest, archive) = provide(workspace, image::size(&registry).is_err())?;
    if let Some(archive) = archive {
        image::push(&archive, &demo.join("layout"), &registry)?;
    }
    let runner = Runner {
        nydusbox: &workspace.release_binary(),
        guest: &guest,
        data: &demo.join("data"),
    };

    let since = Instant::now();
    let converted = image::convert(runner.nydusbox, &registry)?;
    let convert = since.elapsed();

    // Where guests are emulated, it boots, unless an earlier demo has; the others go on from it.
    let first = runner.run(&converted)?.args(["--", "true"]);
    let first_run = first.streamed(&format!("nydusbox run {converted} -- true"), &mut io::stdout())?;

    let (share, report) = (demo.join("share"), demo.join("report.json"));
    remove(&share)?;
    make_dir(&share)?;
    write(&share.join("from-host"), "written on the host\n")?;
    remove(&report)?;
    let sent = registry.sent();
    let run = runner.run(&converted)?;
    let first_output = run
        .arg("--share")
        .arg(&share)
        .arg("--report")
        .arg(&report)
        .args(["--", "sh", "-c", &format!("set -e; {FIRST_WORDS}; {SCRIPT}")])
        .streamed(
            &format!("nydusbox run {converted} --share target/demo/share -- sh -c '...'"),
            &mut io::stdout(),
        )?;
    let sent_bytes = registry.sent() - sent;
    println!("--- on the host: cat target/demo/share/from-guest");
    print!("{}", read(&share.join("from-guest"))?);

    let download = download::measure(&runner, &registry, &demo.join("download"), FIRST_WORDS)?;
    let report =
        serde_json::from_str(&read(&report)?).map_err(|source| TaskError::Report { path: report, source })?;
    let figures = Figures {
        convert,
        first_run,
        report,
        first_output,
        sent_bytes,
        download,
        packed_bytes: image::size(&registry)?,
    };
    print!("\n{figures}");
    Ok(())
}

/// Runs the command that was built; each time with nothing in its cache and no image.
#[derive(Debug)]
struct Runner<'a> {
    nydusbox: &'a Path,
    guest: &'a Path,
    data: &'a Path,
}

impl Runner<'_> {
    /// `nydusbox run` on an image, so far without a command; it ends with this program.
    fn run(&self, image: impl AsRef<OsStr>) -> Result<Cmd, TaskError> {
        for had in ["cache", "images", "run"] {
            remove(&self.data.join(had))?;
        }
        Ok(Cmd::new("setpriv")
            .args(["--pdeathsig", "TERM", "--"])
            .arg(self.nydusbox)
            .arg("run")
            .arg(image)
            .arg("--guest-root")
            .arg(self.guest)
            .arg("--data-dir")
            .arg(self.data))
    }
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
