//! When each step of a run was done.

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::error::say;

/// The report of a run, as written by `--report`.
#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    /// Until the image was here: its bootstrap, or all of it converted.
    pub(super) image_ms: f64,
    pub(super) sandbox_start_ms: f64,
    pub(super) mounts: Vec<MountTime>,
    /// Until the command started, once all else was there: what of the boot was waited for.
    pub(super) boot_ms: f64,
    pub(super) command_ms: f64,
    /// VMM, daemon, mounts and directories.
    pub(super) stop_ms: f64,
    /// What was fetched from where the blobs are, in bytes.
    pub(super) bytes_read_backend: Option<u64>,
    /// What the guest read from the image, in bytes.
    pub(super) bytes_read_guest: Option<u64>,
    /// The image's data as it is stored, in bytes.
    pub(super) image_bytes: u64,
}

/// One mount of a [`Report`].
#[derive(Debug, Serialize)]
pub(super) struct MountTime {
    pub(super) mountpoint: String,
    pub(super) ms: f64,
}

/// Times the steps and, when asked to, says each on stderr.
#[derive(Debug, Clone)]
pub(super) struct Timeline {
    started: Instant,
    verbose: bool,
}

impl Timeline {
    pub(super) fn new(verbose: bool) -> Self {
        Self {
            started: Instant::now(),
            verbose,
        }
    }

    /// Says that a step is done, and how long it took.
    pub(super) fn step(&self, what: &str, since: Instant) -> f64 {
        let took = ms(since.elapsed());
        if self.verbose {
            let at = ms(self.started.elapsed());
            say(format_args!("[{at:9.1} ms] {what} ({took:.1} ms)"));
        }
        took
    }
}

pub(super) fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
