//! Images from layers to the first output of a machine, measured: conversions beside nydus-image, memory, starts from
//! a registry beside pulling everything first, and prefetch that was learned.
//!
//! `material.rs` makes what is converted: layers of root file systems (`layers.rs`) in an OCI layout (`layout.rs`).
//! `convert.rs` converts it and a layer of any size, `shelf.rs` has it in a registry that takes its time, `start.rs`
//! starts from there, `learned.rs` starts again with what was recorded. `process.rs` runs programs and measures them.
//! Next: `cargo xtask bench image`, which shows the figures and says what they must reach.

mod convert;
mod layers;
mod layout;
mod learned;
mod material;
mod process;
mod shelf;
mod start;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

/// What goes wrong is told as it is; it ends the benchmark.
pub type BenchError = Box<dyn std::error::Error>;

/// How much is measured.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The command.
    pub nydusbox: PathBuf,
    /// The genuine nydus-image, if it is to be measured too.
    pub nydus_image: Option<PathBuf>,
    /// The genuine nydusd, likewise.
    pub nydusd: Option<PathBuf>,
    /// What the microVM boots from.
    pub guest_root: PathBuf,
    /// Root file systems as tar archives, each with more than the one before: a layer is what one has more.
    pub archives: Vec<PathBuf>,
    /// Where everything is made.
    pub work_dir: PathBuf,
    /// How often the image is converted by each.
    pub conversions: usize,
    /// Of how much content the layer is by which the use of memory is measured, in bytes.
    pub large_bytes: u64,
    /// How often each start is made.
    pub starts: usize,
    /// And each over a link that is slow.
    pub slow_starts: usize,
    /// What that carries, in bytes a second.
    pub slow_link: u64,
    /// What is started.
    pub commands: Vec<Start>,
    /// The one whose reads are learned.
    pub learned: Start,
    /// What a request to the registry takes.
    pub latency: Duration,
    /// And where prefetch was learned.
    pub learned_latency: Duration,
    /// The only part that is measured, if not all are.
    pub only: Option<Part>,
}

/// A command in a machine.
#[derive(Debug, Clone)]
pub struct Start {
    /// What its rows are called by.
    pub name: &'static str,
    /// It with its arguments.
    pub command: Vec<&'static str>,
    /// What it says.
    pub says: &'static str,
}

/// Prints a file of a few hundred bytes.
const OS_RELEASE: Start = Start {
    name: "os-release",
    command: Vec::new(),
    says: "Debian",
};

/// A part of the benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Conversions of the image.
    Convert,
    /// A large layer.
    Large,
    /// Starts from a registry.
    Start,
    /// Starts after one was recorded.
    Learned,
}

impl std::str::FromStr for Part {
    type Err = BenchError;

    fn from_str(name: &str) -> Result<Self, BenchError> {
        match name {
            "convert" => Ok(Self::Convert),
            "large" => Ok(Self::Large),
            "start" => Ok(Self::Start),
            "learned" => Ok(Self::Learned),
            _ => Err(format!("no part {name:?}").into()),
        }
    }
}

impl Plan {
    /// Enough for figures.
    #[must_use]
    pub fn full(nydusbox: PathBuf, guest_root: PathBuf, work_dir: PathBuf) -> Self {
        let os_release = Start {
            command: vec!["cat", "/etc/os-release"],
            ..OS_RELEASE
        };
        let python = Start {
            name: "python",
            command: vec!["python3", "-c", "import json; print(json.dumps([1, 2]))"],
            says: "[1, 2]",
        };
        Self {
            nydusbox,
            nydus_image: None,
            nydusd: None,
            guest_root,
            archives: Vec::new(),
            work_dir,
            conversions: 5,
            large_bytes: 3_000_000_000,
            starts: 5,
            slow_starts: 3,
            slow_link: 12_500_000,
            commands: vec![os_release, python.clone()],
            learned: python,
            latency: Duration::from_millis(20),
            learned_latency: Duration::from_millis(100),
            only: None,
        }
    }

    /// Enough to show that it runs, on a root file system that has a shell.
    #[must_use]
    pub fn quick(nydusbox: PathBuf, guest_root: PathBuf, work_dir: PathBuf) -> Self {
        let shell = Start {
            name: "shell",
            command: vec![
                "sh",
                "-c",
                "while read -r line; do echo \"$line\"; done </etc/os-release",
            ],
            says: "Debian",
        };
        Self {
            conversions: 1,
            large_bytes: 40_000_000,
            starts: 1,
            slow_starts: 0,
            commands: vec![shell.clone()],
            learned: shell,
            learned_latency: Duration::from_millis(20),
            ..Self::full(nydusbox, guest_root, work_dir)
        }
    }

    fn wants(&self, part: Part) -> bool {
        self.only.is_none_or(|only| only == part)
    }
}

/// All figures.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Of the report's form.
    pub version: u32,
    /// Processors of the machine.
    pub processors: usize,
    /// How often the image was converted by each.
    pub conversions: usize,
    /// How often each start was made.
    pub starts: usize,
    /// And each over a link that is slow.
    pub slow_starts: usize,
    /// What that carries, in bytes a second.
    pub slow_link: u64,
    /// What a request to the registry took, in ms.
    pub latency_ms: u128,
    /// And where prefetch was learned, in ms.
    pub learned_latency_ms: u128,
    /// The content of the large layer, in bytes.
    pub large_bytes: u64,
    /// The image.
    pub image: ImageFigures,
    /// By row, then by who was measured, each measurement.
    pub rows: Rows,
}

/// The image that is converted and started.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ImageFigures {
    /// How many layers it has.
    pub layers: usize,
    /// They as they are stored, gzipped, in bytes.
    pub compressed_bytes: u64,
    /// They as archives, in bytes.
    pub archive_bytes: u64,
}

/// By row, then by who was measured, each measurement.
pub type Rows = BTreeMap<String, BTreeMap<String, Vec<f64>>>;

/// Adds a measurement.
fn add(rows: &mut Rows, row: impl Into<String>, whose: &str, value: f64) {
    let row = rows.entry(row.into()).or_default();
    row.entry(whose.to_owned()).or_default().push(value);
}

/// Measures everything.
///
/// # Errors
/// The first thing that went wrong, or an answer that was wrong.
///
/// # Panics
/// If the registry does not start.
pub fn run(plan: &Plan) -> Result<Report, BenchError> {
    let dir = tempfile::Builder::new().prefix("nb").tempdir_in(&plan.work_dir)?;
    let mut rows = Rows::new();
    let mut image = ImageFigures::default();
    if plan.only != Some(Part::Large) {
        let layout = material::image(plan, &dir.path().join("image"))?;
        image = layout.figures();
        if plan.wants(Part::Convert) {
            let place = dir.path().join("convert");
            convert::measure(plan, &layout, "convert", plan.conversions, &place, &mut rows)?;
        }
        if plan.wants(Part::Start) {
            start::measure(plan, &layout, &dir.path().join("start"), &mut rows)?;
        }
        if plan.wants(Part::Learned) {
            learned::measure(plan, &layout, &dir.path().join("learned"), &mut rows)?;
        }
    }
    if plan.wants(Part::Large) {
        let layout = material::large(plan.large_bytes, &dir.path().join("large"))?;
        convert::measure(
            plan,
            &layout,
            "large",
            1,
            &dir.path().join("convert-large"),
            &mut rows,
        )?;
    }
    Ok(Report {
        version: 1,
        processors: std::thread::available_parallelism()?.get(),
        conversions: plan.conversions,
        starts: plan.starts,
        slow_starts: plan.slow_starts,
        slow_link: plan.slow_link,
        latency_ms: plan.latency.as_millis(),
        learned_latency_ms: plan.learned_latency.as_millis(),
        large_bytes: plan.large_bytes,
        image,
        rows,
    })
}
