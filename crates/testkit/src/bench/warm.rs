//! The loads that touch no backend. All daemons live side by side, and for each load their turns follow each
//! other closely, so that what else the machine does falls on all of them alike.

use std::path::Path;

use super::contender::{Contender, entrants, image_config};
use super::dataset::Dataset;
use super::driver::{Check, Load, Until, Wait};
use super::plan::{Plan, WARM, Work};
use super::report::Report;
use super::{BenchError, memory};

/// The row of the memory an idle daemon takes, in bytes.
pub(super) const IDLE: &str = "idle-pss";

pub(super) fn measure(
    plan: &Plan,
    dataset: &Dataset,
    dir: &Path,
    report: &mut Report,
) -> Result<(), BenchError> {
    let rows: Vec<_> = WARM.iter().filter(|r| plan.only.takes_row(r.name)).collect();
    let idle = plan.only.takes_row(IDLE);
    if rows.is_empty() && !idle {
        return Ok(());
    }
    let mut contenders = Vec::new();
    for (number, entrant) in entrants(plan).iter().enumerate() {
        let home = dir.join(format!("warm-{number}"));
        let config = image_config(dataset, None, &home.join("cache"));
        let contender = Contender::start(entrant, dataset, &home, &config)?;
        if idle {
            // Before the next of the same program comes and shares its pages.
            let bytes = memory::idle_pss(contender.daemon.pid())?;
            report
                .series(IDLE, contender.name, contender.kind)
                .values
                .push(bytes);
        }
        contenders.push(contender);
    }
    if rows.is_empty() {
        return Ok(());
    }
    for contender in &mut contenders {
        // Fills the caches of the image and of the page cache, and compares all of it.
        let (shape, calls) = contender.calls(Work::Read(1 << 20), dataset);
        let all = [Load {
            shape,
            depth: 4,
            calls: &calls,
        }];
        contender.drive("warm-up", &all, (Wait::Spin, Check::Every, Until::FirstDone))?;
    }
    for _ in 0..plan.rounds {
        for row in &rows {
            for contender in &mut contenders {
                let (shape, calls) = contender.calls(row.work, dataset);
                let load = [Load {
                    shape,
                    depth: row.depth,
                    calls: &calls,
                }];
                let how = (row.wait, plan.check, Until::Elapsed(plan.span));
                let samples = contender.drive(row.name, &load, how)?;
                report
                    .series(row.name, contender.name, contender.kind)
                    .samples
                    .extend(samples);
            }
        }
    }
    Ok(())
}
