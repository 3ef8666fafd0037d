//! The executable under the name `nydus-overlayfs`, or one that begins with it: the mount helper and nothing else.
//!
//! containerd reaches it through `mount.fuse`, with nydus-snapshotter's arguments: `overlay TARGET -o OPTIONS`. Like
//! nydus-snapshotter's own helper it ends with 0 or 1. What is wrong with a command line is said without quoting
//! it, because options hold credentials.

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use nydusbox_rootfs::input::HELPER_NAME;

use crate::commands::output;
use crate::commands::overlayfs::{self, OverlayfsArgs};
use crate::error::{FAILED, Failure};

#[derive(Debug, Parser)]
#[command(
    name = HELPER_NAME,
    version,
    about = "Mounts an overlay, without the options that are meant for a runtime"
)]
struct Cli {
    #[command(flatten)]
    args: OverlayfsArgs,
}

pub(crate) fn main() -> ExitCode {
    match Cli::try_parse() {
        Ok(Cli { args }) => overlayfs::main(args),
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            match output::line(error.to_string().trim_end_matches('\n')) {
                Ok(_) => ExitCode::SUCCESS,
                Err(failure) => failure.report(FAILED),
            }
        }
        Err(error) => unreadable(&error, HELPER_NAME).report(FAILED),
    }
}

/// What is wrong with the command line of the program called `name`.
pub(crate) fn unreadable(error: &clap::Error, name: &str) -> Failure {
    Failure::plain(format!("the command line cannot be read: {}", error.kind()))
        .hint(format!("usage: {name} overlay TARGET -o OPTIONS"))
}
