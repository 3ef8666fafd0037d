//! What is measured and for how long.

use std::path::PathBuf;
use std::time::Duration;

use super::driver::{Check, Wait};

/// The programs, the sizes, the times.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Our program.
    pub nydusbox: PathBuf,
    /// nydusd, if it takes part.
    pub nydusd: Option<PathBuf>,
    /// virtiofsd, if it takes part.
    pub virtiofsd: Option<PathBuf>,
    /// Below which directory data is made; removed at the end.
    pub work_dir: PathBuf,
    /// How often each load is run on each contender.
    pub rounds: usize,
    /// How long one run takes.
    pub span: Duration,
    /// Which answers are compared in full.
    pub check: Check,
    /// Small files.
    pub files: usize,
    /// Bytes of the large file; a multiple of 1 MiB, at least 8.
    pub data: usize,
    /// What the slow blob server takes for each request.
    pub delay: Duration,
    /// Only contenders whose name contains this, only rows whose name contains that.
    pub only: Filter,
}

/// Restricts what is run.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Part of a contender's name.
    pub contender: Option<String>,
    /// Part of a row's name.
    pub row: Option<String>,
}

impl Filter {
    pub(super) fn takes_contender(&self, name: &str) -> bool {
        self.contender
            .as_ref()
            .is_none_or(|part| name.contains(part.as_str()))
    }

    pub(super) fn takes_row(&self, name: &str) -> bool {
        self.row.as_ref().is_none_or(|part| name.contains(part.as_str()))
    }
}

impl Plan {
    /// The whole benchmark: some minutes.
    pub fn full(nydusbox: PathBuf, work_dir: PathBuf) -> Self {
        Self {
            nydusbox,
            nydusd: None,
            virtiofsd: None,
            work_dir,
            rounds: 7,
            span: Duration::from_millis(400),
            check: Check::Spot,
            files: 512,
            data: 64 << 20,
            delay: Duration::from_millis(100),
            only: Filter::default(),
        }
    }

    /// Shows that it runs and that every answer is right; its figures mean nothing.
    pub fn quick(nydusbox: PathBuf, work_dir: PathBuf) -> Self {
        Self {
            rounds: 1,
            span: Duration::from_millis(20),
            check: Check::Every,
            files: 64,
            data: 8 << 20,
            delay: Duration::from_millis(5),
            ..Self::full(nydusbox, work_dir)
        }
    }
}

/// What a warm load does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    Getattr,
    Lookup,
    /// READDIRPLUS of the beginning of the directory with the small files.
    List,
    /// READ of so many bytes at offsets in no order, or one after the other if it is large.
    Read(usize),
}

/// A warm load.
#[derive(Debug, Clone, Copy)]
pub(super) struct WarmRow {
    pub(super) name: &'static str,
    pub(super) work: Work,
    pub(super) depth: usize,
    pub(super) wait: Wait,
}

const fn row(name: &'static str, work: Work, depth: usize, wait: Wait) -> WarmRow {
    WarmRow {
        name,
        work,
        depth,
        wait,
    }
}

/// All warm loads.
pub(super) const WARM: [WarmRow; 9] = [
    row("getattr-1", Work::Getattr, 1, Wait::Spin),
    row("getattr-1-interrupt", Work::Getattr, 1, Wait::Interrupt),
    row("getattr-64", Work::Getattr, 64, Wait::Spin),
    row("lookup-64", Work::Lookup, 64, Wait::Spin),
    row("list-8", Work::List, 8, Wait::Spin),
    row("read-4k-1", Work::Read(4096), 1, Wait::Spin),
    row("read-4k-1-interrupt", Work::Read(4096), 1, Wait::Interrupt),
    row("read-4k-64", Work::Read(4096), 64, Wait::Spin),
    row("read-1m-8", Work::Read(1 << 20), 8, Wait::Spin),
];
