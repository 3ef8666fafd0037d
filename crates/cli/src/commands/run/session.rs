//! Does what was planned, and undoes it whatever happens: VMM first, then the daemon with its mounts, then the
//! directories. Ctrl-C, SIGTERM and SIGHUP go the same way. The machine is started first of all, since nothing about it
//! depends on the image, and is given its command last.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use nix::sys::signal::{SigSet, Signal};
use nydusbox::{Exit, Sandbox};
use nydusbox_image::{BlobCache, Quiet};
use nydusbox_vmm::{BootError, GuestEvent, GuestStdio, Machine, Vm, VmOutcome};
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::complaints::Complaints;
use super::places::Places;
use super::plan::{Draft, Plan};
use super::stdio;
use super::timeline::{MountTime, Report, Timeline, ms};
use crate::cache_quota;
use crate::error::{Failure, INTERRUPTED};
use crate::signals;

/// Nobody reads the command's output any longer: 128 + SIGPIPE, as a shell says it.
const READER_LEFT: u8 = 141;

/// A machine that is being started.
struct Starting {
    task: JoinHandle<Result<Machine, BootError>>,
    /// Whether what came of it is somebody else's.
    taken: bool,
}

/// A run that has begun: its directories are there, and its machine boots.
pub(super) struct Session {
    runtime: Runtime,
    places: Places,
    machine: Starting,
    timeline: Timeline,
}

impl Session {
    /// `cancelled` is set if there will be no machine, so that nobody goes on to have the image.
    pub(super) fn begin(draft: &Draft, places: Places, cancelled: &Arc<AtomicBool>) -> Result<Self, Failure> {
        let runtime = runtime().map_err(|e| Failure::new("start the runtime", &e))?;
        places.make()?;
        let timeline = Timeline::new(draft.is_verbose());
        let (config, dir) = (draft.machine().clone(), places.vm_dir.clone());
        let (steps, cancelled) = (timeline.clone(), Arc::clone(cancelled));
        let task = runtime.spawn(async move {
            let since = Instant::now();
            let started = Machine::start(&config, &dir).await;
            match &started {
                Ok(machine) => {
                    let (accel, origin) = (machine.accel().accel(), machine.origin());
                    steps.step(&format!("VMM started ({accel:?}, {origin:?})"), since);
                }
                Err(_) => cancelled.store(true, Ordering::Relaxed),
            }
            started
        });
        Ok(Self {
            runtime,
            places,
            machine: Starting { task, taken: false },
            timeline,
        })
    }

    /// Ends it: there is nothing to run. Returns why there is no machine, if that is so; it may be the reason.
    pub(super) fn abandon(self) -> Result<(), Failure> {
        let killed = self.runtime.block_on(self.machine.kill());
        if let Err(failure) = self.places.remove() {
            let _ = failure.report(0);
        }
        self.runtime.shutdown_background();
        killed
    }

    /// `cancelled` is what signals and a machine that was not started have set so far; from now on these are
    /// watched for here.
    pub(super) fn run(self, plan: &Plan, cancelled: &AtomicBool) -> Result<u8, Failure> {
        let Self {
            runtime,
            places,
            machine,
            timeline,
        } = self;
        let result = runtime.block_on(supervised(plan, places, machine, &timeline, cancelled));
        // Standard input may still be waited for on a blocking thread.
        runtime.shutdown_background();
        result
    }
}

/// With threads that may read a terminal in the background. By default SIGTTIN would stop the whole process, and nobody
/// would look after the machine; blocked, the read fails, which is the end of the command's input. QEMU has it blocked as
/// well, and reads no terminal.
fn runtime() -> io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .on_thread_start(|| {
            if let Err(error) = SigSet::from(Signal::SIGTTIN).thread_block() {
                tracing::warn!(%error, "cannot block SIGTTIN");
            }
        })
        .enable_all()
        .build()
}

impl Starting {
    /// Ends a machine that has no command, unless it could not be started.
    async fn kill(self) -> Result<(), Failure> {
        if self.taken {
            return Ok(());
        }
        self.task.abort();
        match self.task.await {
            Ok(Ok(machine)) => machine.kill().await,
            Ok(Err(error)) => return Err(not_booted(&error)),
            // With its start, its process is gone.
            Err(_) => {}
        }
        Ok(())
    }
}

fn not_booted(error: &BootError) -> Failure {
    Failure::new("boot the VM", error)
}

async fn supervised(
    plan: &Plan,
    places: Places,
    mut machine: Starting,
    timeline: &Timeline,
    cancelled: &AtomicBool,
) -> Result<u8, Failure> {
    let interrupt = Interrupt::watch().map_err(|e| Failure::new("watch for signals", &e));
    let mut report = Report {
        image_ms: ms(plan.image_took),
        image_bytes: plan.image.data_bytes,
        ..Report::default()
    };
    // Whatever happens from here on: the machine and the directories are there already, and go at the end.
    let mut result = match interrupt {
        Err(failure) => Err(failure),
        // A signal before the watch began, one after it is seen by both; or there is no machine.
        Ok(_) if cancelled.load(Ordering::Relaxed) => Ok(INTERRUPTED),
        Ok(interrupt) => tokio::select! {
            result = in_sandbox(plan, &places, &mut machine, &interrupt, timeline, &mut report) => result,
            never = cache_quota::keep_on(&places.cache_dir) => match never {},
        },
    };
    let killed = machine.kill().await;
    // Otherwise, what kept it from having a command is the failure that matters.
    if let (Ok(INTERRUPTED), Err(failure)) = (&result, killed) {
        result = Err(failure);
    }
    // Nothing is mounted any longer.
    cache_quota::keep(&BTreeSet::from([places.cache_dir.clone()])).await;
    let removed = if plan.keep {
        places.keep();
        Ok(())
    } else {
        places.remove()
    };
    let reported = match &plan.report {
        Some(file) => write_report(file, &report),
        None => Ok(()),
    };
    conclude(result, [removed, reported])
}

/// What a run ends with: its own failure, or its command's status, unless that is success and something else is none.
/// What is not in there is said.
fn conclude(
    result: Result<u8, Failure>,
    afterwards: impl IntoIterator<Item = Result<(), Failure>>,
) -> Result<u8, Failure> {
    let mut result = result;
    for failure in afterwards.into_iter().filter_map(Result::err) {
        if let Ok(0) = result {
            result = Err(failure);
        } else {
            let _ = failure.report(0);
        }
    }
    result
}

/// SIGINT, SIGTERM or SIGHUP, as a fact that every step can wait for. Steps end in their own order; none is just dropped.
struct Interrupt(watch::Receiver<bool>);

impl Interrupt {
    fn watch() -> io::Result<Self> {
        let (tell, told) = watch::channel(false);
        for number in signals::ending() {
            let mut signal = signal(SignalKind::from_raw(number))?;
            let tell = tell.clone();
            tokio::spawn(async move {
                signal.recv().await;
                tell.send_replace(true);
                // Kept, so that waiting for it never ends for another reason.
                tell.closed().await;
            });
        }
        Ok(Self(told))
    }

    async fn happened(&self) {
        if self.0.clone().wait_for(|happened| *happened).await.is_err() {
            // The watcher is gone with its runtime, and so is everybody who waits.
            std::future::pending::<()>().await;
        }
    }
}

async fn in_sandbox(
    plan: &Plan,
    places: &Places,
    machine: &mut Starting,
    interrupt: &Interrupt,
    timeline: &Timeline,
    report: &mut Report,
) -> Result<u8, Failure> {
    let config = plan
        .sandbox
        .clone()
        .with_share(&places.shared_dir)
        .map_err(|e| Failure::new("share the container's directory", &e))?;
    let since = Instant::now();
    let started = tokio::select! {
        started = Sandbox::start(config) => started,
        // A start that is dropped has undone its work when the drop returns.
        () = interrupt.happened() => return Ok(INTERRUPTED),
    };
    let sandbox = started.map_err(|e| Failure::start(&e))?;
    report.sandbox_start_ms = timeline.step("sandbox started, /containers mounted", since);
    let result = in_vm(plan, places, machine, &sandbox, interrupt, timeline, report).await;
    let since = Instant::now();
    let outcome = sandbox.stop().await;
    report.stop_ms += timeline.step("daemon stopped", since);
    if outcome.leftovers.is_empty() {
        return result;
    }
    let left: Vec<String> = outcome.leftovers.iter().map(|l| format!("{l:?}")).collect();
    let failure = Failure::plain(format!(
        "the sandbox could not be removed whole, left are: {}",
        left.join(", ")
    ));
    conclude(result, [Err(failure)])
}

/// Mounts the image and the shares. Dropped, it leaves what it has mounted to the sandbox.
async fn mount_all(
    plan: &Plan,
    places: &Places,
    sandbox: &Sandbox,
    timeline: &Timeline,
    report: &mut Report,
) -> Result<(), Failure> {
    // Until a daemon that is not ours has the image mounted, nothing else tells that its blobs are in use.
    let guard = plan.is_stock.then(|| {
        tokio::task::block_in_place(|| BlobCache::new(&places.cache_dir).mounting(&Quiet))
            .map_err(|e| Failure::new("use the blob cache", &e))
    });
    let _guard = guard.transpose()?;
    for mount in &plan.mounts {
        let since = Instant::now();
        let mounted = sandbox.mount(mount.clone()).await;
        mounted.map_err(|e| Failure::new(&format!("mount {}", mount.at()), &e))?;
        let ms = timeline.step(&format!("{} mounted", mount.at()), since);
        report.mounts.push(MountTime {
            mountpoint: mount.at().to_string(),
            ms,
        });
    }
    Ok(())
}

/// Why a running machine is of no more use.
enum End {
    Outcome(VmOutcome),
    DaemonDied(Exit),
    Interrupted,
}

async fn in_vm(
    plan: &Plan,
    places: &Places,
    starting: &mut Starting,
    sandbox: &Sandbox,
    interrupt: &Interrupt,
    timeline: &Timeline,
    report: &mut Report,
) -> Result<u8, Failure> {
    tokio::select! {
        mounted = mount_all(plan, places, sandbox, timeline, report) => mounted?,
        () = interrupt.happened() => return Ok(INTERRUPTED),
    }
    if let Some(record) = &plan.record {
        record.begin(sandbox, &plan.image_at).await?;
    }
    let booting = Instant::now();
    let (input, input_end) = stdio::input();
    let stdio = GuestStdio {
        stdin: Box::new(input),
        stdout: Box::new(stdio::output()),
        stderr: Box::new(stdio::errors()),
    };
    let machine = tokio::select! {
        started = &mut starting.task => started,
        () = interrupt.happened() => return Ok(INTERRUPTED),
    };
    starting.taken = true;
    let machine = match machine {
        Ok(started) => started.map_err(|e| not_booted(&e))?,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    };
    let mut vm = machine.run(&plan.vm, stdio);
    let complaints = Complaints::default();
    let end = tokio::select! {
        outcome = follow(&mut vm, booting, timeline, report) => End::Outcome(outcome),
        never = complaints.follow(sandbox) => match never {},
        exit = sandbox.exited() => End::DaemonDied(exit),
        () = interrupt.happened() => End::Interrupted,
    };
    if let End::Outcome(_) = end {
        tokio::select! {
            () = complaints.say(sandbox) => {}
            () = interrupt.happened() => {}
        }
    }
    read_counters(plan, sandbox, report).await;
    let recorded = match (&plan.record, &end) {
        (Some(record), End::Outcome(_) | End::Interrupted) => record.end(sandbox, &plan.image_at).await,
        (Some(_), End::DaemonDied(_)) | (None, _) => Ok(()),
    };
    let since = Instant::now();
    // After an orderly end it is gone already. Either way the VMM is gone before the daemon is stopped.
    let _ = vm.kill().await;
    report.stop_ms += timeline.step("VMM gone", since);
    match end {
        End::Outcome(outcome) => conclude(status(outcome), [recorded, input_end.complete()]),
        End::DaemonDied(exit) => Err(daemon_died(&exit)),
        End::Interrupted => conclude(Ok(INTERRUPTED), [recorded]),
    }
}

/// Waits for the machine's end and says each step on the way.
async fn follow(vm: &mut Vm, booting: Instant, timeline: &Timeline, report: &mut Report) -> VmOutcome {
    let mut events = vm.events();
    let mut seen = 0;
    let mut command_started = booting;
    let waiting = vm.wait();
    tokio::pin!(waiting);
    loop {
        let outcome = tokio::select! {
            outcome = &mut waiting => Some(outcome),
            changed = events.changed() => match changed {
                Ok(()) => None,
                Err(_) => Some(waiting.as_mut().await),
            },
        };
        for event in &events.borrow_and_update()[seen..] {
            seen += 1;
            if *event == GuestEvent::CommandStarted {
                command_started = Instant::now();
                report.boot_ms = timeline.step("guest booted, command started", booting);
            } else {
                timeline.step(&format!("guest: {event:?}"), booting);
            }
        }
        if let Some(outcome) = outcome {
            report.command_ms = timeline.step("command ended", command_started);
            return outcome;
        }
    }
}

async fn read_counters(plan: &Plan, sandbox: &Sandbox, report: &mut Report) {
    match sandbox.image_counters(&plan.image_at).await {
        Ok(counters) => {
            report.bytes_read_backend = Some(counters.backend_bytes);
            report.bytes_read_guest = Some(counters.guest_bytes);
        }
        // Counters are an extra: the run itself went well.
        Err(e) => tracing::warn!(error = %e, "the image's counters could not be read"),
    }
}

fn status(outcome: VmOutcome) -> Result<u8, Failure> {
    match outcome {
        VmOutcome::CommandExited { status } => Ok(status),
        VmOutcome::ReaderLeft => Ok(READER_LEFT),
        VmOutcome::OutputLost { .. } => Err(Failure::plain(outcome.to_string())),
        VmOutcome::VmmExited {
            ref console,
            ref vmm,
            command_started,
            ..
        } => {
            let lines: Vec<&str> = vmm.iter().chain(console).map(String::as_str).collect();
            let what = match command_started {
                true => "the command ran, and how it ended is not known",
                false => "the command did not run",
            };
            let failure = Failure::plain(format!("{what}: {}", outcome.sentence()));
            Err(if lines.is_empty() {
                failure
            } else {
                failure.hint(format!("said last:\n  {}", lines.join("\n  ")))
            })
        }
        VmOutcome::BootDeadline { ref console, .. } => {
            let failure = Failure::plain(format!("the command did not run: {}", outcome.sentence()));
            Err(failure.hint(match console.as_slice() {
                [] => "the guest's console said nothing".to_owned(),
                lines => format!("the guest's console said last:\n  {}", lines.join("\n  ")),
            }))
        }
        other => Err(Failure::plain(format!("the command did not run: {other}"))),
    }
}

fn daemon_died(exit: &Exit) -> Failure {
    Failure::plain(format!(
        "the file-system daemon ended while the VM was running: {exit}"
    ))
}

fn write_report(file: &Path, report: &Report) -> Result<(), Failure> {
    let failed = |e: &(dyn std::error::Error + 'static)| {
        Failure::new(&format!("write the report {}", file.display()), e)
    };
    let text = serde_json::to_string_pretty(report).map_err(|e| failed(&e))?;
    fs::write(file, text + "\n").map_err(|e| failed(&e))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn whoever_reads_the_terminal_in_the_background_is_not_stopped() {
        let runtime = runtime().unwrap();
        // Where tokio reads standard input.
        let reader = runtime.spawn_blocking(|| fs::read_to_string("/proc/thread-self/status").unwrap());
        let status = runtime.block_on(reader).unwrap();
        let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:"));
        let blocked = u64::from_str_radix(blocked.unwrap().trim(), 16).unwrap();
        assert_eq!(blocked, 1 << (Signal::SIGTTIN as u32 - 1));
    }

    #[test]
    fn a_run_ends_with_its_own_result_before_what_failed_after_it() {
        let failed = |what: &str| Err(Failure::plain(what));
        let told = |result: Result<u8, Failure>| result.map_err(|failure| failure.into_parts().0);
        let conclude = |result, afterwards: [Result<(), Failure>; 2]| told(conclude(result, afterwards));
        assert_eq!(conclude(Ok(0), [Ok(()), Ok(())]), Ok(0));
        assert_eq!(conclude(Ok(7), [failed("removal"), failed("report")]), Ok(7));
        assert_eq!(
            conclude(Ok(0), [Ok(()), failed("report")]),
            Err("report".to_owned())
        );
        assert_eq!(
            conclude(Ok(0), [failed("removal"), failed("report")]),
            Err("removal".to_owned())
        );
        assert_eq!(
            conclude(Err(Failure::plain("run")), [Ok(()), failed("report")]),
            Err("run".to_owned())
        );
    }
}
