//! The benchmark of the supervisor runs, with every contender that is there.

use std::path::PathBuf;

use nydusbox_testkit::bench_supervisor::{Plan, run};
use nydusbox_testkit::peers::{Peer, require};

#[test]
fn the_benchmark_runs_and_measures_every_row() {
    let mut plan = Plan::quick(
        PathBuf::from(env!("CARGO_BIN_EXE_nydusbox")),
        std::env::temp_dir(),
    );
    plan.nydusd = require(Peer::Nydusd).ok();
    let report = run(&plan).unwrap_or_else(|e| panic!("{e}"));
    let contenders = 1 + usize::from(plan.nydusd.is_some());
    assert_eq!(report.rows.len(), 21 * contenders + 1, "{report:?}");
    for row in &report.rows {
        assert!(
            !row.values.is_empty() && row.values.iter().all(|v| v.is_finite()),
            "{row:?}"
        );
    }
}
