//! The machine against a world that only knows the rules: who may be asked what when, and what everyone is owed.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;

use super::*;
use crate::events::GuestOutlook;
use crate::exit::ExitCause;
use crate::recovery::RestartPolicy;

fn exit() -> Exit {
    Exit {
        cause: ExitCause::Code(3),
        last_lines: vec!["bye".to_owned()],
    }
}

fn lost() -> CallError {
    CallError::Unreachable {
        source: std::io::ErrorKind::ConnectionReset.into(),
    }
}

fn image(place: u8) -> MountRequest {
    let at = MountPoint::new(format!("/m{place}")).unwrap();
    MountRequest::rafs_at(at, "/boot", "{}")
}

fn mount(place: u8) -> Request {
    Request::Mount(image(place))
}

fn unmount(place: u8) -> Request {
    Request::Unmount(MountPoint::new(format!("/m{place}")).unwrap())
}

/// What the outside sees and has to enforce.
#[derive(Default)]
struct World {
    call: bool,
    owed: bool,
    timer: bool,
    asked: bool,
    killed: bool,
    gone: bool,
    leaving: bool,
    /// The sandbox gets another daemon when one ends, and whether one is being started.
    restarts: bool,
    launching: bool,
    /// The last daemon's mounts are being made again; the VMM is let in last.
    restoring: bool,
    gave_up: bool,
    attempt: u32,
    /// What the events have said so far.
    said_exited: bool,
    said_stopping: bool,
    finished: Option<StopStep>,
}

impl World {
    fn launched(&mut self, failed: bool) -> Event {
        self.launching = false;
        if failed {
            return Event::LaunchFailed {
                reason: String::new(),
                last_lines: Vec::new(),
            };
        }
        (self.gone, self.said_exited, self.restoring) = (false, false, true);
        Event::Launched(7)
    }

    fn take(&mut self, actions: Vec<Action>) -> TestCaseResult {
        for action in actions {
            prop_assert!(self.finished.is_none(), "{action:?} after the end");
            match action {
                Action::Call(call) => {
                    prop_assert!(!self.call && !self.asked && !self.killed && !self.gone);
                    let recovery = matches!(call, Call::Restore(..) | Call::Skip(_) | Call::Admit);
                    prop_assert_eq!(recovery, self.restoring);
                    self.call = true;
                }
                Action::AbandonCall => self.call = false,
                Action::Reply(_) => prop_assert!(std::mem::take(&mut self.owed), "nobody is owed a reply"),
                Action::Arm(_) => self.timer = true,
                Action::Disarm => self.timer = false,
                Action::Emit(event) => self.hear(&event)?,
                Action::Terminate => {
                    prop_assert!(self.leaving && !self.asked && !self.killed && !self.gone && !self.call);
                    self.asked = true;
                }
                Action::Kill => {
                    prop_assert!((self.leaving || self.restoring) && !self.killed && !self.gone);
                    self.killed = true;
                }
                Action::Launch => {
                    prop_assert!(
                        self.restarts && self.gone && !self.launching && !self.leaving && !self.gave_up
                    );
                    self.launching = true;
                }
                Action::AbandonLaunch => {
                    prop_assert!(self.leaving && std::mem::take(&mut self.launching));
                }
                Action::Finish(step) => {
                    prop_assert!(self.leaving && (self.gone || self.killed));
                    prop_assert!(self.said_stopping && !self.launching);
                    prop_assert_eq!(self.said_exited, matches!(step, StopStep::AlreadyGone { .. }));
                    match &step {
                        StopStep::Exited { .. } => prop_assert!(self.asked && !self.killed),
                        StopStep::Killed => prop_assert!(self.killed && self.gone),
                        StopStep::AlreadyGone { .. } => prop_assert!(!self.asked && !self.killed),
                        StopStep::Unkillable => prop_assert!(self.killed && !self.gone),
                        StopStep::Interrupted => prop_assert!(false, "not the machine's to say"),
                    }
                    self.finished = Some(step);
                }
            }
        }
        Ok(())
    }

    fn hear(&mut self, event: &SandboxEvent) -> TestCaseResult {
        match event {
            SandboxEvent::Exited { .. } => {
                prop_assert!(self.gone && !self.asked && (!self.killed || self.restoring));
                prop_assert!(!std::mem::replace(&mut self.said_exited, true), "said twice");
                // Whom the recovery has killed counts as having ended.
                self.killed = false;
                self.restoring = false;
            }
            SandboxEvent::Recovering { attempt, .. } => {
                prop_assert!(self.restarts && self.gone && !self.leaving && !self.gave_up);
                self.attempt += 1;
                prop_assert_eq!(*attempt, self.attempt);
            }
            SandboxEvent::RecoveryFailed { attempt, .. } => prop_assert_eq!(*attempt, self.attempt),
            // With the daemon of which it is not known whether it had it, or refused by the next one.
            SandboxEvent::MountLost { .. } if self.gone => {
                prop_assert!(self.restarts && self.said_exited && !self.leaving && !self.gave_up);
            }
            SandboxEvent::MountLost { .. } => prop_assert!(self.restoring),
            SandboxEvent::Recovered { .. } => {
                prop_assert!(
                    std::mem::take(&mut self.restoring) && !self.gone && !self.call && !self.leaving
                );
            }
            SandboxEvent::GaveUp { exits, .. } => {
                prop_assert!(self.restarts && self.gone && !self.leaving);
                prop_assert_eq!((*exits, self.attempt), (4, 3));
                self.gave_up = true;
            }
            SandboxEvent::Stopping => {
                prop_assert!(self.leaving);
                prop_assert!(!std::mem::replace(&mut self.said_stopping, true), "said twice");
            }
            // What was being unmounted when the daemon ended is not made again.
            SandboxEvent::Unmounted { .. } if self.restarts => prop_assert!(!self.restoring),
            SandboxEvent::Mounted { .. }
            | SandboxEvent::Remounted { .. }
            | SandboxEvent::Unmounted { .. } => prop_assert!(!self.gone),
            other => prop_assert!(false, "not the machine's to say: {other:?}"),
        }
        Ok(())
    }
}

/// A machine of either kind, and its world. Time stands still, so every exit counts.
fn machine(restarts: bool) -> (Lifecycle, World) {
    let mut machine = Lifecycle::serving(Ledger::default(), 1 << 20);
    if restarts {
        let limit = std::num::NonZeroU32::new(4).unwrap();
        let policy = RestartPolicy::default().with_limit(limit, Duration::from_secs(60));
        machine = machine.with_recovery(Recovery::new(policy, Duration::ZERO));
    }
    let world = World {
        restarts,
        ..World::default()
    };
    (machine, world)
}

fn feed(machine: &mut Lifecycle, world: &mut World, choice: u8, detail: u8) -> TestCaseResult {
    let event = match choice % 9 {
        0 | 1 if machine.takes_requests() => {
            prop_assert!(!world.owed, "a request is taken while one is open");
            world.owed = true;
            Event::Request(match detail % 3 {
                0 => mount(detail % 5),
                1 => Request::Remount(image(detail % 5)),
                _ => unmount(detail % 5),
            })
        }
        2 | 3 if world.call => {
            world.call = false;
            Event::Answer(match detail % 4 {
                0 | 1 => Ok(()),
                2 => Err(lost()),
                _ => Err(CallError::NotMounted),
            })
        }
        4 if world.timer => {
            world.timer = false;
            Event::Elapsed
        }
        5 if !world.gone && detail.is_multiple_of(4) => {
            world.gone = true;
            Event::Exited(exit())
        }
        6 if detail.is_multiple_of(6) => {
            world.leaving = true;
            Event::Stop(if detail.is_multiple_of(4) {
                Ending::Ask
            } else {
                Ending::Kill
            })
        }
        7 if detail.is_multiple_of(12) => {
            world.leaving = true;
            Event::Abandoned
        }
        8 if world.launching => world.launched(detail.is_multiple_of(4)),
        _ => return Ok(()),
    };
    let actions = machine.step(event);
    world.take(actions)
}

proptest! {
    /// Whatever happens in whatever order: one call at a time, one reply for each request, no signal after the end,
    /// and once the owner wants it, calls that return or time out lead to the end.
    #[test]
    fn every_history_keeps_the_rules_and_ends(
        history in proptest::collection::vec((any::<u8>(), any::<u8>()), 0..120),
        dies in any::<bool>(),
        restarts in any::<bool>(),
    ) {
        let (mut machine, mut world) = machine(restarts);
        for (choice, detail) in history {
            if world.finished.is_some() {
                break;
            }
            feed(&mut machine, &mut world, choice, detail)?;
            prop_assert!(!(machine.takes_requests() && machine.is_recovering()));
        }
        if world.finished.is_none() && !world.leaving {
            world.leaving = true;
            world.take(machine.step(Event::Stop(Ending::Ask)))?;
        }
        for _ in 0..20 {
            if world.finished.is_some() {
                break;
            }
            let event = if world.call {
                world.call = false;
                Event::Answer(Ok(()))
            } else if dies && !world.gone {
                world.gone = true;
                Event::Exited(exit())
            } else {
                prop_assert!(std::mem::take(&mut world.timer), "nothing to wait for in {:?}", machine.phase());
                Event::Elapsed
            };
            world.take(machine.step(event))?;
        }
        prop_assert!(world.finished.is_some(), "stuck in {:?}", machine.phase());
        prop_assert!(!world.owed, "a request was never answered");
    }
}

proptest! {
    /// From any point of any history: a daemon that is replaced by one that does as it is told serves again what was
    /// confirmed, and takes requests.
    #[test]
    fn every_recovery_that_is_not_given_up_ends_in_serving(
        history in proptest::collection::vec((0u8..6, any::<u8>()), 0..60),
    ) {
        let (mut machine, mut world) = machine(true);
        for (choice, detail) in history {
            // Nobody leaves.
            feed(&mut machine, &mut world, [0, 1, 2, 4, 5, 8][usize::from(choice)], detail)?;
        }
        for _ in 0..2000 {
            if world.gave_up || (!world.gone && !world.call && machine.takes_requests()) {
                break;
            }
            let event = if world.call {
                world.call = false;
                Event::Answer(Ok(()))
            } else if world.killed && !world.gone {
                world.gone = true;
                Event::Exited(exit())
            } else if world.launching {
                world.launched(false)
            } else {
                prop_assert!(std::mem::take(&mut world.timer), "nothing to wait for in {:?}", machine.phase());
                Event::Elapsed
            };
            world.take(machine.step(event))?;
        }
        match machine.phase() {
            Phase::Serving => {
                prop_assert!(!world.gave_up && !world.restoring && !world.owed);
                for (at, _, knowledge) in machine.ledger().iter() {
                    prop_assert!(knowledge != crate::ledger::Knowledge::Asked, "{at}");
                }
            }
            Phase::Exited(_) => prop_assert!(world.gave_up),
            other => prop_assert!(false, "stuck in {other:?}"),
        }
    }
}

fn with_mounts(places: &[u8]) -> Lifecycle {
    with_mounts_in(Lifecycle::serving(Ledger::default(), 1 << 20), places)
}

fn with_mounts_in(mut machine: Lifecycle, places: &[u8]) -> Lifecycle {
    for &place in places {
        machine.step(Event::Request(mount(place)));
        machine.step(Event::Answer(Ok(())));
    }
    machine
}

#[test]
fn the_warning_about_slots_comes_once_each_time_they_become_scarce() {
    let mut machine = Lifecycle::serving(Ledger::default(), 1 << 20);
    let mut warned = |request: Request, answer| {
        machine.step(Event::Request(request));
        let actions = machine.step(Event::Answer(answer));
        actions
            .iter()
            .filter(|a| matches!(a, Action::Emit(SandboxEvent::SlotsLow { of: 255, .. })))
            .count()
    };
    let used = u8::try_from(SLOTS_LOW).unwrap();
    for place in 1..used {
        assert_eq!(warned(mount(place), Ok(())), 0);
    }
    let refused = Err(CallError::BadSource {
        message: String::new(),
    });
    assert_eq!(warned(mount(used), refused), 0);
    assert_eq!(warned(mount(used), Ok(())), 1);
    assert_eq!(warned(mount(used + 1), Ok(())), 0);
    assert_eq!(warned(unmount(1), Ok(())), 0);
    assert_eq!(warned(mount(1), Ok(())), 0);
    assert_eq!(warned(unmount(1), Ok(())) + warned(unmount(2), Ok(())), 0);
    assert_eq!(warned(mount(1), Ok(())), 1);
}

fn text(actions: &[Action]) -> String {
    format!("{actions:?}")
}

#[test]
fn an_orderly_stop_unmounts_everything_then_asks_then_is_done() {
    let mut machine = with_mounts(&[1, 2]);
    let first = machine.step(Event::Stop(Ending::Ask));
    assert!(
        matches!(&first[..], [Action::Emit(SandboxEvent::Stopping), Action::Arm(Timer::Unmount), Action::Call(Call::Unmount(at))] if at.as_str() == "/m2")
    );
    let second = machine.step(Event::Answer(Ok(())));
    assert!(
        matches!(&second[..], [Action::Emit(SandboxEvent::Unmounted { at }), Action::Call(Call::Unmount(next))] if at.as_str() == "/m2" && next.as_str() == "/m1")
    );
    let third = machine.step(Event::Answer(Err(CallError::NotMounted)));
    assert!(matches!(
        &third[..],
        [Action::Terminate, Action::Arm(Timer::Grace)]
    ));
    let last = machine.step(Event::Exited(exit()));
    assert!(matches!(
        &last[..],
        [Action::Finish(StopStep::Exited {
            status: ExitCause::Code(3)
        })]
    ));
    assert!(machine.take_unmount_failures().is_empty());
}

#[test]
fn a_daemon_that_cannot_be_asked_is_killed_after_unmounting() {
    let mut machine = with_mounts(&[]);
    let actions = machine.step(Event::Stop(Ending::Kill));
    assert!(matches!(
        &actions[..],
        [
            Action::Emit(SandboxEvent::Stopping),
            Action::Arm(Timer::Unmount),
            Action::Kill,
            Action::Arm(Timer::Reap)
        ]
    ));
    let actions = machine.step(Event::Exited(exit()));
    assert!(matches!(&actions[..], [Action::Finish(StopStep::Killed)]));
}

#[test]
fn a_broken_connection_waits_for_the_exit_and_is_told_as_the_exit() {
    let mut machine = with_mounts(&[]);
    machine.step(Event::Request(mount(1)));
    let actions = machine.step(Event::Answer(Err(lost())));
    assert!(matches!(&actions[..], [Action::Arm(Timer::ExitShows)]));
    let actions = machine.step(Event::Exited(exit()));
    assert!(
        actions
            .iter()
            .any(|a| matches!(a, Action::Reply(Reply::Mount(Err(MountError::Exited { .. }))))),
        "{}",
        text(&actions)
    );
    let actions = machine.step(Event::Request(unmount(1)));
    assert!(matches!(
        &actions[..],
        [Action::Reply(Reply::Unmount(Err(UnmountError::Exited { .. })))]
    ));
}

#[test]
fn an_exit_that_does_not_show_leaves_the_connections_error() {
    let mut machine = with_mounts(&[]);
    machine.step(Event::Request(mount(1)));
    machine.step(Event::Answer(Err(lost())));
    let actions = machine.step(Event::Elapsed);
    assert!(matches!(
        &actions[..],
        [Action::Reply(Reply::Mount(Err(MountError::Daemon {
            source: CallError::Unreachable { .. },
            ..
        })))]
    ));
    // It may be there: the same request asks again and is content with "already there".
    machine.step(Event::Request(mount(1)));
    let actions = machine.step(Event::Answer(Err(CallError::AlreadyMounted)));
    assert!(matches!(
        &actions[..],
        [
            Action::Emit(SandboxEvent::Mounted { .. }),
            Action::Reply(Reply::Mount(Ok(MountOutcome::Mounted)))
        ]
    ));
}

#[test]
fn a_second_mount_of_the_same_needs_no_call_and_of_another_is_refused() {
    let mut machine = with_mounts(&[1]);
    let actions = machine.step(Event::Request(mount(1)));
    assert!(matches!(
        &actions[..],
        [Action::Reply(Reply::Mount(Ok(MountOutcome::AlreadyMounted)))]
    ));
    let at = MountPoint::new("/m1").unwrap();
    let other = MountRequest::passthrough(at, "/elsewhere").unwrap();
    let actions = machine.step(Event::Request(Request::Mount(other)));
    assert!(matches!(
        &actions[..],
        [Action::Reply(Reply::Mount(Err(MountError::Conflict { .. })))]
    ));
}

#[test]
fn a_request_the_daemon_would_not_read_is_not_sent() {
    let mut machine = Lifecycle::serving(Ledger::default(), 51_200);
    let container = nydusbox_protocol::ContainerId::new("c1").unwrap();
    let request = MountRequest::rafs(&container, "/boot", "x".repeat(52_000)).unwrap();
    let actions = machine.step(Event::Request(Request::Mount(request)));
    assert!(matches!(
        &actions[..],
        [Action::Reply(Reply::Mount(Err(MountError::TooLarge {
            limit_bytes: 51_200,
            ..
        })))]
    ));
}

#[test]
fn the_coming_and_going_of_a_vmm_is_said_once() {
    let mut machine = with_mounts(&[]);
    let mut said = |attached| text(&machine.step(Event::Vmm(attached)));
    assert_eq!(said(false), "[]");
    assert_eq!(said(true), "[Emit(VmmConnected)]");
    assert_eq!(said(true), "[]");
    assert_eq!(said(false), "[Emit(VmmLeft)]");
}

#[test]
fn the_stops_deadline_cuts_a_wedged_call_off() {
    let mut machine = with_mounts(&[]);
    machine.step(Event::Request(mount(1)));
    machine.step(Event::Stop(Ending::Ask));
    let actions = machine.step(Event::Elapsed);
    assert!(
        matches!(
            &actions[..],
            [
                Action::AbandonCall,
                Action::Reply(Reply::Mount(Err(MountError::Stopping { .. }))),
                Action::Terminate,
                Action::Arm(Timer::Grace),
            ]
        ),
        "{}",
        text(&actions)
    );
    assert!(matches!(
        &machine.step(Event::Elapsed)[..],
        [Action::Kill, Action::Arm(Timer::Reap)]
    ));
}

#[path = "lifecycle/recovering_tests.rs"]
mod recovering;
