//! The ring's arithmetic against a model that counts in 64 bits and never wraps.

#![expect(clippy::unwrap_used, reason = "a test may panic")]
#![expect(
    clippy::cast_possible_truncation,
    reason = "the truncation to 16 bits is what is under test"
)]

use proptest::prelude::*;

use super::*;

proptest! {
    /// The rule in words: tell the other side if, going from old to new, the index after `event` was
    /// reached. Counted without wrapping, so it shares no arithmetic with the code.
    #[test]
    fn need_event_equals_the_unwrapped_rule(old in 0_u64..200_000, step in 0_u64..=32768, lag in 0_u64..32768) {
        let new = old + step;
        for event in [old.saturating_sub(lag), old + lag.min(step), new] {
            let expected = event >= old && event < new;
            prop_assert_eq!(need_event(event as u16, new as u16, old as u16), expected,
                "event {} new {} old {}", event, new, old);
        }
    }

    /// Over 2^16 the entry follows the previous one round the ring, without a jump.
    #[test]
    fn slots_follow_each_other_through_the_wrap(shift in 0_u32..=15, index in any::<u64>()) {
        let size = 1_u16 << shift;
        let layout = RingLayout::new(0, size).unwrap();
        prop_assert_eq!(u64::from(layout.slot(index as u16)), index % u64::from(size));
        let (here, next) = (layout.used_entry(index as u16), layout.used_entry((index as u16).wrapping_add(1)));
        prop_assert!(next == here + 8 || (next == layout.used + 4 && layout.slot(index as u16) == size - 1));
    }

    /// No two parts of a queue share a byte, and each has the alignment virtio asks for.
    #[test]
    fn the_parts_of_a_queue_do_not_overlap(shift in 0_u32..=15, base in 0_u64..1_000_000) {
        let size = 1_u16 << shift;
        let l = RingLayout::new(base, size).unwrap();
        prop_assert!(l.desc >= base && l.desc.is_multiple_of(16) && l.avail.is_multiple_of(2) && l.used.is_multiple_of(4));
        prop_assert!(l.descriptor(size - 1) + 16 <= l.avail);
        prop_assert!(l.avail_entry(size - 1) + 2 <= l.used_event());
        prop_assert!(l.used_event() + 2 <= l.used);
        prop_assert!(l.used_entry(size - 1) + 8 <= l.avail_event());
        prop_assert!(l.avail_event() + 2 <= l.end);
    }
}

#[test]
fn a_size_that_is_no_power_of_two_is_refused() {
    for size in [0, 3, 1000, u16::MAX] {
        assert!(
            matches!(RingLayout::new(0, size), Err(GuestError::TooBig { .. })),
            "{size}"
        );
    }
}
