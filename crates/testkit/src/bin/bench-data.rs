//! Measures the daemons it is given and prints the figures as JSON. Started by `cargo xtask bench data`.

use std::env;
use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use nydusbox_testkit::bench::{self, Plan};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut text = error.to_string();
            let mut next = error.source();
            while let Some(cause) = next {
                text.push_str(": ");
                text.push_str(&cause.to_string());
                next = cause.source();
            }
            eprintln!("bench-data: {text}");
            ExitCode::FAILURE
        }
    }
}

/// `bench-data [quick] [NAME=VALUE]...`; the names are those of the plan's fields.
fn run() -> Result<(), Box<dyn Error>> {
    let mut plan = Plan::full(PathBuf::from("nydusbox"), env::temp_dir());
    for arg in env::args().skip(1) {
        let (name, value) = arg.split_once('=').unwrap_or((&arg, ""));
        match name {
            "quick" => plan = Plan::quick(plan.nydusbox, plan.work_dir),
            "nydusbox" => plan.nydusbox = value.into(),
            "nydusd" => plan.nydusd = Some(value.into()),
            "virtiofsd" => plan.virtiofsd = Some(value.into()),
            "work-dir" => plan.work_dir = value.into(),
            "rounds" => plan.rounds = value.parse()?,
            "span-ms" => plan.span = std::time::Duration::from_millis(value.parse()?),
            "contender" => plan.only.contender = Some(value.to_owned()),
            "row" => plan.only.row = Some(value.to_owned()),
            _ => return Err(format!("unknown argument {arg:?}").into()),
        }
    }
    let report = bench::run(&plan)?;
    println!("{}", serde_json::to_string_pretty(&report)?);
    Ok(())
}
