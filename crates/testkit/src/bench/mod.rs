//! The benchmark of the data path: our daemon, nydusd and virtiofsd side by side under the same load.
//!
//! ```text
//! plan       what is measured, for how long
//!   dataset    the files, the image made of them
//!   contender  a daemon with its guest
//!   warm       the loads that touch no backend, all contenders in turn, round after round
//!   cold       the loads that wait for a slow blob server
//!   memory     what an idle daemon takes
//!     driver     the guest under load; call, histogram
//!   report     what came of it, as written to JSON
//! ```
//! `cargo xtask bench data` runs [`run`] in a release build and draws the table and the picture. Contents are
//! checked in every run; a figure of a wrong answer is no figure.

pub mod call;
mod cold;
mod contender;
mod dataset;
pub mod driver;
pub mod histogram;
pub(crate) mod memory;
mod null;
pub mod plan;
pub mod report;
mod warm;

use std::io;

pub use plan::Plan;
pub use report::Report;

use crate::guest::FuseError;
use driver::DriveError;

/// Why a benchmark could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BenchError {
    /// The files or the image could not be made.
    #[error("make the data that is read")]
    Dataset(#[source] io::Error),
    /// A daemon did not start, or did not mount.
    #[error("start {contender}")]
    Start {
        /// Which.
        contender: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A guest could not prepare.
    #[error("prepare the guest of {contender}")]
    Prepare {
        /// Which.
        contender: String,
        /// Why.
        #[source]
        source: FuseError,
    },
    /// A run failed.
    #[error("{row} on {contender}")]
    Run {
        /// What was measured.
        row: &'static str,
        /// Which.
        contender: String,
        /// Why.
        #[source]
        source: DriveError,
    },
    /// Something of the operating system.
    #[error("{what}")]
    Os {
        /// The call.
        what: &'static str,
        /// Its errno.
        #[source]
        source: io::Error,
    },
}

/// The rows of a whole benchmark, in no order.
pub fn rows() -> impl Iterator<Item = &'static str> {
    plan::WARM
        .iter()
        .map(|row| row.name)
        .chain([warm::IDLE])
        .chain(cold::ROWS)
}

/// Measures what the plan says.
///
/// # Errors
/// [`BenchError`] at the first daemon that fails or answers wrongly.
pub fn run(plan: &Plan) -> Result<Report, BenchError> {
    let os = |what| move |source| BenchError::Os { what, source };
    let dir = tempfile::Builder::new()
        .prefix("nydusbox-bench-")
        .tempdir_in(&plan.work_dir)
        .map_err(os("make a directory"))?;
    let dataset = dataset::Dataset::make(plan, dir.path()).map_err(BenchError::Dataset)?;
    let mut report = Report::new(plan);
    report.driver_ceiling = null::ceiling(plan)?;
    warm::measure(plan, &dataset, dir.path(), &mut report)?;
    cold::measure(plan, &dataset, dir.path(), &mut report)?;
    Ok(report)
}
