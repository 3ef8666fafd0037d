//! Starts that go wrong: each a typed error with its cause, nothing left behind.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod supervisor;

use std::fs::OpenOptions;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use nydusbox::protocol::DaemonState;
use nydusbox::{
    CallError, DirError, ExitCause, Program, Sandbox, StartCause, StartError, StatusPhase, StopStep,
    WaitingFor,
};
use supervisor::Place;

const FAKE: &str = env!("CARGO_BIN_EXE_fake-daemon");
/// One after the other, if the one before was too short to get anywhere.
const DEADLINES: [Duration; 3] = [Duration::from_millis(300), Duration::from_secs(3), LONG];

fn embedded(behaviour: &str) -> Program {
    Program::embedded(FAKE)
        .unwrap()
        .with_env("FAKE_DAEMON", behaviour)
}

fn stock(behaviour: &str) -> Program {
    Program::stock(FAKE).unwrap().with_env("FAKE_DAEMON", behaviour)
}

/// Both dialects, the same outcome.
fn both(behaviour: &str) -> [Program; 2] {
    [embedded(behaviour), stock(behaviour)]
}

/// A start with a share that must fail; checks that nothing is left.
async fn failure(program: Program, deadline: Duration) -> StartError {
    let place = Place::new();
    let config = place
        .config("s1", program)
        .with_share(place.share())
        .unwrap()
        .with_start_deadline(deadline);
    let error = Sandbox::start(config).await.unwrap_err();
    assert!(error.leftovers.is_empty(), "{error:?}");
    place.assert_clean();
    error
}

const LONG: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_daemon_that_exits_is_reported_with_status_and_last_lines() {
    for program in both("exit:3:30") {
        let error = failure(program, LONG).await;
        assert!(
            matches!(*error.cause, StartCause::Exited(ExitCause::Code(3))),
            "{error:?}"
        );
        let expected: Vec<String> = (10..30).map(|n| format!("line {n}")).collect();
        assert_eq!(error.last_lines, expected);
    }
}

/// The child holds the pipe open and sleeps for a quarter of an hour; the start must not wait for that.
#[tokio::test]
async fn a_daemon_that_leaves_a_child_behind_is_reported_at_once_and_the_child_goes() {
    let begun = Instant::now();
    for program in both("exit-with-child") {
        let error = failure(program, LONG).await;
        assert!(
            matches!(*error.cause, StartCause::Exited(ExitCause::Code(7))),
            "{error:?}"
        );
        assert_eq!(error.last_lines, ["leaving a child"]);
    }
    assert!(begun.elapsed() < LONG, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn output_that_is_no_text_is_shown_as_far_as_it_is() {
    let error = failure(embedded("not-utf8"), LONG).await;
    assert!(
        matches!(*error.cause, StartCause::Exited(ExitCause::Code(3))),
        "{error:?}"
    );
    assert_eq!(
        error.last_lines,
        ["good", "bad \u{fffd}\u{fffd}red", "unfinished"]
    );
}

#[tokio::test]
async fn the_deadline_says_what_was_waited_for() {
    for (program, expected) in [
        (
            stock("help-hangs").with_args(["--log-file", "x"]),
            WaitingFor::Preflight,
        ),
        (stock("never-binds"), WaitingFor::Socket),
        (embedded("never-binds"), WaitingFor::Answer),
        (stock("wedge"), WaitingFor::Answer),
        (embedded("wedge"), WaitingFor::Answer),
        (
            stock("init"),
            WaitingFor::Running {
                state: DaemonState::Init,
            },
        ),
        (embedded("wedge-mount"), WaitingFor::Share),
    ] {
        // A machine that has much else to do may not get so far in a short time, and says so truthfully.
        let mut found = Vec::new();
        for deadline in DEADLINES {
            let error = failure(program.clone(), deadline).await;
            match *error.cause {
                StartCause::Deadline { after, waiting_for } => {
                    assert_eq!(after, deadline);
                    found.push(waiting_for);
                }
                ref other => panic!("{other:?} instead of {expected:?}"),
            }
            if found.ends_with(&[expected]) {
                break;
            }
        }
        assert!(found.ends_with(&[expected]), "{found:?} instead of {expected:?}");
    }
}

#[tokio::test]
async fn what_does_not_answer_like_a_daemon_is_refused_at_once() {
    for program in both("half") {
        let error = failure(program, LONG).await;
        assert!(
            matches!(*error.cause, StartCause::Api(CallError::Unreachable { .. })),
            "{error:?}"
        );
    }
    let error = failure(stock("garbage"), LONG).await;
    assert!(
        matches!(*error.cause, StartCause::Api(CallError::NotHttp { .. })),
        "{error:?}"
    );
    let error = failure(stock("html"), LONG).await;
    match &*error.cause {
        StartCause::Api(CallError::UnexpectedResponse {
            status: 200,
            body_prefix,
        }) => {
            assert_eq!(body_prefix, "<html>It works!</html>");
        }
        other => panic!("{other:?}"),
    }
    let error = failure(embedded("huge-body"), LONG).await;
    assert!(
        matches!(*error.cause, StartCause::Api(CallError::BodyTooLarge { .. })),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_share_that_is_refused_fails_the_start() {
    for program in both("refuse-mount") {
        let error = failure(program, LONG).await;
        match &*error.cause {
            StartCause::Share {
                source: CallError::BadSource { message },
                ..
            } => {
                assert!(message.contains("No such file"), "{message}");
            }
            other => panic!("{other:?}"),
        }
    }
    let error = failure(embedded("die-in-mount"), LONG).await;
    assert!(
        matches!(*error.cause, StartCause::Exited(ExitCause::Code(5))),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_program_that_is_no_daemon_is_told_by_its_end() {
    let error = failure(Program::stock("/bin/true").unwrap(), LONG).await;
    assert!(
        matches!(*error.cause, StartCause::Exited(ExitCause::Code(0))),
        "{error:?}"
    );
    let error = failure(Program::embedded("/bin/cat").unwrap(), LONG).await;
    assert!(
        matches!(*error.cause, StartCause::Exited(ExitCause::Code(1))),
        "{error:?}"
    );
    assert!(!error.last_lines.is_empty());
}

#[tokio::test]
async fn a_file_that_cannot_be_executed_fails_the_spawn() {
    let place = Place::new();
    let file = place.path("nydusd");
    std::fs::write(&file, "#!/nowhere/interpreter\n").unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
    for program in [Program::stock(&file), Program::embedded(&file)] {
        let error = Sandbox::start(place.config("s1", program.unwrap()))
            .await
            .unwrap_err();
        match &*error.cause {
            StartCause::Spawn { exe, source } => {
                assert_eq!(
                    (exe, source.raw_os_error()),
                    (&file, Some(2)),
                    "ENOENT, of the interpreter"
                );
            }
            other => panic!("{other:?}"),
        }
        place.assert_clean();
    }
}

#[tokio::test]
async fn a_daemon_that_binds_late_is_waited_for_by_event() {
    for kind in [Program::embedded, Program::stock] {
        let place = Place::new();
        let fifo = place.path("fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
            0,
        )
        .unwrap();
        let program = kind(std::path::Path::new(FAKE))
            .unwrap()
            .with_env("FAKE_DAEMON", format!("binds-late:{}", fifo.display()));
        let start = Sandbox::start(place.config("s1", program));
        // Opening for writing blocks until the daemon has opened for reading.
        let release = tokio::task::spawn_blocking(move || OpenOptions::new().write(true).open(fifo).unwrap());
        let (sandbox, released) = tokio::join!(start, release);
        released.unwrap();
        assert!(sandbox.unwrap().stop().await.leftovers.is_empty());
        place.assert_clean();
    }
}

#[tokio::test]
async fn a_second_start_of_the_same_sandbox_is_refused_and_the_first_goes_on() {
    let place = Place::new();
    let first = Sandbox::start(place.config("s1", embedded("serve")))
        .await
        .unwrap();
    for program in both("serve") {
        let error = Sandbox::start(place.config("s1", program)).await.unwrap_err();
        match &*error.cause {
            StartCause::Dir(DirError::Held { holder, .. }) => assert_eq!(*holder, Some(std::process::id())),
            other => panic!("{other:?}"),
        }
    }
    first.mount(place.request("/still")).await.unwrap();
    assert_eq!(first.status().borrow().phase, StatusPhase::Serving);
    let outcome = first.stop().await;
    assert!(
        matches!(
            outcome.step,
            StopStep::Exited {
                status: ExitCause::Signal(15)
            }
        ),
        "{outcome:?}"
    );
    place.assert_clean();
}

/// From before the spawn to after the share's mount: whenever the future goes, everything goes with it, before
/// `drop` returns.
#[tokio::test]
async fn a_start_that_is_dropped_leaves_nothing_at_any_point() {
    let place = Place::new();
    let (mut dropped, mut started) = (0, 0);
    for program in [embedded as fn(&str) -> Program, stock] {
        for step in 0..60u64 {
            let config = place
                .config("s1", program("serve"))
                .with_share(place.share())
                .unwrap();
            let limit = Duration::from_micros(step * 250);
            match tokio::time::timeout(limit, Sandbox::start(config)).await {
                Err(_) => dropped += 1,
                Ok(sandbox) => {
                    started += 1;
                    assert!(sandbox.unwrap().stop().await.leftovers.is_empty());
                }
            }
            place.assert_clean();
        }
    }
    println!("dropped {dropped}, started {started}");
    assert!(dropped > 0);
}
