//! Measures images and prints the figures as JSON. Started by `cargo xtask bench image`.

use std::env;
use std::path::PathBuf;
use std::process::ExitCode;

use nydusbox_testkit::bench_image::{BenchError, Plan, run};

fn main() -> ExitCode {
    match measure() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-image: {error}");
            ExitCode::FAILURE
        }
    }
}

/// `bench-image [quick] [NAME=VALUE]...`; the names are those of the plan's fields, `archive` may be repeated.
fn measure() -> Result<(), BenchError> {
    let mut plan = Plan::full(PathBuf::from("nydusbox"), PathBuf::from("/"), env::temp_dir());
    for arg in env::args().skip(1) {
        let (name, value) = arg.split_once('=').unwrap_or((&arg, ""));
        match name {
            "quick" => plan = Plan::quick(plan.nydusbox, plan.guest_root, plan.work_dir),
            "nydusbox" => plan.nydusbox = value.into(),
            "nydus-image" => plan.nydus_image = Some(value.into()),
            "nydusd" => plan.nydusd = Some(value.into()),
            "guest-root" => plan.guest_root = value.into(),
            "work-dir" => plan.work_dir = value.into(),
            "archive" => plan.archives.push(value.into()),
            "conversions" => plan.conversions = value.parse()?,
            "starts" => plan.starts = value.parse()?,
            "slow-starts" => plan.slow_starts = value.parse()?,
            "slow-link" => plan.slow_link = value.parse()?,
            "large-bytes" => plan.large_bytes = value.parse()?,
            "only" => plan.only = Some(value.parse()?),
            _ => return Err(format!("unknown argument {arg:?}").into()),
        }
    }
    println!("{}", serde_json::to_string_pretty(&run(&plan)?)?);
    Ok(())
}
