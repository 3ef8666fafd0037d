//! Single steps of a recovery; whole histories are with the rest of the machine.

use super::*;

/// What an exit of a daemon with these mounts and this call under way leads to, up to the new daemon's first call.
fn recovering(places: &[u8], request: Option<Request>) -> (Lifecycle, Vec<Action>, Vec<Action>) {
    let mut machine = with_mounts_in(machine(true).0, places);
    if let Some(request) = request {
        machine.step(Event::Request(request));
    }
    let at_exit = machine.step(Event::Exited(exit()));
    assert!(matches!(&machine.step(Event::Elapsed)[..], [Action::Launch]));
    let launched = machine.step(Event::Launched(7));
    (machine, at_exit, launched)
}

#[test]
fn a_new_daemon_gets_the_mounts_in_their_slots_and_then_the_vmm() {
    // Slot 1 is free when the daemon ends.
    let mut machine = with_mounts_in(machine(true).0, &[1, 2, 3]);
    machine.step(Event::Request(unmount(1)));
    machine.step(Event::Answer(Ok(())));
    let actions = machine.step(Event::Exited(exit()));
    assert!(
        matches!(
            &actions[..],
            [
                Action::Emit(SandboxEvent::Exited { .. }),
                Action::Disarm,
                Action::Emit(SandboxEvent::Recovering {
                    attempt: 1,
                    after_ms: 50
                }),
                Action::Arm(Timer::Backoff(_)),
            ]
        ),
        "{}",
        text(&actions)
    );
    machine.step(Event::Elapsed);
    let mut calls = Vec::new();
    let mut actions = machine.step(Event::Launched(7));
    while let [Action::Call(call)] = &actions[..] {
        calls.push(match call {
            Call::Skip(at) => format!("skip {at}"),
            Call::Restore(at, _) => format!("mount {at}"),
            Call::Admit => "admit".to_owned(),
            other => panic!("{other:?}"),
        });
        actions = machine.step(Event::Answer(Ok(())));
    }
    assert_eq!(calls, ["skip /m2", "mount /m2", "mount /m3", "admit"]);
    assert!(matches!(
        &actions[..],
        [Action::Emit(SandboxEvent::Recovered {
            pid: 7,
            mounts: 2,
            guest: GuestOutlook::ImagesIfVmmReconnects
        })]
    ));
}

#[test]
fn a_mount_under_way_when_the_daemon_dies_fails_and_is_not_made_again() {
    let (machine, at_exit, launched) = recovering(&[], Some(mount(1)));
    assert!(
        at_exit
            .iter()
            .any(|a| matches!(a, Action::Reply(Reply::Mount(Err(MountError::Exited { .. }))))),
        "{}",
        text(&at_exit)
    );
    assert!(!text(&at_exit).contains("MountLost"), "who asked knows");
    assert!(matches!(&launched[..], [Action::Call(Call::Admit)]));
    assert_eq!(machine.ledger().used(), 0);
}

/// Whoever asked was told that it failed, but it may have been there.
#[test]
fn a_mount_in_doubt_when_the_daemon_dies_is_told_as_lost() {
    let mut machine = with_mounts_in(machine(true).0, &[1]);
    machine.step(Event::Request(mount(2)));
    let after = Duration::from_secs(30);
    machine.step(Event::Answer(Err(CallError::TimedOut { after })));
    let actions = machine.step(Event::Exited(exit()));
    let lost = actions.iter().filter_map(|action| match action {
        Action::Emit(SandboxEvent::MountLost { at, .. }) => Some(at.as_str()),
        _ => None,
    });
    assert_eq!(lost.collect::<Vec<_>>(), ["/m2"], "{}", text(&actions));
    assert_eq!(machine.ledger().used(), 1);
}

#[test]
fn an_unmount_under_way_when_the_daemon_dies_has_what_it_wanted() {
    let (machine, at_exit, launched) = recovering(&[1], Some(unmount(1)));
    assert!(
        at_exit
            .iter()
            .any(|a| matches!(a, Action::Reply(Reply::Unmount(Ok(UnmountOutcome::Unmounted))))),
        "{}",
        text(&at_exit)
    );
    assert!(matches!(&launched[..], [Action::Call(Call::Admit)]));
    assert_eq!(machine.ledger().used(), 0);
}

#[test]
fn a_mount_the_new_daemon_refuses_is_lost_and_the_others_are_not() {
    let (mut machine, _, launched) = recovering(&[1, 2], None);
    assert!(matches!(&launched[..], [Action::Call(Call::Restore(at, _))] if at.as_str() == "/m1"));
    let refused = CallError::BadImage {
        message: "gone".to_owned(),
    };
    let actions = machine.step(Event::Answer(Err(refused)));
    assert!(
        matches!(&actions[..], [Action::Emit(SandboxEvent::MountLost { .. }), Action::Call(Call::Skip(at))] if at.as_str() == "/m2"),
        "{}",
        text(&actions)
    );
    for _ in 0..3 {
        machine.step(Event::Answer(Ok(())));
    }
    assert_eq!(machine.phase(), &Phase::Serving);
    let places: Vec<_> = machine.ledger().iter().map(|(at, _, _)| at.to_string()).collect();
    assert_eq!(places, ["/m2"]);
}

#[test]
fn a_new_daemon_that_does_not_answer_is_killed_and_counts_as_an_exit() {
    let (mut machine, _, _) = recovering(&[1], None);
    let after = Duration::from_secs(30);
    let actions = machine.step(Event::Answer(Err(CallError::TimedOut { after })));
    assert!(matches!(
        &actions[..],
        [
            Action::Emit(SandboxEvent::RecoveryFailed { attempt: 1, .. }),
            Action::Kill
        ]
    ));
    let actions = machine.step(Event::Exited(exit()));
    assert!(
        matches!(
            &actions[..],
            [
                Action::Emit(SandboxEvent::Exited { .. }),
                Action::Emit(SandboxEvent::Recovering { attempt: 2, .. }),
                Action::Arm(Timer::Backoff(_)),
            ]
        ),
        "{}",
        text(&actions)
    );
    assert_eq!(machine.ledger().used(), 1, "still wanted");
}
