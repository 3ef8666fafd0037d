//! `nydusbox doctor`: what this machine lacks for `run`, and the command that mends it.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use nydusbox_vmm::doctor::{CheckState, checks};

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
    for check in &checks {
        match &check.state {
            CheckState::Ok { detail } => println!("ok       {}: {detail}", check.name),
            CheckState::Warn { why, fix } => {
                println!("warning  {}: {why}", check.name);
                if let Some(fix) = fix {
                    println!("         mend it with: {fix}");
                }
            }
            CheckState::Missing { why, fix } => {
                println!("MISSING  {}: {why}", check.name);
                println!("         mend it with: {fix}");
            }
        }
    }
    let missing = checks.iter().filter(|c| c.is_missing()).count();
    if missing == 0 {
        println!("this machine can run microVMs");
        ExitCode::SUCCESS
    } else {
        println!(
            "{missing} of {} checks must be mended before this machine can run microVMs",
            checks.len()
        );
        ExitCode::from(FAILED)
    }
}
