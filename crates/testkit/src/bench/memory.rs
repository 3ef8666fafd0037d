//! What a process takes, from /proc.

use std::fs;
use std::io;

use super::BenchError;

/// The proportional set size of a process, in bytes.
pub(super) fn pss(pid: u32) -> Result<f64, BenchError> {
    let os = |source| BenchError::Os {
        what: "read smaps_rollup",
        source,
    };
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).map_err(os)?;
    text.lines()
        .find_map(|line| {
            line.strip_prefix("Pss:")?
                .split_whitespace()
                .next()?
                .parse::<f64>()
                .ok()
        })
        .map(|kib| kib * 1024.0)
        .ok_or_else(|| os(io::ErrorKind::InvalidData.into()))
}
