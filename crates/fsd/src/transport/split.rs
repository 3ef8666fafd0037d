//! The device's half of a split virtqueue: where its parts are, and single accesses to them (virtio 1.2, 2.7).
//!
//! A [`View`] is looked up once and used for many requests. Everything in the ring is the guest's: an index may
//! jump, an entry may change between two looks. Who may take and return requests, and when, is in `ring.rs`;
//! following a chain is in `chain.rs`.

use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};

use vm_memory::{GuestAddress, GuestMemory, GuestMemoryMmap, VolatileMemory, VolatileSlice};

/// `avail.flags`: the guest wants no interrupts (only without EVENT_IDX).
const AVAIL_NO_INTERRUPT: u16 = 1;
/// `used.flags`: we want no kicks (only without EVENT_IDX).
const USED_NO_NOTIFY: u16 = 1;

/// Where a queue is. Addresses are the guest's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) size: u16,
    pub(super) desc: u64,
    pub(super) avail: u64,
    pub(super) used: u64,
}

/// Whether an index from `old` to `new` passed the one the other side asked to be told about (2.7.7.1).
pub(super) fn need_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

/// A queue in mapped memory. An access fails only where the frontend has mapped memory at odd addresses.
#[derive(Debug)]
pub(super) struct View<'m> {
    desc: VolatileSlice<'m>,
    avail: VolatileSlice<'m>,
    used: VolatileSlice<'m>,
    size: u16,
}

impl Layout {
    /// The queue in this memory, if it has a size and lies in there as a whole.
    pub(super) fn view<'m>(&self, memory: &'m GuestMemoryMmap) -> Option<View<'m>> {
        let size = usize::from(self.size);
        if size == 0 {
            return None;
        }
        let slice = |at, len| memory.get_slice(GuestAddress(at), len).ok();
        Some(View {
            desc: slice(self.desc, 16 * size)?,
            avail: slice(self.avail, 4 + 2 * size + 2)?,
            used: slice(self.used, 4 + 8 * size + 2)?,
            size: self.size,
        })
    }
}

// `VolatileSlice::load` and `store` are calls into their crate, which a ring that is looked at all the time feels.

fn load(part: &VolatileSlice<'_>, at: usize, order: Ordering) -> Option<u16> {
    let word: &AtomicU16 = part.get_atomic_ref(at).ok()?;
    Some(u16::from_le(word.load(order)))
}

fn store(part: &VolatileSlice<'_>, at: usize, value: u16, order: Ordering) -> Option<()> {
    let word: &AtomicU16 = part.get_atomic_ref(at).ok()?;
    word.store(value.to_le(), order);
    Some(())
}

impl<'m> View<'m> {
    /// The descriptor table.
    pub(super) fn table(&self) -> &VolatileSlice<'m> {
        &self.desc
    }

    /// How far the guest has made requests available.
    pub(super) fn avail_idx(&self) -> Option<u16> {
        load(&self.avail, 2, Ordering::Acquire)
    }

    /// The head of a request.
    pub(super) fn head(&self, index: u16) -> Option<u16> {
        let at = 4 + 2 * usize::from(index % self.size);
        load(&self.avail, at, Ordering::Relaxed)
    }

    /// The used index up to which the guest wants no interrupt.
    pub(super) fn used_event(&self) -> Option<u16> {
        let at = 4 + 2 * usize::from(self.size);
        load(&self.avail, at, Ordering::Relaxed)
    }

    /// Without EVENT_IDX: whether the guest wants no interrupts at all.
    pub(super) fn interrupts_off(&self) -> bool {
        load(&self.avail, 0, Ordering::Relaxed).is_some_and(|flags| flags & AVAIL_NO_INTERRUPT != 0)
    }

    /// Asks for a kick when the guest makes request `index` available.
    pub(super) fn set_avail_event(&self, index: u16) -> Option<()> {
        let at = 4 + 8 * usize::from(self.size);
        store(&self.used, at, index, Ordering::Relaxed)
    }

    /// Without EVENT_IDX: asks for kicks, or for none.
    pub(super) fn set_kicks(&self, wanted: bool) -> Option<()> {
        let flags = if wanted { 0 } else { USED_NO_NOTIFY };
        store(&self.used, 0, flags, Ordering::Relaxed)
    }

    /// How far the guest was told that requests are done.
    pub(super) fn used_idx(&self) -> Option<u16> {
        load(&self.used, 2, Ordering::Relaxed)
    }

    /// Writes the entry for a request that is done. The guest looks at it after [`Self::set_used_idx`].
    pub(super) fn put_used(&self, index: u16, head: u16, written: u32) -> Option<()> {
        let at = 4 + 8 * usize::from(index % self.size);
        let id: &AtomicU32 = self.used.get_atomic_ref(at).ok()?;
        let len: &AtomicU32 = self.used.get_atomic_ref(at + 4).ok()?;
        id.store(u32::from(head).to_le(), Ordering::Relaxed);
        len.store(written.to_le(), Ordering::Relaxed);
        Some(())
    }

    /// Tells the guest how far requests are done.
    pub(super) fn set_used_idx(&self, index: u16) -> Option<()> {
        store(&self.used, 2, index, Ordering::Release)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_needed_when_its_index_was_passed_also_through_the_wrap() {
        assert!(need_event(5, 6, 5) && need_event(5, 9, 5) && need_event(u16::MAX, 0, u16::MAX));
        assert!(!need_event(6, 6, 5) && !need_event(4, 6, 5) && !need_event(5, 5, 5));
    }

    #[test]
    fn a_queue_that_is_partly_outside_has_no_view() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        let layout = Layout {
            size: 8,
            desc: 0,
            avail: 0x100,
            used: 0x1000 - (4 + 8 * 8 + 2),
        };
        let view = layout.view(&memory).unwrap();
        assert_eq!((view.avail_idx(), view.head(7)), (Some(0), Some(0)));
        let outside = Layout {
            used: layout.used + 4,
            ..layout
        };
        assert!(outside.view(&memory).is_none());
    }
}
