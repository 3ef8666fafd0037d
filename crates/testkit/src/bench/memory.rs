//! What a process takes, from /proc.

use std::fs;
use std::io;
use std::thread;
use std::time::Duration;

use super::BenchError;

/// A daemon is idle when its memory has not changed for so long.
const CALM: Duration = Duration::from_millis(300);
/// Looks at a daemon that never comes to rest.
const MOST_LOOKS: usize = 30;

/// The proportional set size of a process that has come to rest, in bytes.
pub(crate) fn idle_pss(pid: u32) -> Result<f64, BenchError> {
    let mut before = pss(pid)?;
    for _ in 0..MOST_LOOKS {
        thread::sleep(CALM);
        let now = pss(pid)?;
        #[expect(
            clippy::float_cmp,
            reason = "whole numbers of KiB, and the question is whether nothing moved"
        )]
        if now == before {
            break;
        }
        before = now;
    }
    Ok(before)
}

fn pss(pid: u32) -> Result<f64, BenchError> {
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
