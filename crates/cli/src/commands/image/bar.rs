//! What commands on images share: a progress bar, and Ctrl-C that ends them in order.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use indicatif::{ProgressBar, ProgressStyle};
use nydusbox_image::{Note, Phase, Progress};

use crate::error::{Failure, say};
use crate::signals;

/// A flag that Ctrl-C, SIGTERM and SIGHUP set, so that a build ends in order and leaves nothing behind.
pub(in crate::commands) fn cancelled_by_signals() -> Result<Arc<AtomicBool>, Failure> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in signals::ending() {
        signal_hook::flag::register(signal, Arc::clone(&flag))
            .map_err(|e| Failure::new("watch for signals", &e))?;
    }
    Ok(flag)
}

/// After [`cancelled_by_signals`]: from now on signals do what they do by themselves.
pub(in crate::commands) fn signals_end_it_again() -> Result<(), Failure> {
    for signal in signals::ending() {
        signal_hook::flag::register_conditional_default(signal, Arc::new(AtomicBool::new(true)))
            .map_err(|e| Failure::new("watch for signals", &e))?;
    }
    Ok(())
}

const WAITING: &str = "waiting for another process that fetches, converts or removes images";

/// A progress bar on stderr; invisible when that is not a terminal.
pub(in crate::commands) struct Bar {
    bar: OnceLock<ProgressBar>,
    cancelled: Arc<AtomicBool>,
}

impl Bar {
    pub(in crate::commands) fn new(cancelled: Arc<AtomicBool>) -> Self {
        Self {
            bar: OnceLock::new(),
            cancelled,
        }
    }

    fn bar(&self) -> &ProgressBar {
        self.bar.get_or_init(ProgressBar::no_length)
    }

    pub(in crate::commands) fn clear(&self) {
        self.bar().finish_and_clear();
    }
}

impl Progress for Bar {
    fn begin(&self, phase: Phase, total: Option<u64>) {
        let (word, template) = match phase {
            Phase::Wait => (WAITING, "{msg} {spinner}"),
            Phase::Scan => ("scanning", "{msg} {human_pos} entries"),
            Phase::Data => (
                "building",
                "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
            ),
            Phase::Send => (
                "sending",
                "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
            ),
            _ => ("finishing", "{msg} {spinner}"),
        };
        let bar = self.bar();
        if phase == Phase::Wait && bar.is_hidden() {
            // Nobody would know why nothing happens.
            say(format_args!("{WAITING}"));
        }
        // The templates are constants; one that did not parse would leave the default look.
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(word);
        bar.set_position(0);
        if let Some(total) = total {
            bar.set_length(total);
        }
    }

    fn position(&self, position: u64) {
        self.bar().set_position(position);
    }

    fn note(&self, note: &Note) {
        self.bar().suspend(|| say(format_args!("note: {note}")));
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}
