//! Which slot of the daemon's VFS a mount is in. The slot is the highest byte of every inode number the guest knows.
//!
//! The API does not tell. But the daemon gives slots out by a fixed rule, from the last one on, round and round, past
//! those in use, and answers one mount after the other: whoever counts along knows. Pure; used by [`crate::ledger`].

/// Slots of the daemon's VFS: its index is one byte and 0 is the pseudo file system.
pub(crate) const SLOTS: usize = 255;
/// From so many mounts on, it is time to warn.
pub(crate) const SLOTS_LOW: usize = 240;

/// A slot, never 0.
pub(crate) type Slot = u8;

/// The daemon's count, as far as it can be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slots {
    next: Slot,
    /// Whether every mount that took a slot is known.
    counted: bool,
}

impl Default for Slots {
    /// A daemon that has not mounted anything.
    fn default() -> Self {
        Self {
            next: 1,
            counted: true,
        }
    }
}

impl Slots {
    /// The slot the daemon gives the next mount; `None` when all are in use or the count was lost.
    pub(crate) fn allocate(&mut self, used: impl Iterator<Item = Slot>) -> Option<Slot> {
        let mut taken = [false; SLOTS + 1];
        taken[0] = true;
        used.for_each(|slot| taken[usize::from(slot)] = true);
        for _ in 0..=SLOTS {
            let slot = self.next;
            self.next = self.next.wrapping_add(1);
            if !taken[usize::from(slot)] {
                return Some(slot).filter(|_| self.counted);
            }
        }
        None
    }

    /// A mount may have taken a slot, or may yet.
    pub(crate) fn lose_count(&mut self) {
        self.counted = false;
    }

    /// The count as it was written down; `None` when it was lost.
    pub(crate) fn recalled(next: Option<Slot>) -> Self {
        Self {
            next: next.unwrap_or_default(),
            counted: next.is_some(),
        }
    }

    /// Where the daemon begins to look for the next free slot; `None` when the count was lost.
    pub(crate) fn next(&self) -> Option<Slot> {
        Some(self.next).filter(|_| self.counted)
    }

    /// The count of a daemon that has given slots out up to this one; 0 when it has given out none.
    pub(crate) fn after(last: Slot) -> Self {
        Self {
            next: last.wrapping_add(1),
            counted: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_go_round_past_zero_and_those_in_use() {
        let mut slots = Slots::after(253);
        assert_eq!(slots.allocate([254, 1].into_iter()), Some(255));
        assert_eq!(slots.allocate([254, 255, 1].into_iter()), Some(2));
        assert_eq!(slots.allocate(1..=255), None);
        slots.lose_count();
        assert_eq!(slots.allocate([].into_iter()), None);
    }
}
