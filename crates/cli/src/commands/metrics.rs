//! `nydusbox metrics`: what a sandbox's daemon has counted, as Prometheus reads it.

use std::time::Duration;

use clap::Args;
use hyper::StatusCode;
use nydusbox_protocol::{Endpoint, SandboxId};

use super::{block_on, output};
use crate::args::StateDirArg;
use crate::control::wire::{self, SandboxInfo};
use crate::control::{Client, ask_daemon_for_text};
use crate::error::Failure;
use crate::state_dir::StateDir;

/// How long the daemon may take. It takes a few milliseconds with 255 mounts.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);

/// The same that a scrape of the daemon's API socket gives (GET /metrics). For a node exporter's textfile directory,
/// write it beside the file and rename it.
#[derive(Debug, Args)]
pub(crate) struct MetricsArgs {
    /// Sandbox whose daemon's figures to print
    id: SandboxId,
    #[command(flatten)]
    pub(super) place: StateDirArg,
}

pub(crate) fn run(args: &MetricsArgs, state_dir: &StateDir) -> Result<(), Failure> {
    let id = &args.id;
    let answer = block_on(async {
        let info: SandboxInfo = Client::of(state_dir, id).await?.get(wire::SANDBOX).await?;
        let Some(sockets) = info.sockets else {
            return Ok(None);
        };
        let asked = ask_daemon_for_text(&sockets.api, Endpoint::Prometheus.path());
        Ok(tokio::time::timeout(ANSWERS_WITHIN, asked).await.ok().flatten())
    })?;
    match answer {
        Some((StatusCode::OK, text)) => output::line(String::from_utf8_lossy(&text).trim_end()).map(drop),
        Some((StatusCode::NOT_FOUND, _)) => Err(Failure::plain(format!(
            "the daemon of sandbox {id} has no figures for Prometheus"
        ))
        .hint("a stock nydusd has none")),
        Some((status, _)) => Err(Failure::plain(format!(
            "the daemon of sandbox {id} answers with status {status}"
        ))),
        None => Err(Failure::plain(format!(
            "the daemon of sandbox {id} does not answer"
        ))),
    }
}
