//! Measures the supervisor and prints the figures as JSON. Started by `cargo xtask bench supervisor`.

use std::env;
use std::path::PathBuf;
use std::process::ExitCode;

use nydusbox_testkit::bench_supervisor::{BenchError, Plan, run};

fn main() -> ExitCode {
    match measure() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-supervisor: {error}");
            ExitCode::FAILURE
        }
    }
}

/// `bench-supervisor [quick] [NAME=VALUE]...`; the names are those of the plan's fields.
fn measure() -> Result<(), BenchError> {
    let mut plan = Plan::full(PathBuf::from("nydusbox"), env::temp_dir());
    for arg in env::args().skip(1) {
        let (name, value) = arg.split_once('=').unwrap_or((&arg, ""));
        match name {
            "quick" => plan = Plan::quick(plan.nydusbox, plan.work_dir),
            "nydusbox" => plan.nydusbox = value.into(),
            "nydusd" => plan.nydusd = Some(value.into()),
            "work-dir" => plan.work_dir = value.into(),
            "state-dir" => plan.state_dir = value.into(),
            "rounds" => plan.rounds = value.parse()?,
            "crowd" => plan.crowd = value.parse()?,
            "only" => plan.only = Some(value.parse()?),
            "cycles" => plan.cycles = value.parse()?,
            _ => return Err(format!("unknown argument {arg:?}").into()),
        }
    }
    println!("{}", serde_json::to_string_pretty(&run(&plan)?)?);
    Ok(())
}
