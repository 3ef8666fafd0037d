//! The benchmark of the data path runs, and every answer of every daemon in it is right.

use std::collections::BTreeSet;
use std::path::PathBuf;

use nydusbox_testkit::bench::{Plan, rows, run};
use nydusbox_testkit::peers::{Peer, require};

#[test]
fn the_benchmark_runs_and_every_answer_is_right() {
    let mut plan = Plan::quick(
        PathBuf::from(env!("CARGO_BIN_EXE_nydusbox")),
        std::env::temp_dir(),
    );
    plan.nydusd = require(Peer::Nydusd).ok();
    plan.virtiofsd = require(Peer::Virtiofsd).ok();
    let report = run(&plan).unwrap_or_else(|e| panic!("{e:?}"));
    let measured: BTreeSet<_> = report.rows.keys().map(String::as_str).collect();
    assert_eq!(measured, rows().collect());
    for (row, contenders) in &report.rows {
        assert!(contenders.contains_key("nydusbox rafs"), "{row}");
        for (contender, series) in contenders {
            let answered = series.samples.iter().all(|s| s.requests > 0);
            assert!(
                answered && series.samples.len() + series.values.len() == 1,
                "{row} on {contender}: {series:?}"
            );
        }
    }
}
