//! `nydusbox sweep`: what crashes have left in the state directory goes.

use std::fmt::Write as _;

use clap::Args;
use nydusbox::{SweepReport, SweepVerdict};

use super::output::OutputArgs;
use crate::args::StateDirArg;
use crate::error::Failure;
use crate::state_dir::StateDir;

/// Sandboxes whose supervisor lives are left alone. The daemons of the others are killed (`adopt` keeps them),
/// their binds, sockets and directories are removed; nothing of the user's is. What could not be removed is said.
#[derive(Debug, Args)]
pub(crate) struct SweepArgs {
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    pub(super) place: StateDirArg,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) fn run(args: &SweepArgs, state_dir: &StateDir) -> Result<(), Failure> {
    let dir = state_dir.path();
    let report = nydusbox::sweep(dir, args.dry_run)
        .map_err(|e| Failure::new(&format!("read the state directory {}", dir.display()), &e))?;
    args.output.print(&report, || text(&report))?;
    if args.dry_run || report.is_clean() {
        return Ok(());
    }
    Err(Failure::plain(
        "something is left that could not be removed, or is not ours to remove",
    ))
}

fn text(report: &SweepReport) -> String {
    let mut text = String::new();
    let removed = if report.dry_run {
        "would be removed"
    } else {
        "removed"
    };
    for swept in &report.sandboxes {
        let verdict = match &swept.verdict {
            SweepVerdict::InUse {
                supervisor: Some(pid),
            } => format!("in use by process {pid}"),
            SweepVerdict::InUse { supervisor: None } => "in use".to_owned(),
            SweepVerdict::Abandoned => removed.to_owned(),
            SweepVerdict::Kept { reason } => format!("kept: {reason}"),
            _ => "?".to_owned(),
        };
        let _ = writeln!(text, "sandbox {}: {verdict}", swept.id);
        for pid in &swept.processes {
            let _ = writeln!(text, "  process {pid}");
        }
        for bind in &swept.binds {
            let _ = writeln!(text, "  bind {}", bind.display());
        }
        for left in &swept.leftovers {
            let _ = writeln!(text, "  left: {left}");
        }
    }
    for path in &report.foreign {
        let _ = writeln!(text, "{}: no sandbox, left alone", path.display());
    }
    match text.trim_end() {
        "" => "nothing to sweep".to_owned(),
        text => text.to_owned(),
    }
}
