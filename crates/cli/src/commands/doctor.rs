//! `nydusbox doctor`: what this machine lacks for `run`, and the command that mends it.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use nydusbox_vmm::doctor::{Check, CheckState, checks};

use super::output;
use crate::error::FAILED;

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Directory below which the guest's kernel, modules and busybox are looked for
    #[arg(long, value_name = "DIR", default_value = "/", env = "NYDUSBOX_GUEST_ROOT")]
    guest_root: PathBuf,
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "every command takes its arguments by value"
)]
pub(crate) fn main(args: DoctorArgs) -> ExitCode {
    let checks = checks(&args.guest_root);
    let mut lines: Vec<_> = checks.iter().flat_map(lines_of).collect();
    let missing = checks.iter().filter(|c| c.is_missing()).count();
    lines.push(match missing {
        0 => "this machine can run microVMs".to_owned(),
        _ => format!(
            "{missing} of {} checks must be mended before this machine can run microVMs",
            checks.len()
        ),
    });
    match output::line(&lines.join("\n")) {
        Ok(_) if missing == 0 => ExitCode::SUCCESS,
        Ok(_) => ExitCode::from(FAILED),
        Err(failure) => failure.exit(),
    }
}

fn lines_of(check: &Check) -> Vec<String> {
    let (word, text, fix) = match &check.state {
        CheckState::Ok { detail } => ("ok     ", detail, None),
        CheckState::Warn { why, fix } => ("warning", why, fix.as_ref()),
        CheckState::Missing { why, fix } => ("MISSING", why, Some(fix)),
    };
    let found = format!("{word}  {}: {text}", check.name);
    let mend = fix.map(|fix| format!("         mend it with: {fix}"));
    std::iter::once(found).chain(mend).collect()
}
