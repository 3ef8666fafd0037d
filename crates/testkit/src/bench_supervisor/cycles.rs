//! Whether mounting and unmounting for ever makes anything grow.

use nydusbox::Sandbox;

use super::place::{Place, contenders};
use super::proc::{Memory, memory, open_files};
use super::{BenchError, Plan, Row};

const KB: f64 = 1e3;
/// A few pages here and there; a leak of 10 bytes a cycle would be more.
const GROWTH_KB: f64 = 64.0;

/// Sizes at one time.
struct Sizes {
    files: usize,
    memory: Memory,
}

impl Sizes {
    fn of(pid: u32) -> Result<Self, BenchError> {
        Ok(Self {
            files: open_files(pid)?,
            memory: memory(pid)?,
        })
    }
}

pub(super) async fn run(plan: &Plan) -> Result<Vec<Row>, BenchError> {
    let place = Place::new(plan)?;
    let image = place.image(&plan.nydusbox)?;
    let own = std::process::id();
    let mut rows = Vec::new();
    for contender in contenders(plan)? {
        let sandbox = Sandbox::start(place.config("s1", &contender.program)?).await?;
        let daemon = sandbox.status().borrow().pid;
        let request = image.request("c1")?;
        let mut before = None;
        for cycle in 0..plan.cycles {
            if cycle == plan.cycles / 10 {
                tokio::time::sleep(plan.rest).await;
                before = Some((Sizes::of(own)?, Sizes::of(daemon)?));
            }
            sandbox.mount(request.clone()).await?;
            sandbox.unmount(request.at().clone()).await?;
        }
        tokio::time::sleep(plan.rest).await;
        let after = (Sizes::of(own)?, Sizes::of(daemon)?);
        let _ = sandbox.stop().await;
        let before = before.ok_or("no cycles")?;
        let (cycles, name) = (plan.cycles, contender.name);
        for (whose, before, after, ours) in [
            ("supervisor", before.0, after.0, true),
            ("daemon", before.1, after.1, contender.ours),
        ] {
            // Never more than a few.
            let files = after.files as f64 - before.files as f64;
            let grown = (after.memory.anonymous_bytes - before.memory.anonymous_bytes) / KB;
            let files = Row::new(
                format!("{cycles} mounts and unmounts, {name}: descriptors more in the {whose}"),
                "",
                vec![files],
            );
            let memory = Row::new(
                format!("{cycles} mounts and unmounts, {name}: memory more in the {whose}"),
                "kB",
                vec![grown],
            );
            rows.extend(match ours {
                true => [files.at_most(0.0), memory.at_most(GROWTH_KB)],
                false => [files, memory],
            });
        }
    }
    Ok(rows)
}
