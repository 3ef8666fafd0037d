//! The `nydusbox` command; called `nydusd`, it is the daemon with nydusd's command line; called `nydus-overlayfs`, it
//! is nydus-snapshotter's mount helper.

#![forbid(unsafe_code)]

mod args;
mod cache_quota;
mod commands;
mod control;
mod daemon_env;
mod data_dir;
mod error;
mod logging;
mod nydus_overlayfs;
mod nydusd;
#[cfg_attr(not(feature = "otlp"), path = "otlp/absent.rs")]
mod otlp;
mod signals;
mod state_dir;
mod supervise;

use std::ffi::OsStr;
use std::panic;
use std::path::Path;
use std::process::ExitCode;
use std::thread;

use nydusbox_rootfs::input::HELPER_NAME;

fn main() -> ExitCode {
    tell_once();
    let name = std::env::args_os().next();
    let called = name.as_deref().map(Path::new).and_then(Path::file_name);
    let called = called.and_then(OsStr::to_str).unwrap_or_default();
    if called == "nydusd" {
        nydusd::main()
    } else if called.starts_with(HELPER_NAME) {
        nydus_overlayfs::main()
    } else {
        commands::main()
    }
}

/// Where nydus' code panics on an image, the command that called it says so in its one sentence.
fn tell_once() {
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if thread::current().name() == Some(nydusbox_image::NYDUS_THREAD) {
            tracing::debug!("{info}");
        } else {
            usual(info);
        }
    }));
}
