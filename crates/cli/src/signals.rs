//! The signals that have a command end in order, undoing what it has begun, and the one that a daemon outlives.

use std::ffi::c_int;
use std::sync::Arc;
use std::{fs, io};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};

/// Ctrl-C, SIGTERM, and that the terminal goes away, unless this process was started to outlive it (`nohup`).
pub(crate) fn ending() -> impl Iterator<Item = c_int> {
    // Asking for a signal's action takes `unsafe`. What is watched for is not ignored any longer; so what is ignored
    // still was when this process began.
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let outlives = is_ignored(SIGHUP, &status);
    [SIGINT, SIGTERM].into_iter().chain((!outlives).then_some(SIGHUP))
}

/// From now on, what would make a file longer than this process may (`ulimit -f`) fails with EFBIG, where it would end the
/// process. Caught rather than ignored: programs that this process starts have the signal as it was.
///
/// # Errors
/// What the system said.
pub(crate) fn outlive_file_limit() -> io::Result<()> {
    signal_hook::flag::register(SIGXFSZ, Arc::default()).map(drop)
}

/// Whether a process with this `/proc/PID/status` ignores `signal`.
fn is_ignored(signal: c_int, status: &str) -> bool {
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    ignored.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_ignored_if_its_bit_is_set() {
        let status = |mask| format!("Name:\tx\nSigBlk:\tffffffffffffffff\nSigIgn:\t{mask}\nSigCgt:\t0\n");
        assert!(is_ignored(SIGHUP, &status("0000000000000001")));
        assert!(is_ignored(SIGTERM, &status("0000000000005000")));
        assert!(!is_ignored(SIGHUP, &status("0000000000005000")));
        assert!(!is_ignored(SIGHUP, &status("")));
        assert!(!is_ignored(SIGHUP, ""));
    }
}
