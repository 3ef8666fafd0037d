//! The machine against a world that only knows the rules: who may be asked what when, and what everyone is owed.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;

use super::*;
use crate::exit::ExitCause;

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
    /// What the events have said so far.
    said_exited: bool,
    said_stopping: bool,
    finished: Option<StopStep>,
}

impl World {
    fn take(&mut self, actions: Vec<Action>) -> TestCaseResult {
        for action in actions {
            prop_assert!(self.finished.is_none(), "{action:?} after the end");
            match action {
                Action::Call(_) => {
                    prop_assert!(!self.call && !self.asked && !self.killed && !self.gone);
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
                    prop_assert!(self.leaving && !self.killed && !self.gone);
                    self.killed = true;
                }
                Action::Finish(step) => {
                    prop_assert!(self.leaving && (self.gone || self.killed));
                    prop_assert!(self.said_stopping);
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
                prop_assert!(self.gone && !self.asked && !self.killed);
                prop_assert!(!std::mem::replace(&mut self.said_exited, true), "said twice");
            }
            SandboxEvent::Stopping => {
                prop_assert!(self.leaving);
                prop_assert!(!std::mem::replace(&mut self.said_stopping, true), "said twice");
            }
            SandboxEvent::Mounted { .. }
            | SandboxEvent::Remounted { .. }
            | SandboxEvent::Unmounted { .. } => prop_assert!(!self.gone),
            other => prop_assert!(false, "not the machine's to say: {other:?}"),
        }
        Ok(())
    }
}

fn feed(machine: &mut Lifecycle, world: &mut World, choice: u8, detail: u8) -> TestCaseResult {
    let event = match choice % 8 {
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
    ) {
        let mut machine = Lifecycle::serving(Ledger::default(), 1 << 20);
        let mut world = World::default();
        for (choice, detail) in history {
            if world.finished.is_some() {
                break;
            }
            feed(&mut machine, &mut world, choice, detail)?;
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

fn with_mounts(places: &[u8]) -> Lifecycle {
    let mut machine = Lifecycle::serving(Ledger::default(), 1 << 20);
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
