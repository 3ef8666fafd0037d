//! Prefetch that was learned: a start is recorded, what it read is put in front, and it is made again, each time with
//! an empty cache and from a registry far away. Beside it the same without, where what the program is linked to is
//! fetched ahead, and with nothing fetched ahead at all.

use std::path::Path;
use std::process::Command;

use super::convert::{CONVERTED, convert};
use super::layout::Layout;
use super::process::output;
use super::shelf::Shelf;
use super::start::{Ground, Started};
use super::{BenchError, Plan, Rows, add};

const LEARNED: &str = "learned";
const MB: f64 = 1e6;

/// Measures the plan's command, in `dir`, which is made.
pub(super) fn measure(plan: &Plan, layout: &Layout, dir: &Path, rows: &mut Rows) -> Result<(), BenchError> {
    let ground = Ground::new(plan, Shelf::new(plan.learned_latency)?, dir)?;
    let layout = layout.linked(&ground.path("layout"))?;
    convert(&plan.nydusbox, &layout, "native", dir)?;
    let (converted, learned) = (layout.tagged(CONVERTED), layout.tagged(LEARNED));
    ground.shelf.put(&converted, CONVERTED)?;
    let trace = ground.path("trace");
    let record = [
        "--record-trace",
        trace.to_str().ok_or("a path that is not UTF-8")?,
    ];
    let plain = ground.shelf.name(CONVERTED);
    ground.start(&plain, &plan.learned, &record, |_| Ok(()))?;
    let mut optimize = Command::new(&plan.nydusbox);
    output(
        optimize
            .args([
                "image",
                "optimize",
                &converted,
                &learned,
                "--platform",
                "linux/amd64",
            ])
            .arg("--work-dir")
            .arg(dir)
            .arg("--trace")
            .arg(&trace),
    )?;
    ground.shelf.put(&learned, LEARNED)?;
    let faster = ground.shelf.name(LEARNED);
    for _ in 0..plan.starts {
        for (whose, image, more) in [
            ("nothing fetched ahead", &plain, &["--no-prefetch"][..]),
            ("not learned", &plain, &[]),
            ("nydusbox", &faster, &[]),
        ] {
            let started = ground.start(image, &plan.learned, more, |_| Ok(()))?;
            note(rows, whose, started);
        }
    }
    Ok(())
}

fn note(rows: &mut Rows, whose: &str, started: Started) {
    let rest = started.seconds - started.boot_seconds;
    add(rows, "learned-seconds", whose, started.seconds);
    add(rows, "learned-boot", whose, started.boot_seconds);
    add(rows, "learned-rest", whose, rest);
    if let (Some(read), Some(fetched)) = (started.read_bytes, started.fetched_bytes) {
        add(rows, "learned-fetched", whose, fetched / MB);
        add(rows, "learned-read", whose, read / MB);
    }
}
