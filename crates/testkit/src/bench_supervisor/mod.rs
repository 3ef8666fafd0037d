//! What the supervisor costs: starts, mounts, stops and memory, with our daemon and nydusd in turn, beside the same
//! done by hand.
//!
//! `by_hand.rs` is the other side of the comparison: the daemon spawned and asked directly, waiting by spinning.
//! `steps.rs` measures the library, `commands.rs` the command, `cycles.rs` whether anything grows. Next:
//! `cargo xtask bench supervisor`, which shows the figures.

mod by_hand;
mod commands;
mod cycles;
mod place;
mod proc;
mod steps;

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

/// What `statfs` says of a tmpfs.
const TMPFS_MAGIC: i64 = 0x0102_1994;

/// What goes wrong is told as it is; it ends the benchmark.
pub type BenchError = Box<dyn std::error::Error>;

/// How much is measured.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The command, which has our daemon in it.
    pub nydusbox: PathBuf,
    /// The genuine nydusd, if it is to be measured too.
    pub nydusd: Option<PathBuf>,
    /// Where images are made.
    pub work_dir: PathBuf,
    /// Where sandboxes have their state: in memory, as by default.
    pub state_dir: PathBuf,
    /// How often each step is measured.
    pub rounds: usize,
    /// How many sandboxes are started at once.
    pub crowd: usize,
    /// How many cycles of mount and unmount; a tenth of them comes before the growth is looked at.
    pub cycles: usize,
    /// How long after cycles sizes are looked at: threads that wait for work differ in number, and leave after ten
    /// seconds.
    pub rest: Duration,
    /// The only part that is measured, if not all are.
    pub only: Option<Part>,
}

/// A part of the benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The library's steps, beside the same by hand.
    Steps,
    /// The commands, many sandboxes at once, and their memory.
    Commands,
    /// Whether anything grows.
    Cycles,
}

impl std::str::FromStr for Part {
    type Err = BenchError;

    fn from_str(name: &str) -> Result<Self, BenchError> {
        match name {
            "steps" => Ok(Self::Steps),
            "commands" => Ok(Self::Commands),
            "cycles" => Ok(Self::Cycles),
            _ => Err(format!("no part {name:?}").into()),
        }
    }
}

impl Plan {
    /// Enough for figures.
    #[must_use]
    pub fn full(nydusbox: PathBuf, work_dir: PathBuf) -> Self {
        Self {
            nydusbox,
            nydusd: None,
            work_dir,
            state_dir: "/dev/shm".into(),
            rounds: 50,
            crowd: 200,
            cycles: 10_000,
            rest: Duration::from_secs(12),
            only: None,
        }
    }

    /// Enough to show that it runs.
    #[must_use]
    pub fn quick(nydusbox: PathBuf, work_dir: PathBuf) -> Self {
        Self {
            rounds: 2,
            crowd: 4,
            cycles: 20,
            rest: Duration::ZERO,
            ..Self::full(nydusbox, work_dir)
        }
    }
}

/// All figures.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Processors of the machine.
    pub processors: usize,
    /// How often each step was measured.
    pub rounds: usize,
    /// Whether the sandboxes' state was in memory.
    pub state_in_memory: bool,
    /// In the order in which they are shown.
    pub rows: Vec<Row>,
}

/// One thing that was measured.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// What.
    pub what: String,
    /// In which unit.
    pub unit: &'static str,
    /// Each measurement.
    pub values: Vec<f64>,
    /// What the median must not exceed, if that is promised.
    pub at_most: Option<f64>,
}

impl Row {
    fn new(what: impl Into<String>, unit: &'static str, values: Vec<f64>) -> Self {
        Self {
            what: what.into(),
            unit,
            values,
            at_most: None,
        }
    }

    fn at_most(mut self, limit: f64) -> Self {
        self.at_most = Some(limit);
        self
    }

    fn median(&self) -> f64 {
        let mut values = self.values.clone();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

/// Measures everything.
///
/// # Errors
/// The first thing that went wrong.
pub fn run(plan: &Plan) -> Result<Report, BenchError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let wanted = |part| plan.only.is_none_or(|only| only == part);
    let mut rows = Vec::new();
    if wanted(Part::Steps) {
        rows.extend(runtime.block_on(steps::run(plan))?);
    }
    if wanted(Part::Commands) {
        rows.extend(commands::run(plan)?);
    }
    if wanted(Part::Cycles) {
        rows.extend(runtime.block_on(cycles::run(plan))?);
    }
    Ok(Report {
        processors: std::thread::available_parallelism()?.get(),
        rounds: plan.rounds,
        state_in_memory: rustix::fs::statfs(&plan.state_dir)?.f_type == TMPFS_MAGIC,
        rows,
    })
}

fn ms(since: std::time::Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}
