//! First output of a command whose image is in a registry: fetched as it is read, or all of it first.
//!
//! Each start has an empty cache, and the same machine boots on the same daemon, but for nydusd's row. "All first" is
//! what one does without laziness, and is measured in two ways, from the first request on: `run` of the original image,
//! which pulls and converts it before it boots; and skopeo and tar, which pull and unpack it, before an image that is
//! all there is booted. What of it is waited for the boot is said by `run --report`. Machines go on from one that was
//! booted before, all of them, but for rows that say otherwise.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use serde_json::Value;

use super::convert::{CONVERTED, convert};
use super::layout::Layout;
use super::process::{first_output, output, program_path};
use super::shelf::{Asked, Shelf, copy};
use super::{BenchError, Plan, Rows, Start, add};

const MB: f64 = 1e6;
/// The name of the image as it was, in the registry.
const ORIGINAL: &str = "original";
/// Those who start.
const OURS: &str = "nydusbox";
const CONVERT_FIRST: &str = "pull and convert first";
const UNPACK_FIRST: &str = "pull and unpack first";

/// Where machines that were booted are kept, in the data directory.
const TEMPLATES: &str = "templates";
/// With this each boots.
const BOOT_EACH: [&str; 2] = ["--template", "never"];

/// What a start was like.
#[derive(Debug, Clone, Copy)]
pub(super) struct Started {
    /// Until the first output, all in all.
    pub(super) seconds: f64,
    /// Of it the boot.
    pub(super) boot_seconds: f64,
    /// By the daemon, of the image's data, where it counts that.
    pub(super) fetched_bytes: Option<f64>,
    /// By the guest, of the image's files, likewise.
    pub(super) read_bytes: Option<f64>,
    /// Of the registry.
    pub(super) asked: Asked,
}

/// Where starts take place.
#[derive(Debug)]
pub(super) struct Ground<'a> {
    pub(super) plan: &'a Plan,
    pub(super) shelf: Shelf,
    dir: PathBuf,
}

impl<'a> Ground<'a> {
    /// In `dir`, which is made.
    pub(super) fn new(plan: &'a Plan, shelf: Shelf, dir: &Path) -> Result<Self, BenchError> {
        fs::create_dir_all(dir.join(TEMPLATES))?;
        Ok(Self {
            plan,
            shelf,
            dir: dir.to_owned(),
        })
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Boots the machine that the others go on from.
    pub(super) fn boot(&self, image: &str, start: &Start) -> Result<(), BenchError> {
        self.start(image, start, &[], |_| Ok(())).map(drop)
    }

    /// Starts a command with an empty cache, after `before` was done with an empty directory.
    pub(super) fn start(
        &self,
        image: &str,
        start: &Start,
        more: &[&str],
        before: impl FnOnce(&Path) -> Result<(), BenchError>,
    ) -> Result<Started, BenchError> {
        let place = self.path("place");
        let data = place.join("data");
        fs::create_dir_all(&data)?;
        symlink(self.path(TEMPLATES), data.join(TEMPLATES))?;
        self.shelf.forget();
        let since = Instant::now();
        before(&place)?;
        let report = place.join("report");
        let mut run = Command::new(&self.plan.nydusbox);
        run.args(["run", image, "--platform", "linux/amd64", "--guest-root"])
            .arg(&self.plan.guest_root)
            .arg("--data-dir")
            .arg(data)
            .arg("--state-dir")
            .arg(place.join("state"))
            .arg("--report")
            .arg(&report)
            .args(more)
            .arg("--")
            .args(&start.command);
        let (seconds, said) = first_output(&mut run, since)?;
        if !said.contains(start.says) {
            return Err(format!("{:?} said {said:?}", start.command).into());
        }
        let asked = self.shelf.asked();
        let report: Value = serde_json::from_slice(&fs::read(&report)?)?;
        fs::remove_dir_all(&place)?;
        let boot_ms = report["boot_ms"].as_f64().ok_or("the report has no boot")?;
        Ok(Started {
            seconds,
            boot_seconds: boot_ms / 1e3,
            fetched_bytes: report["bytes_read_backend"].as_f64(),
            read_bytes: report["bytes_read_guest"].as_f64(),
            asked,
        })
    }
}

/// Measures every command of the plan, in `dir`, which is made.
pub(super) fn measure(plan: &Plan, layout: &Layout, dir: &Path, rows: &mut Rows) -> Result<(), BenchError> {
    let ground = Ground::new(plan, Shelf::new(plan.latency)?, dir)?;
    let layout = layout.linked(&ground.path("layout"))?;
    convert(&plan.nydusbox, &layout, "native", dir)?;
    ground.shelf.put(&layout.original(), ORIGINAL)?;
    ground.shelf.put(&layout.tagged(CONVERTED), CONVERTED)?;
    let (converted, original) = (ground.shelf.name(CONVERTED), ground.shelf.name(ORIGINAL));
    let nydusd = plan.nydusd.as_ref().map(|path| path.display().to_string());
    let lazily = |start: &Start, more: &[&str]| ground.start(&converted, start, more, |_| Ok(()));
    let convert_first = |start: &Start| ground.start(&original, start, &[], |_| Ok(()));
    let local = layout.tagged(CONVERTED);
    let unpack_first = |start: &Start, more: &[&str]| {
        ground.start(&local, start, more, |place| unpack(&original, &layout, place))
    };
    if let Some(start) = plan.commands.first() {
        ground.boot(&local, start)?;
    }
    for _ in 0..plan.starts {
        for start in &plan.commands {
            note_lazy(rows, start, OURS, lazily(start, &[])?);
            if let Some(nydusd) = &nydusd {
                note_lazy(rows, start, "nydusd", lazily(start, &["--daemon", nydusd])?);
            }
            note(rows, start, CONVERT_FIRST, convert_first(start)?);
            note(rows, start, UNPACK_FIRST, unpack_first(start, &[])?);
            let row = format!("start-{}-booting-seconds", start.name);
            add(rows, &*row, OURS, lazily(start, &BOOT_EACH)?.seconds);
            add(
                rows,
                &*row,
                UNPACK_FIRST,
                unpack_first(start, &BOOT_EACH)?.seconds,
            );
        }
    }
    ground.shelf.behave(plan.latency, Some(plan.slow_link));
    for _ in 0..plan.slow_starts {
        for start in &plan.commands {
            let row = format!("start-{}-slow-seconds", start.name);
            add(rows, &*row, OURS, lazily(start, &[])?.seconds);
            add(rows, &*row, CONVERT_FIRST, convert_first(start)?.seconds);
            add(rows, &*row, UNPACK_FIRST, unpack_first(start, &[])?.seconds);
        }
    }
    Ok(())
}

/// Pulls an image with skopeo and unpacks its layers with tar.
fn unpack(image: &str, layout: &Layout, place: &Path) -> Result<(), BenchError> {
    let pulled = place.join("pulled");
    copy(image, &format!("oci:{}:pulled", pulled.display()))?;
    let root = place.join("root");
    fs::create_dir_all(&root)?;
    for layer in layout.layers() {
        let file = pulled.join("blobs/sha256").join(&layer.digest);
        let mut tar = Command::new(program_path("tar")?);
        tar.args(["--extract", "--gzip", "--exclude=./dev/*", "--file"]);
        output(tar.arg(file).arg("--directory").arg(&root))?;
    }
    Ok(())
}

fn note(rows: &mut Rows, start: &Start, whose: &str, started: Started) {
    let row = |what: &str| format!("start-{}-{what}", start.name);
    add(rows, row("seconds"), whose, started.seconds);
    add(rows, row("boot"), whose, started.boot_seconds);
    let rest = started.seconds - started.boot_seconds;
    add(rows, row("rest"), whose, rest);
}

fn note_lazy(rows: &mut Rows, start: &Start, whose: &str, started: Started) {
    note(rows, start, whose, started);
    let row = |what: &str| format!("start-{}-{what}", start.name);
    let (bytes, requests) = (started.asked.bytes as f64, started.asked.requests as f64);
    if let (Some(read), Some(fetched)) = (started.read_bytes, started.fetched_bytes) {
        add(rows, row("read"), whose, read / MB);
        add(rows, row("fetched"), whose, fetched / MB);
        add(rows, row("fetched-of-read"), whose, fetched / read);
        add(rows, row("sent-of-read"), whose, bytes / read);
    }
    add(rows, row("sent"), whose, bytes / MB);
    add(rows, row("requests"), whose, requests);
}
