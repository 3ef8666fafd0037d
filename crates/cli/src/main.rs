//! The `nydusbox` command; called `nydusd`, it is the daemon with nydusd's command line.

#![forbid(unsafe_code)]

mod args;
mod commands;
mod control;
mod error;
mod logging;
mod nydusd;
mod state_dir;
mod supervise;

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let name = std::env::args_os().next();
    let called = name.as_deref().map(Path::new).and_then(Path::file_name);
    if called.is_some_and(|n| n == "nydusd") {
        nydusd::main()
    } else {
        commands::main()
    }
}
