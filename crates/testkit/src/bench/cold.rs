//! The loads that wait for a blob server which is slow. Every run has an empty cache and a daemon of its own.

use std::path::Path;
use std::sync::{Arc, Barrier};
use std::thread;

use super::BenchError;
use super::call;
use super::contender::{Contender, Entrant, entrants, image_config};
use super::dataset::Dataset;
use super::driver::{Check, Load, Until, Wait};
use super::plan::{Plan, Work};
use super::report::{Kind, Report};
use crate::blob_server::{BlobServer, total_bytes};

/// A GETATTR at a time beside eight cold reads.
const GETATTR: &str = "cold-getattr";
/// Those eight reads.
const READERS: &str = "cold-read-8";
/// One reader from the beginning to the end.
const SEQUENTIAL: &str = "cold-sequential";
/// Bytes fetched by four daemons with one cache directory, as a multiple of the blobs.
const SHARED: &str = "cold-shared";
/// All of them.
pub(super) const ROWS: [&str; 4] = [GETATTR, READERS, SEQUENTIAL, SHARED];

/// Reads in flight; each is of a chunk of its own.
const COLD_DEPTH: usize = 8;
const CHUNK: usize = 1 << 20;
/// What Linux reads ahead by default.
const SEQUENTIAL_READ: usize = 128 << 10;
const SHARING: usize = 4;
/// A cold run takes seconds and differs little from the next.
const ROUNDS: usize = 3;

/// One cold run: where, with which server.
struct Setting<'a> {
    plan: &'a Plan,
    dataset: &'a Dataset,
    dir: std::path::PathBuf,
    server: BlobServer,
}

impl<'a> Setting<'a> {
    fn new(plan: &'a Plan, dataset: &'a Dataset, dir: &Path) -> Result<Self, BenchError> {
        let os = |what| move |source| BenchError::Os { what, source };
        let dir = tempfile::Builder::new()
            .prefix("cold-")
            .tempdir_in(dir)
            .map_err(os("make a directory"))?
            .keep();
        let server = BlobServer::start(&dataset.blobs).map_err(os("start the blob server"))?;
        Ok(Self {
            plan,
            dataset,
            dir,
            server,
        })
    }

    fn contender(&self, entrant: &Entrant, number: usize) -> Result<Contender, BenchError> {
        let config = image_config(
            self.dataset,
            Some(&self.server.address()),
            &self.dir.join("cache"),
        );
        let home = self.dir.join(number.to_string());
        let contender = Contender::start(entrant, self.dataset, &home, &config)?;
        // A mount is not what is measured.
        self.server.delay(self.plan.delay);
        Ok(contender)
    }
}

pub(super) fn measure(
    plan: &Plan,
    dataset: &Dataset,
    dir: &Path,
    report: &mut Report,
) -> Result<(), BenchError> {
    let takes = |row: &str| plan.only.takes_row(row);
    for _ in 0..plan.rounds.min(ROUNDS) {
        for entrant in entrants(plan).iter().filter(|e| e.kind == Kind::Rafs) {
            if takes(GETATTR) || takes(READERS) {
                readers(&Setting::new(plan, dataset, dir)?, entrant, report)?;
            }
            if takes(SEQUENTIAL) {
                sequential(&Setting::new(plan, dataset, dir)?, entrant, report)?;
            }
            if takes(SHARED) {
                shared(&Setting::new(plan, dataset, dir)?, entrant, report)?;
            }
        }
    }
    Ok(())
}

fn readers(setting: &Setting<'_>, entrant: &Entrant, report: &mut Report) -> Result<(), BenchError> {
    let mut contender = setting.contender(entrant, 0)?;
    let (shape, calls) = contender.calls(Work::Read(CHUNK), setting.dataset);
    let (_, asides) = contender.calls(Work::Getattr, setting.dataset);
    let loads = [
        Load {
            shape,
            depth: COLD_DEPTH,
            calls: &calls,
        },
        Load {
            shape: call::GETATTR,
            depth: 1,
            calls: &asides,
        },
    ];
    let how = (Wait::Spin, Check::Every, Until::FirstDone);
    let samples = contender.drive(READERS, &loads, how)?;
    for (row, sample) in [READERS, GETATTR].into_iter().zip(samples) {
        let series = report.series(row, entrant.name, entrant.kind);
        series.samples.push(sample);
    }
    Ok(())
}

fn sequential(setting: &Setting<'_>, entrant: &Entrant, report: &mut Report) -> Result<(), BenchError> {
    let mut contender = setting.contender(entrant, 0)?;
    let samples = read_through(&mut contender, setting, 1)?;
    let series = report.series(SEQUENTIAL, entrant.name, entrant.kind);
    series.samples.extend(samples);
    Ok(())
}

fn shared(setting: &Setting<'_>, entrant: &Entrant, report: &mut Report) -> Result<(), BenchError> {
    let mut contenders = (0..SHARING)
        .map(|number| setting.contender(entrant, number))
        .collect::<Result<Vec<_>, _>>()?;
    let together = Arc::new(Barrier::new(SHARING));
    thread::scope(|scope| {
        let reading: Vec<_> = contenders
            .iter_mut()
            .map(|contender| {
                let together = Arc::clone(&together);
                scope.spawn(move || {
                    together.wait();
                    read_through(contender, setting, COLD_DEPTH)
                })
            })
            .collect();
        reading.into_iter().try_for_each(|reader| match reader.join() {
            Ok(read) => read.map(drop),
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })?;
    let whole = total_bytes(&setting.dataset.blobs).map_err(BenchError::Dataset)?;
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let multiple = setting.server.counters().bytes as f64 / whole as f64;
    let series = report.series(SHARED, entrant.name, entrant.kind);
    series.values.push(multiple);
    Ok(())
}

/// Reads the large file once, from the beginning to the end.
fn read_through(
    contender: &mut Contender,
    setting: &Setting<'_>,
    depth: usize,
) -> Result<Vec<super::histogram::Sample>, BenchError> {
    let (shape, calls) = contender.in_order(SEQUENTIAL_READ, setting.dataset);
    let load = [Load {
        shape,
        depth,
        calls: &calls,
    }];
    // Several guests on few processors must not keep the daemons from running.
    let wait = if depth == 1 { Wait::Spin } else { Wait::Interrupt };
    contender.drive(SEQUENTIAL, &load, (wait, Check::Every, Until::FirstDone))
}
