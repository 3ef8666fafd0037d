//! A supervisor to be killed: a process of its own that takes one sandbox through the steps it is given.
//!
//! `supervised PLACE KIND EXE STEP…`: PLACE is a directory with `share`, `snapshot`, `bootstrap` and `config`, and
//! gets `state`; KIND is `embedded` or `stock`. A step is `start` (the daemon
//! is spared when this is killed), `start-mortal` (it is not), `start-replacing` (it is
//! replaced when it ends), `start-hasty` (it is replaced, waited for 200 ms, and looked
//! at every 100), `crash` (it is killed, and replaced), `lose-daemon` (it is
//! killed, and about to be replaced), `adopt`, `mount`, `unmount`, `stop`, or `hold`,
//! which waits to be killed. Each step that is done is a line on standard output. Everything but the library's own
//! blocking threads runs on the main thread, so that a tracer can count what it does.

use std::error::Error;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nydusbox::protocol::{ContainerId, SandboxId};
use nydusbox::{
    Adoption, MountRequest, OnExit, OnSupervisorDeath, Program, RestartPolicy, Sandbox, SandboxConfig,
    Status, StatusPhase,
};
use rustix::process::{Pid, Signal, kill_process};

type Outcome<T> = Result<T, Box<dyn Error>>;

fn request(place: &Path) -> Outcome<MountRequest> {
    let config = std::fs::read_to_string(place.join("config"))?;
    Ok(MountRequest::rafs_with_snapshotdir(
        &ContainerId::new("c1")?,
        place.join("bootstrap"),
        config,
        place.join("snapshot"),
    )?)
}

fn config(place: &Path, program: Program, then: OnSupervisorDeath) -> Outcome<SandboxConfig> {
    let config = SandboxConfig::new(SandboxId::new("s1")?, place.join("state"), program)?;
    Ok(config
        .with_share(place.join("share"))?
        .with_on_supervisor_death(then))
}

fn replacing(place: &Path, program: Program) -> Outcome<SandboxConfig> {
    let policy = RestartPolicy::default().with_delays(Duration::ZERO, Duration::ZERO);
    Ok(config(place, program, OnSupervisorDeath::Spare)?.with_on_exit(OnExit::Restart(policy)))
}

async fn step(
    name: &str,
    place: &Path,
    program: &Program,
    sandbox: Option<Sandbox>,
) -> Outcome<Option<Sandbox>> {
    let there = |sandbox: Option<Sandbox>| sandbox.ok_or("no sandbox yet");
    Ok(match name {
        "start" => {
            let config = config(place, program.clone(), OnSupervisorDeath::Spare)?;
            Some(Sandbox::start(config).await?)
        }
        "start-mortal" => {
            let config = config(place, program.clone(), OnSupervisorDeath::Kill)?;
            Some(Sandbox::start(config).await?)
        }
        "start-replacing" => Some(Sandbox::start(replacing(place, program.clone())?).await?),
        "start-hasty" => {
            let config = replacing(place, program.clone())?
                .with_call_deadline(Duration::from_millis(200))
                .with_health_interval(Some(Duration::from_millis(100)));
            Some(Sandbox::start(config).await?)
        }
        "crash" => {
            let sandbox = there(sandbox)?;
            let mut status = sandbox.status();
            let pid = status.borrow().pid;
            let number = Pid::from_raw(i32::try_from(pid)?).ok_or("no daemon")?;
            kill_process(number, Signal::KILL)?;
            let replaced = |status: &Status| status.phase == StatusPhase::Serving && status.pid != pid;
            status.wait_for(replaced).await?;
            Some(sandbox)
        }
        "lose-daemon" => {
            let sandbox = there(sandbox)?;
            let mut status = sandbox.status();
            let number = Pid::from_raw(i32::try_from(status.borrow().pid)?).ok_or("no daemon")?;
            kill_process(number, Signal::KILL)?;
            let recovering = |status: &Status| matches!(status.phase, StatusPhase::Recovering { .. });
            status.wait_for(recovering).await?;
            Some(sandbox)
        }
        "adopt" => match Sandbox::adopt(place.join("state"), &SandboxId::new("s1")?).await? {
            Adoption::Running(sandbox) => Some(sandbox),
            Adoption::CleanedUp { .. } => return Err("the daemon was dead".into()),
        },
        "mount" => {
            let sandbox = there(sandbox)?;
            sandbox.mount(request(place)?).await?;
            Some(sandbox)
        }
        "unmount" => {
            let sandbox = there(sandbox)?;
            sandbox.unmount(request(place)?.at().clone()).await?;
            Some(sandbox)
        }
        "stop" => {
            let outcome = there(sandbox)?.stop().await;
            if !outcome.leftovers.is_empty() {
                return Err(format!("{outcome:?}").into());
            }
            None
        }
        "hold" => std::future::pending().await,
        other => return Err(format!("no step {other}").into()),
    })
}

async fn run() -> Outcome<()> {
    let mut args = std::env::args().skip(1);
    let mut next = || args.next().ok_or("too few arguments");
    let place = PathBuf::from(next()?);
    let program = match (next()?.as_str(), next()?) {
        ("embedded", exe) => Program::embedded(exe)?,
        (_, exe) => Program::stock(exe)?,
    };
    let mut sandbox = None;
    for name in args {
        sandbox = step(&name, &place, &program, sandbox).await?;
        writeln!(std::io::stdout(), "{name}")?;
    }
    Ok(())
}

fn main() -> Outcome<()> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(run())
}
