//! The ledger against a model that keeps a plain list of what the daemon really has.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use proptest::prelude::*;

use super::*;

fn request(place: u8, content: u8) -> MountRequest {
    let at = MountPoint::new(PLACES[usize::from(place) % PLACES.len()]).unwrap();
    MountRequest::rafs_at(at, &format!("/src/{content}"), "{}")
}

const PLACES: [&str; 6] = ["/a", "/a/b", "/b", "/b/c/d", "/b/c", "/ab"];

/// What becomes of a call on its way.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Answered,
    /// Not done, and no answer.
    LostBefore,
    /// Done, and no answer.
    LostAfter,
    /// Refused for its content.
    Refused,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Mount(u8, u8, Fate),
    Remount(u8, u8, Fate),
    Unmount(u8, Fate),
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        4 => Just(Fate::Answered),
        1 => Just(Fate::LostBefore),
        1 => Just(Fate::LostAfter),
        1 => Just(Fate::Refused)
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        2 => (any::<u8>(), 0u8..2, fate()).prop_map(|(p, c, f)| Step::Mount(p, c, f)),
        1 => (any::<u8>(), 0u8..2, fate()).prop_map(|(p, c, f)| Step::Remount(p, c, f)),
        1 => (any::<u8>(), fate()).prop_map(|(p, f)| Step::Unmount(p, f)),
    ];
    proptest::collection::vec(step, 0..60)
}

/// A daemon that has what it has, and loses answers.
#[derive(Default)]
struct Peer {
    mounted: Vec<(String, String)>,
}

impl Peer {
    fn lost() -> CallError {
        CallError::Unreachable {
            source: std::io::ErrorKind::ConnectionReset.into(),
        }
    }

    fn refused() -> CallError {
        CallError::BadSource {
            message: String::new(),
        }
    }

    fn mount(&mut self, at: &str, what: &str, fate: Fate) -> Result<(), CallError> {
        let taken = self.mounted.iter().any(|(p, _)| p == at);
        match fate {
            Fate::LostBefore => return Err(Self::lost()),
            Fate::Refused if !taken => return Err(Self::refused()),
            _ => {}
        }
        if !taken {
            self.mounted.push((at.to_owned(), what.to_owned()));
        }
        match (fate, taken) {
            (Fate::LostAfter, _) => Err(Self::lost()),
            (_, true) => Err(CallError::AlreadyMounted),
            (_, false) => Ok(()),
        }
    }

    fn remount(&mut self, at: &str, what: &str, fate: Fate) -> Result<(), CallError> {
        let mount = self.mounted.iter_mut().find(|(p, _)| p == at);
        match (mount, fate) {
            (_, Fate::LostBefore) => Err(Self::lost()),
            (None, Fate::LostAfter) => Err(Self::lost()),
            (None, Fate::Answered | Fate::Refused) => Err(CallError::NotMounted),
            (Some(_), Fate::Refused) => Err(Self::refused()),
            (Some(mount), Fate::Answered | Fate::LostAfter) => {
                what.clone_into(&mut mount.1);
                match fate {
                    Fate::LostAfter => Err(Self::lost()),
                    Fate::Answered | Fate::LostBefore | Fate::Refused => Ok(()),
                }
            }
        }
    }

    fn unmount(&mut self, at: &str, fate: Fate) -> Result<(), CallError> {
        match fate {
            Fate::LostBefore => return Err(Self::lost()),
            Fate::Refused => return Err(Self::refused()),
            Fate::Answered | Fate::LostAfter => {}
        }
        let before = self.mounted.len();
        self.mounted.retain(|(p, _)| p != at);
        match fate {
            Fate::LostAfter => Err(Self::lost()),
            _ if before == self.mounted.len() => Err(CallError::NotMounted),
            _ => Ok(()),
        }
    }
}

proptest! {
    /// Whatever is lost on the way: what the ledger calls confirmed is there with that content, what is there is in
    /// the ledger, "present" and success are never claimed wrongly, and no two mounts overlap.
    #[test]
    fn the_books_agree_with_the_daemon(steps in steps()) {
        let mut ledger = Ledger::default();
        let mut peer = Peer::default();
        for step in steps {
            match step {
                Step::Mount(place, content, fate) => {
                    let request = request(place, content);
                    let (at, what) = (request.at().clone(), request.command().source.clone());
                    let wanted = (at.as_str().to_owned(), what.clone());
                    match ledger.admit(&request) {
                        Ok(Admission::Present) => prop_assert!(peer.mounted.contains(&wanted)),
                        Ok(Admission::Ask) => {
                            let answer = peer.mount(at.as_str(), &what, fate);
                            if ledger.settle_mount(&at, answer).is_ok() {
                                prop_assert!(peer.mounted.contains(&wanted));
                            }
                        }
                        Err(Refusal::Conflict) => {
                            let other = |c: &SharedCommand, k| c.source != what || k == Knowledge::Doubtful;
                            prop_assert!(ledger.iter().any(|(p, c, k)| *p == at && other(c, k)));
                        }
                        Err(Refusal::Overlaps(other)) => {
                            prop_assert!(other != at && ledger.iter().any(|(p, _, _)| *p == other));
                        }
                        Err(Refusal::Full) => prop_assert!(false, "six places are never full"),
                    }
                }
                Step::Remount(place, content, fate) => {
                    let request = request(place, content);
                    let (at, what) = (request.at().clone(), request.command().source.clone());
                    match ledger.admit_remount(&request) {
                        Ok(()) => {
                            let answer = peer.remount(at.as_str(), &what, fate);
                            if ledger.settle_remount(&request, answer).is_ok() {
                                prop_assert!(peer.mounted.contains(&(at.as_str().to_owned(), what)));
                            }
                        }
                        Err(refusal) => {
                            prop_assert_eq!(refusal, RemountRefusal::NotMounted);
                            prop_assert!(!peer.mounted.iter().any(|(p, _)| p == at.as_str()));
                        }
                    }
                }
                Step::Unmount(place, fate) => {
                    let at = MountPoint::new(PLACES[usize::from(place) % PLACES.len()]).unwrap();
                    let had = peer.mounted.iter().any(|(p, _)| p == at.as_str());
                    let answer = peer.unmount(at.as_str(), fate);
                    if let Ok(outcome) = ledger.settle_unmount(&at, answer) {
                        prop_assert_eq!(outcome == UnmountOutcome::Unmounted, had);
                        prop_assert!(!ledger.iter().any(|(p, _, _)| *p == at));
                    }
                }
            }
            for (at, command, knowledge) in ledger.iter() {
                if knowledge == Knowledge::Confirmed {
                    prop_assert!(peer.mounted.contains(&(at.as_str().to_owned(), command.source.clone())));
                }
            }
            for (at, _) in &peer.mounted {
                prop_assert!(ledger.iter().any(|(p, _, _)| p.as_str() == at));
            }
            let places: Vec<_> = ledger.iter().map(|(p, _, _)| p.clone()).collect();
            for (i, a) in places.iter().enumerate() {
                prop_assert!(places[i + 1..].iter().all(|b| !a.overlaps(b)));
            }
        }
    }
}

#[test]
fn mounts_are_listed_in_the_order_they_were_made_with_the_command_they_have() {
    let mut ledger = Ledger::default();
    for place in [4, 0, 5] {
        ledger.admit(&request(place, 0)).unwrap();
        ledger.settle_mount(request(place, 0).at(), Ok(())).unwrap();
    }
    let fresh = request(0, 1).with_prefetch(["/bin/sh"]);
    ledger.settle_remount(&fresh, Ok(())).unwrap();
    ledger.settle_unmount(request(4, 0).at(), Ok(())).unwrap();
    ledger.admit(&request(4, 1)).unwrap();
    let listed: Vec<_> = ledger
        .iter()
        .map(|(at, command, _)| (at.clone(), command.clone()))
        .collect();
    let expected = [fresh, request(5, 0), request(4, 1)];
    assert_eq!(listed, expected.map(|r| (r.at().clone(), r.command().clone())));
}

#[test]
fn a_share_is_neither_remounted_nor_put_in_an_images_place() {
    let mut ledger = Ledger::default();
    let share = MountRequest::passthrough(MountPoint::containers(), "/src").unwrap();
    ledger.admit(&share).unwrap();
    ledger.admit(&request(0, 0)).unwrap();
    let image = |at: &MountPoint| MountRequest::rafs_at(at.clone(), "/boot", "{}");
    let directory = |at: &MountPoint| MountRequest::passthrough(at.clone(), "/src").unwrap();
    for bad in [image(share.at()), directory(request(0, 0).at())] {
        assert_eq!(ledger.admit_remount(&bad), Err(RemountRefusal::NotAnImage));
    }
}

#[test]
fn a_remount_whose_answer_was_lost_leaves_the_content_in_doubt() {
    let mut ledger = Ledger::default();
    ledger.admit(&request(0, 0)).unwrap();
    ledger.settle_mount(request(0, 0).at(), Ok(())).unwrap();
    ledger.admit_remount(&request(0, 1)).unwrap();
    ledger
        .settle_remount(&request(0, 1), Err(Peer::lost()))
        .unwrap_err();
    for content in [0, 1] {
        assert_eq!(ledger.admit(&request(0, content)), Err(Refusal::Conflict));
    }
    ledger.admit_remount(&request(0, 1)).unwrap();
    assert_eq!(ledger.records(0).next().unwrap().replacements.len(), 1);
    ledger.settle_remount(&request(0, 1), Ok(())).unwrap();
    assert_eq!(ledger.admit(&request(0, 1)), Ok(Admission::Present));
}

#[test]
fn the_last_slot_is_used_and_no_more() {
    let mut ledger = Ledger::default();
    let numbered = |n: usize| {
        let at = MountPoint::new(format!("/m/{n}")).unwrap();
        MountRequest::passthrough(at, "/src").unwrap()
    };
    for n in 0..SLOTS {
        assert_eq!(ledger.admit(&numbered(n)), Ok(Admission::Ask));
        ledger.settle_mount(numbered(n).at(), Ok(())).unwrap();
    }
    assert_eq!(ledger.admit(&numbered(SLOTS)), Err(Refusal::Full));
    assert_eq!(ledger.admit(&numbered(0)), Ok(Admission::Present));
    ledger.settle_unmount(numbered(7).at(), Ok(())).unwrap();
    assert_eq!(ledger.admit(&numbered(SLOTS)), Ok(Admission::Ask));
}

#[test]
fn a_place_taken_by_someone_else_is_not_ours() {
    let mut ledger = Ledger::default();
    let request = request(0, 0);
    ledger.admit(&request).unwrap();
    let settled = ledger.settle_mount(request.at(), Err(CallError::AlreadyMounted));
    assert!(matches!(settled, Err(CallError::AlreadyMounted)));
    assert_eq!(ledger.iter().count(), 0);
}

/// What a predecessor has written down at any moment, and what the daemon says.
mod recalled {
    use nydusbox_protocol::BackendEntry;

    use super::*;

    fn reported(places: &[&str]) -> BackendCollection {
        let entry = |at: &&str| {
            let entry = BackendEntry {
                backend_type: "Rafs".to_owned(),
                mountpoint: (*at).to_owned(),
                mounted_time: String::new(),
                config: None,
            };
            ((*at).to_owned(), entry)
        };
        places.iter().map(entry).collect()
    }

    /// `/b` and `/ab` in slots 1 and 3, after `/a` was unmounted from 2.
    fn predecessor() -> Ledger {
        let mut ledger = Ledger::default();
        for place in [2, 0, 5] {
            let request = request(place, 0);
            assert_eq!(ledger.admit(&request), Ok(Admission::Ask));
            ledger.settle_mount(request.at(), Ok(())).unwrap();
        }
        ledger.settle_unmount(request(0, 0).at(), Ok(())).unwrap();
        ledger
    }

    fn recall(ledger: &Ledger, places: Option<&[&str]>) -> Ledger {
        let reported = places.map(reported);
        Ledger::recalled(ledger.records(0).collect(), ledger.next_slot(), reported.as_ref())
    }

    fn slots(ledger: &Ledger) -> Vec<(String, Option<Slot>)> {
        let slot = |record: MountRecord| (record.at.as_str().to_owned(), record.slot);
        ledger.records(0).map(slot).collect()
    }

    fn pairs(expected: &[(&str, Option<Slot>)]) -> Vec<(String, Option<Slot>)> {
        expected
            .iter()
            .map(|(at, slot)| ((*at).to_owned(), *slot))
            .collect()
    }

    #[test]
    fn slots_and_the_count_are_those_that_were_written_down() {
        let ledger = recall(&predecessor(), Some(&["/b", "/ab"]));
        assert_eq!(slots(&ledger), pairs(&[("/b", Some(1)), ("/ab", Some(3))]));
        assert_eq!(ledger.next_slot(), Some(4));
    }

    #[test]
    fn a_mount_whose_answer_was_not_written_down_is_in_the_slot_that_came_next() {
        let mut before = predecessor();
        before.admit(&request(0, 0)).unwrap();
        let there = recall(&before, Some(&["/b", "/ab", "/a"]));
        assert_eq!(slots(&there)[2], ("/a".to_owned(), Some(4)));
        assert_eq!(there.next_slot(), Some(5));
        // It may come yet.
        let not_yet = recall(&before, Some(&["/b", "/ab"]));
        assert_eq!(
            slots(&not_yet),
            pairs(&[("/b", Some(1)), ("/ab", Some(3)), ("/a", None)])
        );
        assert_eq!(not_yet.next_slot(), None);
    }

    #[test]
    fn a_mount_made_past_the_supervisor_makes_every_slot_uncertain() {
        let ledger = recall(&predecessor(), Some(&["/b", "/ab", "/x"]));
        assert_eq!(slots(&ledger), pairs(&[("/b", None), ("/ab", None)]));
        assert_eq!(ledger.next_slot(), None);
    }

    #[test]
    fn of_a_daemon_that_does_not_say_everything_is_in_doubt() {
        let ledger = recall(&predecessor(), None);
        assert!(
            ledger
                .iter()
                .all(|(_, _, knowledge)| knowledge == Knowledge::Doubtful)
        );
        assert_eq!(ledger.next_slot(), None);
    }

    fn places(ledger: &Ledger) -> Vec<&str> {
        ledger.iter().map(|(at, _, _)| at.as_str()).collect()
    }

    /// The predecessor was killed before the daemon had done it: it is listed, and what is asked about it next settles it.
    #[test]
    fn a_mount_under_way_is_in_doubt_and_not_forgotten() {
        let mut before = predecessor();
        let asked = request(0, 0);
        before.admit(&asked).unwrap();
        let adopted = || {
            let mut ledger = recall(&before, Some(&["/b", "/ab"]));
            assert_eq!(ledger.iter().last().unwrap().2, Knowledge::Doubtful);
            assert_eq!(ledger.admit(&asked), Ok(Admission::Ask));
            ledger
        };
        let mut done = adopted();
        done.settle_mount(asked.at(), Err(CallError::AlreadyMounted))
            .unwrap();
        assert_eq!(done.admit(&asked), Ok(Admission::Present));

        let mut under_way = adopted();
        let busy = || CallError::Refused {
            status: 400,
            code: ErrorCode::WrongState,
            message: String::new(),
        };
        under_way.settle_mount(asked.at(), Err(busy())).unwrap_err();
        under_way.settle_unmount(asked.at(), Err(busy())).unwrap_err();
        assert_eq!(places(&under_way), ["/b", "/ab", "/a"]);
        assert_eq!(under_way.daemon_is_gone(), [asked.at().clone()]);

        let mut failed = adopted();
        failed.settle_mount(asked.at(), Err(Peer::refused())).unwrap_err();
        assert_eq!(places(&failed), ["/b", "/ab"]);
    }

    /// The daemon was busy when it was asked: what it was known to have is given to the next one all the same.
    #[test]
    fn of_a_daemon_that_does_not_say_what_it_had_is_wanted_if_it_dies() {
        let mut before = predecessor();
        before.admit(&request(0, 0)).unwrap();
        let mut ledger = recall(&before, None);
        assert!(ledger.is_untold());
        // Asked for once more in vain.
        ledger.admit(&request(5, 0)).unwrap();
        ledger
            .settle_mount(request(5, 0).at(), Err(Peer::lost()))
            .unwrap_err();
        assert_eq!(ledger.daemon_is_gone(), [request(0, 0).at().clone()]);
        assert_eq!(slots(&ledger), pairs(&[("/b", Some(1)), ("/ab", Some(3))]));
        assert!(
            matches!(ledger.restoration().step(), crate::restoration::Step::Mount(at, _) if at.as_str() == "/b")
        );
    }

    /// From a predecessor that had lost the count of slots.
    #[test]
    fn what_was_there_in_a_slot_nobody_knows_is_wanted_too() {
        let strangers = recall(&predecessor(), Some(&["/b", "/ab", "/x"]));
        let mut ledger = recall(&strangers, None);
        // And by another one, which did not ask either.
        ledger = recall(&ledger, None);
        assert_eq!(slots(&ledger), pairs(&[("/b", None), ("/ab", None)]));
        let mut asked_away = ledger.clone();
        asked_away
            .settle_unmount(request(2, 0).at(), Err(Peer::lost()))
            .unwrap_err();
        assert_eq!(asked_away.daemon_is_gone(), [request(2, 0).at().clone()]);
        assert_eq!(ledger.daemon_is_gone(), []);
        // It was unmounted, and that not written down.
        assert_eq!(places(&recall(&strangers, Some(&["/b"]))), ["/b"]);
    }

    #[test]
    fn a_daemon_that_says_it_after_all_is_believed_but_for_what_was_asked_since() {
        let mut ledger = recall(&predecessor(), None);
        ledger.admit(&request(0, 0)).unwrap();
        ledger
            .settle_mount(request(0, 0).at(), Err(Peer::lost()))
            .unwrap_err();
        ledger
            .settle_unmount(request(5, 0).at(), Err(Peer::lost()))
            .unwrap_err();
        // What it had before that.
        let told = ledger.told(&reported(&["/b", "/ab", "/a"]));
        assert_eq!(told, [request(2, 0).at().clone()]);
        let confirmed = |ledger: &Ledger| {
            let confirmed = ledger.iter().filter(|(_, _, k)| *k == Knowledge::Confirmed);
            confirmed.map(|(at, _, _)| at.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(confirmed(&ledger), ["/b"]);
        assert!(!ledger.is_untold());
        // What it does not have is no longer wanted.
        let mut ledger = recall(&predecessor(), None);
        assert_eq!(ledger.told(&reported(&["/ab"])), [request(5, 0).at().clone()]);
        assert_eq!(ledger.daemon_is_gone(), [request(2, 0).at().clone()]);
    }

    #[test]
    fn both_commands_of_a_remount_under_way_are_remembered() {
        let mut ledger = predecessor();
        let new = request(2, 1);
        ledger.admit_remount(&new).unwrap();
        let record = ledger.records(0).next().unwrap();
        assert_eq!(record.command, *request(2, 0).command());
        assert_eq!(record.replacements, [new.command().clone()]);
        let recalled = recall(&ledger, Some(&["/b", "/ab"]));
        assert_eq!(recalled.iter().next().unwrap().2, Knowledge::Doubtful);
        ledger.settle_remount(&new, Err(Peer::refused())).unwrap_err();
        assert_eq!(ledger.records(0).next().unwrap().replacements, []);
    }
}
