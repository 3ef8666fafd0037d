//! A table of numbered values whose readers share no cache line.
//!
//! Looking a number up takes no lock and writes nothing that another thread reads; only inserting and removing do.
//! Numbers are not used again soon: each carries how often its slot was used before. Used for open files; inodes
//! have numbers that are not ours to choose, see `inodes.rs`.

use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use arc_swap::{ArcSwapOption, Guard};

/// Slots of the first chunk; each further chunk has twice as many as the one before.
const FIRST: u64 = 64;
/// Enough for 2^31 slots.
const CHUNKS: usize = 26;

type Chunk<T> = Box<[ArcSwapOption<Numbered<T>>]>;

struct Numbered<T> {
    number: u64,
    value: T,
}

/// Values by number.
pub(super) struct Slots<T> {
    chunks: [OnceLock<Chunk<T>>; CHUNKS],
    free: Mutex<Free>,
}

struct Free {
    /// Slots from here on were never used.
    fresh: u32,
    /// Slots that can be used again, and with which generation.
    returned: Vec<(u32, u32)>,
}

/// A value that stays for as long as this is held, removed or not.
pub(super) struct Held<T>(Guard<Option<Arc<Numbered<T>>>>);

impl<T> Deref for Held<T> {
    type Target = T;

    fn deref(&self) -> &T {
        let numbered = self.0.as_ref().expect("`Slots::get` holds occupied slots only");
        &numbered.value
    }
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self {
            chunks: [const { OnceLock::new() }; CHUNKS],
            free: Mutex::new(Free {
                fresh: 0,
                returned: Vec::new(),
            }),
        }
    }
}

impl<T> Slots<T> {
    /// Keeps a value and returns its number, which is never 0; `None` when there are 2^31 already.
    pub(super) fn insert(&self, value: T) -> Option<u64> {
        let (index, generation) = {
            let mut free = self.free();
            match free.returned.pop() {
                Some(slot) => slot,
                None => {
                    let index = free.fresh;
                    chunk_of(index)?;
                    free.fresh += 1;
                    (index, 1)
                }
            }
        };
        let number = u64::from(generation) << 32 | u64::from(index);
        let (chunk, at) = chunk_of(index)?;
        let slots =
            self.chunks[chunk].get_or_init(|| (0..FIRST << chunk).map(|_| ArcSwapOption::empty()).collect());
        slots[at].store(Some(Arc::new(Numbered { number, value })));
        Some(number)
    }

    /// The value with this number.
    pub(super) fn get(&self, number: u64) -> Option<Held<T>> {
        let held = self.slot(number)?.load();
        (held.as_ref()?.number == number).then_some(Held(held))
    }

    /// Removes a value. Whoever holds it keeps it a while.
    pub(super) fn remove(&self, number: u64) -> bool {
        let Some(slot) = self.slot(number) else {
            return false;
        };
        let mut free = self.free();
        if slot.load().as_ref().is_none_or(|there| there.number != number) {
            return false;
        }
        let gone = slot.swap(None);
        free.take_back(number);
        drop(free);
        // Outside of the lock: dropping the value may close a file.
        drop(gone);
        true
    }

    /// Removes every value.
    pub(super) fn clear(&self) {
        let numbers: Vec<u64> = self
            .chunks
            .iter()
            .filter_map(OnceLock::get)
            .flatten()
            .filter_map(|slot| slot.load().as_ref().map(|there| there.number))
            .collect();
        for number in numbers {
            self.remove(number);
        }
    }

    fn slot(&self, number: u64) -> Option<&ArcSwapOption<Numbered<T>>> {
        let index = u32::try_from(number & u64::from(u32::MAX)).ok()?;
        let (chunk, at) = chunk_of(index)?;
        self.chunks[chunk].get()?.get(at)
    }

    fn free(&self) -> MutexGuard<'_, Free> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Free {
    fn take_back(&mut self, number: u64) {
        let index = u32::try_from(number & u64::from(u32::MAX)).unwrap_or(0);
        let generation = u32::try_from(number >> 32).unwrap_or(0);
        self.returned
            .push((index, generation.checked_add(1).unwrap_or(1)));
    }
}

fn chunk_of(index: u32) -> Option<(usize, usize)> {
    let place = u64::from(index) + FIRST;
    let chunk = usize::try_from(place.ilog2() - FIRST.ilog2()).ok()?;
    let at = usize::try_from(place - (FIRST << chunk)).ok()?;
    (chunk < CHUNKS).then_some((chunk, at))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_removed_number_is_not_given_out_again() {
        let slots = Slots::default();
        let first = slots.insert('a').unwrap();
        let held = slots.get(first).unwrap();
        assert!(slots.remove(first));
        assert!(!slots.remove(first));
        let second = slots.insert('b').unwrap();
        assert_ne!(first, second);
        assert!(slots.get(first).is_none());
        assert_eq!((*held, *slots.get(second).unwrap()), ('a', 'b'));
    }

    #[test]
    fn numbers_nobody_gave_out_are_unknown() {
        let slots = Slots::<()>::default();
        for number in [0, 1, 63, 64, 1 << 32, u64::MAX] {
            assert!(slots.get(number).is_none());
            assert!(!slots.remove(number));
        }
    }

    #[test]
    fn threads_never_see_a_value_under_another_number() {
        let slots = Slots::default();
        std::thread::scope(|scope| {
            for thread in 0..4_u64 {
                let slots = &slots;
                scope.spawn(move || {
                    for round in 0..2000 {
                        let value = thread << 32 | round;
                        let number = slots.insert(value).unwrap();
                        assert_eq!(*slots.get(number).unwrap(), value);
                        assert!(slots.remove(number));
                        assert!(slots.get(number).is_none());
                    }
                });
            }
        });
    }

    proptest! {
        /// As a map whose keys are chosen by the table.
        #[test]
        fn behaves_as_a_map(steps in prop::collection::vec(0_usize..6, 1..400)) {
            let slots = Slots::default();
            let mut model: HashMap<u64, usize> = HashMap::new();
            let mut given = Vec::new();
            for (n, step) in steps.into_iter().enumerate() {
                match step {
                    0..=3 => {
                        let number = slots.insert(n).unwrap();
                        prop_assert!(model.insert(number, n).is_none());
                        given.push(number);
                    }
                    4 => if let Some(number) = given.get(n * 7 % given.len().max(1)) {
                        prop_assert_eq!(slots.remove(*number), model.remove(number).is_some());
                    },
                    _ => if n % 31 == 0 {
                        slots.clear();
                        model.clear();
                    },
                }
                for number in &given {
                    prop_assert_eq!(slots.get(*number).map(|held| *held), model.get(number).copied());
                }
            }
        }
    }
}
