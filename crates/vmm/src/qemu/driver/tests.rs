#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Write;
use std::os::unix::net::UnixStream as Blocking;
use std::process::Stdio;

use tokio::process::Command;

use super::super::qmp::Qmp;
use super::super::spawn::memory_file;
use super::*;

/// A machine that boots, played by a process that does what `script` says, and by whoever has the guest's end.
struct Played {
    driver: Driver,
    _guest: Blocking,
    stop: mpsc::Sender<()>,
    events: watch::Receiver<Vec<GuestEvent>>,
    _errand: oneshot::Sender<Errand>,
    ends: Vec<UnixStream>,
    _dir: tempfile::TempDir,
}

/// What the guest has said, and whether the process has ended, is known to the driver before it begins.
async fn played(script: &str, said: &[u8], ended: bool, boot_deadline: Duration) -> Played {
    let mut command = Command::new("sh");
    command
        .args(["-c", script])
        .stderr(Stdio::null())
        .kill_on_drop(true);
    let mut child = command.spawn().unwrap();
    if ended {
        child.wait().await.unwrap();
    }
    let mut ends = Vec::new();
    let mut pair = || {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ends.push(theirs);
        ours
    };
    let streams = [pair(), pair(), pair()];
    let (qmp, console) = (Qmp::new(pair()), pair());
    let (control, mut guest) = Blocking::pair().unwrap();
    control.set_nonblocking(true).unwrap();
    let control = UnixStream::from_std(control).unwrap();
    guest.write_all(said).unwrap();
    if !said.is_empty() {
        control.readable().await.unwrap();
    }
    let [stdin, stdout, stderr] = streams;
    let spawned = Spawned {
        child,
        ports: [stdin, stdout, stderr, control],
        qmp,
        memory: Arc::new(memory_file("test").unwrap()),
        console,
        state: None,
    };
    let dir = tempfile::tempdir().unwrap();
    let (events_out, events) = watch::channel(Vec::new());
    let (stop, stop_requests) = mpsc::channel(1);
    let (errand, errands) = oneshot::channel();
    let driver = Driver::new(
        spawned,
        Guest::Boots(None),
        "marker".to_owned(),
        dir.path().join("console"),
        boot_deadline,
        events_out,
        stop_requests,
        errands,
    );
    Played {
        driver,
        _guest: guest,
        stop,
        events,
        _errand: errand,
        ends,
        _dir: dir,
    }
}

const LONG: Duration = Duration::from_secs(600);

/// What it says after more than it is heard at once is not heard: it might as well have gone on.
#[tokio::test]
async fn a_guest_that_does_not_stop_talking_keeps_nobody_from_ending_it() {
    let mut said = vec![b'\n'; (HEARD_AT_ONCE + 4) * 4096];
    said.extend_from_slice(b"error share no such device\n");
    let stopped = played("exec sleep 1000", &said, false, LONG).await;
    stopped.stop.send(()).await.unwrap();
    assert_eq!(stopped.driver.run().await, VmOutcome::Killed);
    let mut gone = played("exit 3", &said, true, LONG).await;
    gone.ends.clear();
    let gone = gone.driver.run().await;
    let not_started = |outcome: &VmOutcome| {
        matches!(
            outcome,
            VmOutcome::VmmExited {
                command_started: false,
                ..
            }
        )
    };
    assert!(not_started(&gone), "{gone}");
    let late = played("exec sleep 1000", &said, false, LONG).await;
    tokio::time::pause();
    tokio::time::advance(2 * LONG).await;
    let late = late.driver.run().await;
    assert!(
        matches!(
            late,
            VmOutcome::BootDeadline {
                stage: BootStage::Booting,
                ..
            }
        ),
        "{late}"
    );
}

/// Whoever takes it for one that did not run runs it again.
#[tokio::test]
async fn a_machine_that_ends_while_its_command_runs_is_told_apart() {
    let mut gone = played("exit 3", b"ready\ncommand-started\n", true, LONG).await;
    gone.ends.clear();
    let gone = gone.driver.run().await;
    assert_eq!(
        gone.sentence(),
        "the VMM ended before the command did (exit status: 3)"
    );
}

#[tokio::test]
async fn what_a_guest_has_said_counts_before_the_end_of_its_process_and_a_deadline() {
    let failed = played("exit 3", b"ready\nerror share no such device\n", true, LONG).await;
    let outcome = failed.driver.run().await;
    let step = GuestStep::Share;
    let message = "no such device".to_owned();
    assert_eq!(outcome, VmOutcome::GuestFailed { step, message });

    let mut started = played("exec sleep 1000", b"command-started\n", false, Duration::ZERO).await;
    let driver = tokio::spawn(started.driver.run());
    started
        .events
        .wait_for(|events| *events == [GuestEvent::CommandStarted])
        .await
        .unwrap();
    started.stop.send(()).await.unwrap();
    assert_eq!(driver.await.unwrap(), VmOutcome::Killed);
}

#[test]
fn a_guest_that_does_not_stop_talking_does_not_fill_us() {
    let (events, mut told) = watch::channel(Vec::new());
    for _ in 0..10 * MAX_EVENTS {
        remember(&events, &GuestEvent::Ready);
    }
    assert_eq!(told.borrow_and_update().len(), MAX_EVENTS);
    remember(&events, &GuestEvent::Ready);
    assert!(told.has_changed().is_ok_and(|changed| !changed));
}

/// Its exit status and its own words say why, not that nobody reads what it is sent.
#[tokio::test]
async fn a_process_that_is_gone_before_its_guest_got_all_is_waited_for() {
    for gone in [
        ProvideError::Control(io::ErrorKind::BrokenPipe.into()),
        ProvideError::Qmp(QmpError::Closed(io::ErrorKind::BrokenPipe.into())),
    ] {
        let mut played = played("exec sleep 1000", b"", false, LONG).await;
        let verdict = played.driver.task_ended(Ok(Ended::Provided(Err(gone))));
        assert!(verdict.is_none());
    }
}
