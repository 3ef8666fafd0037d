//! Programs that are run to their end, and what that took. Memory is what GNU time says of it: the peak of the whole
//! process, which is gone from `/proc` when it has ended.

use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::Instant;

use super::BenchError;
use crate::peers::require_program;

/// What one run took.
#[derive(Debug, Clone)]
pub(super) struct Measured {
    pub(super) seconds: f64,
    /// Resident, at its peak.
    pub(super) peak_bytes: f64,
    pub(super) stdout: String,
}

/// Runs a program under GNU time; `scratch` is a file that may be overwritten.
pub(super) fn measured<A: AsRef<OsStr>>(
    program: &Path,
    args: impl IntoIterator<Item = A>,
    scratch: &Path,
) -> Result<Measured, BenchError> {
    let mut command = Command::new(program_path("time")?);
    command.args(["--quiet", "--format=%M", "--output"]).arg(scratch);
    command.arg(program).args(args);
    let since = Instant::now();
    let stdout = output(&mut command)?;
    let seconds = since.elapsed().as_secs_f64();
    let kib: f64 = fs::read_to_string(scratch)?.trim().parse()?;
    Ok(Measured {
        seconds,
        peak_bytes: kib * 1024.0,
        stdout,
    })
}

/// Runs a program that has to succeed; what it printed.
pub(super) fn output(command: &mut Command) -> Result<String, BenchError> {
    let output = command.stdin(Stdio::null()).output()?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(failure(command, output.status, &output.stderr))
    }
}

/// Runs a program that has to succeed; when its first output came, counted from `since`, in seconds, and all of it.
pub(super) fn first_output(command: &mut Command, since: Instant) -> Result<(f64, String), BenchError> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let (Some(mut stdout), Some(mut stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return Err("no pipes".into());
    };
    let errors = thread::spawn(move || {
        let mut all = Vec::new();
        stderr.read_to_end(&mut all).map(|_| all)
    });
    let mut all = vec![0];
    let first = stdout.read(&mut all);
    let seconds = since.elapsed().as_secs_f64();
    let rest = stdout.read_to_end(&mut all);
    // Waited for whatever came of its output.
    let status = child.wait()?;
    let errors = errors.join().map_err(|_| "its errors were not read")??;
    if !status.success() || first? == 0 {
        return Err(failure(command, status, &errors));
    }
    rest?;
    Ok((seconds, String::from_utf8_lossy(&all).into_owned()))
}

/// A program that a Debian package brings.
pub(super) fn program_path(name: &str) -> Result<PathBuf, BenchError> {
    require_program(name).map_err(|skip| skip.to_string().into())
}

fn failure(command: &Command, status: ExitStatus, errors: &[u8]) -> BenchError {
    format!("{command:?}: {status}: {}", String::from_utf8_lossy(errors)).into()
}
