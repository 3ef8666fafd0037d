//! `nydusbox sweep`: what crashes have left in the state directory goes.

use std::fmt::Write as _;

use clap::Args;
use nydusbox::{SweepReport, SweepVerdict, SweptSandbox};

use super::output::OutputArgs;
use crate::args::StateDirArg;
use crate::error::{ABANDONED, Failure};
use crate::state_dir::StateDir;

/// Sandboxes whose supervisor lives are left alone. The daemons of the others are killed (`adopt` keeps them),
/// their binds, sockets and directories are removed; nothing of the user's is. What could not be removed is said.
///
/// The exit code is 0 when nothing is left that is abandoned, foreign or could not be removed. With --dry-run it is 4
/// when there is something that would be removed, and 1 when there is only something that would be left.
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
    if report.is_clean() {
        return Ok(());
    }
    let abandoned = |swept: &&SweptSandbox| swept.verdict == SweepVerdict::Abandoned;
    let abandoned = report.sandboxes.iter().filter(abandoned).count();
    if args.dry_run && abandoned > 0 {
        let sandboxes = if abandoned == 1 {
            "sandbox is"
        } else {
            "sandboxes are"
        };
        return Err(Failure::plain(format!("{abandoned} {sandboxes} abandoned"))
            .hint("`nydusbox sweep` removes what is left of them, `nydusbox adopt` keeps those that live")
            .code(ABANDONED));
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
            SweepVerdict::Abandoned if !swept.leftovers.is_empty() => "not removed whole".to_owned(),
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
