//! Giving a new daemon the mounts of the one before, each in the slot it had: the order, as a pure machine.
//!
//! The slot is part of every inode number the guest knows (see [`crate::slots`]), so an image in another slot is
//! another image to a guest that goes on. A new daemon gives its slots out from 1 on. Where one of the old daemon's
//! was free, something is mounted and unmounted again at the place that comes next, which uses the slot up and
//! leaves no trace. Next: [`crate::lifecycle`].

use std::collections::VecDeque;

use nydusbox_protocol::MountPoint;

use crate::shared_command::SharedCommand;
use crate::slots::Slot;

/// What is to be done next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// Mount it.
    Mount(MountPoint, SharedCommand),
    /// Use a slot up: mount something harmless there, unmount it.
    Skip(MountPoint),
    /// Everything is mounted: let the VMM in.
    Admit,
}

/// A mount to be made again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) at: MountPoint,
    pub(crate) command: SharedCommand,
    /// Where it was; `None` when that is not known.
    pub(crate) slot: Option<Slot>,
}

/// How far it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Restoration {
    todo: VecDeque<Wanted>,
    /// The slot the daemon gives out next; there is none after the last.
    next: Option<Slot>,
    skips: bool,
    made: Vec<(MountPoint, Option<Slot>)>,
    same_slots: bool,
}

impl Restoration {
    /// Everything is to be done. Of two mounts the one made first comes first, unless the slots had gone round.
    pub(crate) fn new(wanted: impl IntoIterator<Item = Wanted>) -> Self {
        let mut todo: Vec<_> = wanted.into_iter().collect();
        todo.sort_by_key(|w| w.slot.unwrap_or(Slot::MAX));
        Self {
            todo: todo.into(),
            next: Some(1),
            skips: true,
            made: Vec::new(),
            same_slots: true,
        }
    }

    /// What is to be done now.
    pub(crate) fn step(&self) -> Step {
        match self.todo.front() {
            None => Step::Admit,
            Some(wanted) if self.skips && self.next.is_some() && self.next < wanted.slot => {
                Step::Skip(wanted.at.clone())
            }
            Some(wanted) => Step::Mount(wanted.at.clone(), wanted.command.clone()),
        }
    }

    /// The mount was made.
    pub(crate) fn mounted(&mut self) {
        if let Some(wanted) = self.todo.pop_front() {
            self.same_slots &= wanted.slot.is_some() && wanted.slot == self.next;
            self.made.push((wanted.at, self.next));
            self.used_one();
        }
    }

    /// The mount cannot be made any more.
    pub(crate) fn refused(&mut self) {
        self.todo.pop_front();
    }

    /// A slot was used up.
    pub(crate) fn skipped(&mut self) {
        self.used_one();
    }

    /// Slots cannot be used up; mounts take what comes.
    pub(crate) fn cannot_skip(&mut self) {
        self.skips = false;
    }

    fn used_one(&mut self) {
        self.next = self.next.and_then(|slot| slot.checked_add(1));
    }

    /// What was mounted, with its slot.
    pub(crate) fn made(&self) -> &[(MountPoint, Option<Slot>)] {
        &self.made
    }

    /// The last slot the daemon has given out, 0 if none.
    pub(crate) fn last_slot(&self) -> Slot {
        self.next.map_or(Slot::MAX, |next| next - 1)
    }

    /// Whether everything mounted is in the slot it had.
    pub(crate) fn same_slots(&self) -> bool {
        self.same_slots
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use nydusbox_protocol::MountCommand;
    use proptest::prelude::*;

    use super::*;
    use crate::slots::Slots;

    fn at(n: usize) -> MountPoint {
        MountPoint::new(format!("/m/{n}")).unwrap()
    }

    /// A daemon that gives out slots by nydusd's rule.
    #[derive(Default)]
    struct Peer {
        slots: Slots,
        mounted: BTreeMap<MountPoint, Slot>,
    }

    impl Peer {
        fn mount(&mut self, at: &MountPoint) {
            let slot = self.slots.allocate(self.mounted.values().copied()).unwrap();
            assert_eq!(self.mounted.insert(at.clone(), slot), None);
        }
    }

    /// Carries a restoration out, with a daemon that refuses some mounts; how many slots were used up for nothing.
    fn restore(mut restoration: Restoration, refused: &BTreeSet<MountPoint>) -> (Peer, Restoration, usize) {
        let (mut peer, mut skips) = (Peer::default(), 0);
        loop {
            match restoration.step() {
                Step::Mount(at, _) if refused.contains(&at) => restoration.refused(),
                Step::Mount(at, _) => {
                    peer.mount(&at);
                    restoration.mounted();
                }
                Step::Skip(at) => {
                    peer.mount(&at);
                    peer.mounted.remove(&at);
                    restoration.skipped();
                    skips += 1;
                }
                Step::Admit => return (peer, restoration, skips),
            }
        }
    }

    proptest! {
        /// After any history of mounts and unmounts, the new daemon has each mount that is not refused in the slot
        /// it had in the old one.
        #[test]
        fn every_mount_comes_back_in_its_slot(
            history in proptest::collection::vec((any::<bool>(), 0usize..40), 0..400),
            refused in proptest::collection::btree_set((0usize..40).prop_map(at), 0..5),
        ) {
            let mut old = Peer::default();
            for (mount, n) in history {
                match (mount, old.mounted.contains_key(&at(n))) {
                    (true, false) => old.mount(&at(n)),
                    (false, true) => drop(old.mounted.remove(&at(n))),
                    (true, true) | (false, false) => {}
                }
            }
            let wanted = old.mounted.iter().map(|(at, slot)| Wanted {
                at: at.clone(),
                command: MountCommand::passthrough("/src").into(),
                slot: Some(*slot),
            });
            let (new, restoration, skips) = restore(Restoration::new(wanted), &refused);
            prop_assert!(restoration.same_slots());
            prop_assert!(skips < 255);
            let expected: BTreeMap<_, _> =
                old.mounted.into_iter().filter(|(at, _)| !refused.contains(at)).collect();
            prop_assert_eq!(&new.mounted, &expected);
            let made: BTreeMap<_, _> =
                restoration.made().iter().map(|(at, slot)| (at.clone(), slot.unwrap())).collect();
            prop_assert_eq!(made, expected);
        }
    }

    #[test]
    fn what_cannot_be_the_same_is_not_called_the_same() {
        let wanted = |slot| Wanted {
            at: at(0),
            command: MountCommand::passthrough("/src").into(),
            slot,
        };
        let (_, unknown, _) = restore(Restoration::new([wanted(None)]), &BTreeSet::new());
        assert!(!unknown.same_slots());
        let mut restoration = Restoration::new([wanted(Some(3))]);
        assert_eq!(restoration.step(), Step::Skip(at(0)));
        restoration.cannot_skip();
        let (_, restoration, skips) = restore(restoration, &BTreeSet::new());
        assert_eq!((restoration.same_slots(), skips), (false, 0));
        assert_eq!(restoration.made(), [(at(0), Some(1))]);
    }
}
