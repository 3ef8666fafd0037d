//! The command as a whole, one sandbox after the other and a crowd at once.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;

use serde_json::Value;

use super::place::{Place, contenders};
use super::{BenchError, Plan, Row, ms, proc};
use crate::bench::memory::idle_pss;

const START_MS: f64 = 60.0;
const CROWD_SECONDS: f64 = 20.0;
const SANDBOX_MB: f64 = 12.0;
const MB: f64 = 1e6;
/// Memory is looked at once it is at rest, which takes longer than all else and differs less.
const MEMORY_ROUNDS: usize = 10;

pub(super) fn run(plan: &Plan) -> Result<Vec<Row>, BenchError> {
    let mut rows = Vec::new();
    let place = Place::new(plan)?;
    for contender in contenders(plan)? {
        let daemon = (!contender.ours).then(|| contender.program.exe());
        let (mut starts, mut stops) = (Vec::new(), Vec::new());
        let (mut both, mut supervisors, mut daemons) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..plan.rounds {
            let begun = Instant::now();
            let info = json(&output(&mut start(plan, &place, "s1", daemon))?)?;
            starts.push(ms(begun));
            if round < MEMORY_ROUNDS {
                let [supervisor, daemon] = processes(&info)?;
                let [supervisor, daemon] = [idle_pss(supervisor)? / MB, idle_pss(daemon)? / MB];
                supervisors.push(supervisor);
                daemons.push(daemon);
                both.push(supervisor + daemon);
            }
            let begun = Instant::now();
            output(&mut command(plan, &place, &["stop", "s1"]))?;
            stops.push(ms(begun));
        }
        let name = contender.name;
        rows.extend([
            Row::new(format!("command: start, {name}"), "ms", starts).at_most(START_MS),
            Row::new(format!("command: stop, {name}"), "ms", stops),
            Row::new(
                format!("memory of one sandbox, supervisor and {name}, Pss"),
                "MB",
                both,
            )
            .at_most(SANDBOX_MB),
            Row::new(format!("of it the supervisor, beside {name}"), "MB", supervisors),
            Row::new(format!("of it {name}"), "MB", daemons),
        ]);
    }
    for contender in contenders(plan)? {
        let daemon = (!contender.ours).then(|| contender.program.exe());
        rows.extend(crowd(plan, &place, contender.name, daemon)?);
    }
    place.assert_empty()?;
    Ok(rows)
}

/// Every start begins before the first is waited for.
fn crowd(plan: &Plan, place: &Place, name: &str, daemon: Option<&Path>) -> Result<Vec<Row>, BenchError> {
    let begun = Instant::now();
    let children: Vec<Child> = (0..plan.crowd)
        .map(|n| {
            start(plan, place, &format!("s{n}"), daemon)
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
        })
        .collect::<Result<_, _>>()?;
    let outputs: Vec<Output> = children
        .into_iter()
        .map(Child::wait_with_output)
        .collect::<Result<_, _>>()?;
    let up = begun.elapsed().as_secs_f64();
    // Stopped whatever comes of the rest.
    let memory = outputs
        .iter()
        .map(|output| pss_mb(&json(&checked(output)?)?))
        .collect::<Result<Vec<_>, _>>();
    let begun = Instant::now();
    let stopped = output(&mut command(plan, place, &["stop", "--all"]));
    let down = begun.elapsed().as_secs_f64();
    let (memory, _) = (memory?, stopped?);
    place.assert_empty()?;
    let crowd = plan.crowd;
    Ok(vec![
        Row::new(
            format!("{crowd} sandboxes started at once, all up, {name}"),
            "s",
            vec![up],
        )
        .at_most(CROWD_SECONDS),
        Row::new(
            format!("memory of each of {crowd} sandboxes, {name}, Pss"),
            "MB",
            memory,
        )
        .at_most(SANDBOX_MB),
        Row::new(
            format!("{crowd} sandboxes stopped at once, {name}"),
            "s",
            vec![down],
        ),
    ])
}

fn command(plan: &Plan, place: &Place, args: &[&str]) -> Command {
    let mut command = Command::new(&plan.nydusbox);
    command
        .args(args)
        .args(["--json", "--state-dir"])
        .arg(place.state())
        .stdin(Stdio::null());
    command
}

fn start(plan: &Plan, place: &Place, id: &str, daemon: Option<&Path>) -> Command {
    let mut command = command(plan, place, &["start", id]);
    command.arg("--share").arg(place.path("share"));
    if let Some(daemon) = daemon {
        command.arg("--daemon").arg(daemon);
    }
    command
}

fn output(command: &mut Command) -> Result<String, BenchError> {
    checked(&command.output()?)
}

fn checked(output: &Output) -> Result<String, BenchError> {
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned().into())
    }
}

fn json(text: &str) -> Result<Value, BenchError> {
    Ok(serde_json::from_str(text)?)
}

/// Supervisor and daemon together, as it is: among many, each is at rest before its turn comes.
fn pss_mb(info: &Value) -> Result<f64, BenchError> {
    let [supervisor, daemon] = processes(info)?;
    Ok((proc::memory(supervisor)?.pss_bytes + proc::memory(daemon)?.pss_bytes) / MB)
}

/// The ids of supervisor and daemon.
fn processes(info: &Value) -> Result<[u32; 2], BenchError> {
    let id = |whose: &str| -> Result<u32, BenchError> {
        let id = info[whose]["pid"].as_u64();
        Ok(u32::try_from(id.ok_or("no process id in the status")?)?)
    };
    Ok([id("supervisor")?, id("daemon")?])
}
