//! What the kernel says about a process.

use super::BenchError;

/// A process' memory, in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Memory {
    /// Its share of everything it has mapped.
    pub(super) pss_bytes: f64,
    /// What it has written itself.
    pub(super) anonymous_bytes: f64,
}

pub(super) fn memory(pid: u32) -> Result<Memory, BenchError> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let field = |name: &str| -> Result<f64, BenchError> {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .ok_or_else(|| format!("smaps_rollup has no {name}"))?;
        let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kib * 1024.0)
    };
    Ok(Memory {
        pss_bytes: field("Pss:")?,
        anonymous_bytes: field("Pss_Anon:")?,
    })
}

/// How many descriptors it has open.
pub(super) fn open_files(pid: u32) -> Result<usize, BenchError> {
    Ok(std::fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}
