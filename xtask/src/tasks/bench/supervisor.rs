//! `cargo xtask bench supervisor`: runs the testkit's benchmark of the supervisor and shows its figures as a table.

use std::fmt::Write as _;
use std::path::Path;

use clap::Args;
use serde::Deserialize;

use super::report::Spread;
use super::table::number;
use super::write;
use crate::command::Cmd;
use crate::error::TaskError;
use crate::workspace::{Workspace, make_dir};

#[derive(Debug, Args)]
pub(crate) struct SupervisorArgs {
    /// Show only that it runs; nothing is written
    #[arg(long)]
    quick: bool,
    /// How often each step is measured
    #[arg(long, value_name = "NUMBER")]
    rounds: Option<usize>,
    /// How many sandboxes are started at once
    #[arg(long, value_name = "NUMBER")]
    crowd: Option<usize>,
    /// How many cycles of mount and unmount are looked at for growth
    #[arg(long, value_name = "NUMBER")]
    cycles: Option<usize>,
    /// Measure only this part; nothing is written
    #[arg(long, value_name = "PART", value_parser = ["steps", "commands", "cycles"])]
    only: Option<String>,
}

/// The figures as the benchmark writes them.
#[derive(Debug, Deserialize)]
struct Figures {
    processors: usize,
    rounds: usize,
    state_in_memory: bool,
    rows: Vec<Row>,
}

#[derive(Debug, Deserialize)]
struct Row {
    what: String,
    unit: String,
    values: Vec<f64>,
    at_most: Option<f64>,
}

pub(super) fn run(workspace: &Workspace, peers: &Path, args: &SupervisorArgs) -> Result<(), TaskError> {
    let nydusbox = workspace.release_binary();
    let numbers = [
        ("rounds", args.rounds),
        ("crowd", args.crowd),
        ("cycles", args.cycles),
    ];
    eprintln!("xtask: measuring; this takes minutes, and figures mean most on an idle machine");
    let json = Cmd::new(nydusbox.with_file_name("bench-supervisor"))
        .args(args.quick.then_some("quick"))
        .arg(format!("nydusbox={}", nydusbox.display()))
        .arg(format!("nydusd={}", peers.join("nydusd").display()))
        .args(
            numbers
                .iter()
                .filter_map(|(name, n)| Some(format!("{name}={}", (*n)?))),
        )
        .args(args.only.as_ref().map(|part| format!("only={part}")))
        .output()?;
    let figures: Figures = serde_json::from_str(&json).map_err(TaskError::Figures)?;
    let table = markdown(&figures);
    print!("{table}");
    if args.quick || args.only.is_some() {
        return Ok(());
    }
    let dir = workspace.bench();
    make_dir(&dir)?;
    write(&dir.join("supervisor.json"), &json)?;
    write(&dir.join("supervisor.md"), &table)
}

fn markdown(figures: &Figures) -> String {
    let mut out = String::from("| what | median | spread | at most | |\n|---|---|---|---|---|\n");
    for row in &figures.rows {
        let Some(spread) = Spread::of(row.values.clone()) else {
            continue;
        };
        let (limit, mark) = match row.at_most {
            Some(limit) => (
                format!("{} {}", number(limit), row.unit),
                if spread.median <= limit { "✔" } else { "✘" },
            ),
            None => (String::new(), ""),
        };
        let _ = writeln!(
            out,
            "| {} | {} {} | {}–{} | {limit} | {mark} |",
            row.what,
            number(spread.median),
            row.unit,
            number(spread.least),
            number(spread.most)
        );
    }
    let _ = writeln!(
        out,
        "\nMedians of {} rounds in turn, and their range, on {} processors; the state directory is {}.",
        figures.rounds,
        figures.processors,
        if figures.state_in_memory {
            "in memory (tmpfs), as /run is"
        } else {
            "on a disk"
        }
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_its_median_its_spread_and_whether_it_is_good_enough() {
        let row = |at_most| Row {
            what: "start".into(),
            unit: "ms".into(),
            values: vec![3.0, 1.0, 2.0],
            at_most,
        };
        let figures = Figures {
            processors: 2,
            rounds: 3,
            state_in_memory: true,
            rows: vec![row(None), row(Some(2.0)), row(Some(1.5))],
        };
        let table = markdown(&figures);
        let lines: Vec<&str> = table.lines().skip(2).take(3).collect();
        assert_eq!(
            lines,
            [
                "| start | 2.00 ms | 1.00–3.00 |  |  |",
                "| start | 2.00 ms | 1.00–3.00 | 2.00 ms | ✔ |",
                "| start | 2.00 ms | 1.00–3.00 | 1.50 ms | ✘ |",
            ]
        );
    }
}
