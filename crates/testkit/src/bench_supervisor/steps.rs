//! The library's steps, each beside the same by hand. Contenders and ways take turns, so that a busy moment of the
//! machine hits all.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use nydusbox::{Program, Sandbox, StatusPhase};
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::sleep;

use super::place::{Contender, Image, Place, contenders};
use super::{BenchError, Plan, Row, by_hand, ms};

/// Spawn to share with our daemon.
const START_MS: f64 = 10.0;
/// The same with nydusd, beyond what it takes itself.
const START_BEYOND_MS: f64 = 2.0;
/// A mount beside the bare call.
const MOUNT_TIMES: f64 = 1.2;
/// What each way leaves for later (the daemon's lines of log, what nobody waits for) is not done in the time of the
/// next.
const LEFTOVERS: Duration = Duration::from_millis(4);
const STOP_MS: f64 = 20.0;
/// How often an image is mounted in each way, each round.
const MOUNTS: usize = 4;
/// The end of a daemon until it is reported.
const NOTICE_MS: f64 = 10.0;

/// Measurements by what was measured.
type Figures = BTreeMap<&'static str, Vec<f64>>;

pub(super) async fn run(plan: &Plan) -> Result<Vec<Row>, BenchError> {
    let place = Place::new(plan)?;
    let image = place.image(&plan.nydusbox)?;
    let contenders = contenders(plan)?;
    let mut figures: Vec<Figures> = contenders.iter().map(|_| Figures::new()).collect();
    // The first round reads the programs and their options, which is remembered.
    for round in 0..=plan.rounds {
        for (contender, figures) in contenders.iter().zip(&mut figures) {
            let measured = one_round(&place, &image, contender, round).await?;
            for (what, value) in measured.into_iter().filter(|_| round > 0) {
                figures.entry(what).or_default().push(value);
            }
        }
    }
    let mut rows = Vec::new();
    for (contender, mut figures) in contenders.iter().zip(figures) {
        let mut row = |what: &'static str, text: &str| {
            let values = figures.remove(what).unwrap_or_default();
            Row::new(format!("{text}, {}", contender.name), "ms", values)
        };
        let (answers, bare) = (
            row("answers", "by hand: spawn to answer"),
            row("shares", "by hand: spawn to share"),
        );
        let start = row("start", "library: start");
        let limit = if contender.ours {
            START_MS
        } else {
            bare.median() + START_BEYOND_MS
        };
        let mount_bare = row("mount by hand", "by hand: mount of an image");
        let mount_limit = mount_bare.median() * MOUNT_TIMES;
        rows.extend([
            answers,
            bare,
            start.at_most(limit),
            mount_bare,
            row(
                "mount on the runtime",
                "by hand on the library's runtime: mount of an image",
            ),
            row(
                "mount by a library for HTTP",
                "by hyper on the library's runtime: mount of an image",
            ),
            row("mount", "library: mount of an image").at_most(mount_limit),
            row("stop", "library: stop").at_most(STOP_MS),
            row("notice", "library: daemon killed, until the status says so").at_most(NOTICE_MS),
        ]);
    }
    rows.push(exits_at_once(&place, plan).await?.at_most(NOTICE_MS));
    place.assert_empty()?;
    Ok(rows)
}

async fn one_round(
    place: &Place,
    image: &Image,
    contender: &Contender,
    round: usize,
) -> Result<Vec<(&'static str, f64)>, BenchError> {
    let (answers, shares) = by_hand::start(contender.program.exe(), &place.path(""), &place.path("share"))?;
    let begun = Instant::now();
    let sandbox = Sandbox::start(place.config("s1", &contender.program)?).await?;
    let start = ms(begun);

    // The ways take turns, on a daemon that has had the image mounted before.
    let request = image.request("c1")?;
    let at = request.at().clone();
    sandbox.mount(request.clone()).await?;
    sandbox.unmount(at.clone()).await?;
    let mut connection = by_hand::Connection::open(sandbox.api_socket().as_path())?;
    let mut waited = by_hand::AsyncConnection::open(sandbox.api_socket().as_path()).await?;
    let mut http = by_hand::HttpConnection::open(sandbox.api_socket().as_path()).await?;
    let mut measured = Vec::new();
    for turn in round..round + MOUNTS {
        for way in (turn..turn + 4).map(|way| way % 4) {
            sleep(LEFTOVERS).await;
            let (what, took) = match way {
                0 => {
                    let took = connection.mount(at.as_str(), &image.bootstrap, &image.config)?;
                    ("mount by hand", took)
                }
                1 => {
                    let mount = waited.mount(at.as_str(), &image.bootstrap, &image.config);
                    ("mount on the runtime", mount.await?)
                }
                2 => {
                    let mount = http.mount(at.as_str(), &image.bootstrap, &image.config);
                    ("mount by a library for HTTP", mount.await?)
                }
                _ => {
                    let request = request.clone();
                    let begun = Instant::now();
                    sandbox.mount(request).await?;
                    ("mount", ms(begun))
                }
            };
            measured.push((what, took));
            sleep(LEFTOVERS).await;
            match way {
                3 => drop(sandbox.unmount(at.clone()).await?),
                _ => drop(connection.unmount(at.as_str())?),
            }
        }
    }
    drop((connection, waited, http));
    let begun = Instant::now();
    let _ = sandbox.stop().await;
    let stop = ms(begun);

    let sandbox = Sandbox::start(place.config("s1", &contender.program)?).await?;
    let mut status = sandbox.status();
    let pid = status.borrow().pid;
    let begun = Instant::now();
    kill(pid)?;
    status
        .wait_for(|status| matches!(status.phase, StatusPhase::Exited(_)))
        .await?;
    let notice = ms(begun);
    let _ = sandbox.stop().await;
    measured.extend([
        ("answers", answers),
        ("shares", shares),
        ("start", start),
        ("stop", stop),
        ("notice", notice),
    ]);
    Ok(measured)
}

/// A program that exits as soon as it runs: from before its spawn to the error. The whole is more than the time from
/// its end.
async fn exits_at_once(place: &Place, plan: &Plan) -> Result<Row, BenchError> {
    let program = Program::stock("/bin/false")?;
    let mut values = Vec::new();
    for round in 0..=plan.rounds {
        let config = place.config("s1", &program)?;
        let begun = Instant::now();
        if Sandbox::start(config).await.is_ok() {
            return Err("/bin/false was taken for a daemon".into());
        }
        if round > 0 {
            values.push(ms(begun));
        }
    }
    Ok(Row::new(
        "library: spawn of a program that exits at once, until the error",
        "ms",
        values,
    ))
}

fn kill(pid: u32) -> Result<(), BenchError> {
    let pid = Pid::from_raw(pid.try_into()?).ok_or("no process")?;
    Ok(kill_process(pid, Signal::KILL)?)
}
