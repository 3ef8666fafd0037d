//! How long a worker looks for the next request before it sleeps. Pure.
//!
//! A wake-up costs a request in the order of ten microseconds, looking costs a processor. So it is done only where
//! the last request came soon after the one before: then the next one probably does, too. An idle guest is never
//! polled.

use std::time::Duration;

/// After looking in vain again and again, so many requests have to come soon before it is tried once more.
const MOST_CAUTIOUS: u32 = 1024;

/// One worker's present inclination to look.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    most: Duration,
    looks: bool,
    /// Requests that came soon, one after the other.
    soon: u32,
    /// How many of them it takes to begin to look.
    caution: u32,
}

impl Patience {
    /// Looks for `most` at the most; zero never looks.
    pub(super) fn new(most: Duration) -> Self {
        Self {
            most,
            looks: false,
            soon: 0,
            caution: 1,
        }
    }

    /// How long to look now; `None` to sleep at once.
    pub(super) fn span(&self) -> Option<Duration> {
        (self.looks && !self.most.is_zero()).then_some(self.most)
    }

    /// A request came in that time.
    pub(super) fn paid(&mut self) {
        self.caution = 1;
    }

    /// None came. That the guest was soon back before may have been because it has the same processor as this
    /// worker: then looking keeps it from running, and each failure makes trying again rarer.
    pub(super) fn was_in_vain(&mut self) {
        self.looks = false;
        self.soon = 0;
        self.caution = (self.caution * 2).min(MOST_CAUTIOUS);
    }

    /// A request ended a sleep, so long after everything before it was done.
    pub(super) fn next_came_after(&mut self, gap: Duration) {
        self.soon = if gap <= self.most { self.soon + 1 } else { 0 };
        self.looks = self.soon >= self.caution;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MOST: Duration = Duration::from_micros(50);

    #[test]
    fn a_busy_guest_is_polled_and_a_slow_one_is_not() {
        let mut patience = Patience::new(MOST);
        assert_eq!(patience.span(), None, "nobody has come yet");
        patience.next_came_after(Duration::from_micros(20));
        assert_eq!(patience.span(), Some(MOST));
        patience.next_came_after(Duration::from_millis(1));
        assert_eq!(patience.span(), None);
    }

    #[test]
    fn zero_never_polls() {
        let mut patience = Patience::new(Duration::ZERO);
        patience.next_came_after(Duration::ZERO);
        assert_eq!(patience.span(), None);
    }

    #[test]
    fn a_guest_on_the_same_processor_is_left_alone_after_a_while() {
        let mut patience = Patience::new(MOST);
        let mut in_vain = 0;
        for _ in 0..10_000 {
            patience.next_came_after(Duration::from_micros(3));
            if patience.span().is_some() {
                patience.was_in_vain();
                in_vain += 1;
            }
        }
        assert!(in_vain < 25, "{in_vain} of 10000");
    }

    proptest! {
        /// Whatever a guest does, between two requests it is looked for once at the most, and never after one that
        /// came late.
        #[test]
        fn looking_in_vain_is_bounded(gaps in prop::collection::vec(0_u64..200, 1..200)) {
            let mut patience = Patience::new(MOST);
            for gap in gaps {
                let gap = Duration::from_micros(gap);
                patience.next_came_after(gap);
                prop_assert!(patience.span().is_none() || gap <= MOST);
                if patience.span().is_some() {
                    patience.was_in_vain();
                    prop_assert!(patience.span().is_none());
                }
            }
        }
    }
}
