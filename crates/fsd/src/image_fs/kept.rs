//! A bounded memory of values by number that is read without a lock and without the allocator.
//!
//! Values are added and never changed or taken out one by one. When they weigh too much all are dropped at once:
//! whoever misses one finds it again, and a list of uses would cost every reader. It grows with what is in it, so
//! that an image that nobody looks at takes nothing. Never asks where a value comes from; next: `index.rs`.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use arc_swap::ArcSwap;

/// Slots of a table that was just begun, a power of two.
const FEWEST: usize = 64;

/// Values by number, of a limited weight.
#[derive(Debug)]
pub(super) struct Kept<T> {
    /// Replaced as a whole when it grows or begins anew.
    table: ArcSwap<Table<T>>,
    filling: Mutex<Filling>,
    /// The weight of all values at the most.
    most: usize,
}

/// What whoever adds has to know.
#[derive(Debug, Default)]
struct Filling {
    epoch: Epoch,
    count: usize,
    weight: usize,
}

/// Between two times that everything was forgotten.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Epoch(u64);

/// A hash table with open addressing. At least a quarter of it is empty, so that a search ends.
#[derive(Debug)]
struct Table<T> {
    slots: Box<[OnceLock<(u64, T)>]>,
    /// An odd number that nobody who makes images knows: they cannot choose numbers that have the same place.
    factor: u64,
}

impl<T: Clone> Kept<T> {
    pub(super) fn new(most: usize) -> Self {
        let factor = RandomState::new().hash_one(most) | 1;
        Self {
            table: ArcSwap::from_pointee(Table::new(FEWEST, factor)),
            filling: Mutex::default(),
            most,
        }
    }

    /// What `look` makes of the value with this number, if there is one.
    pub(super) fn find<R>(&self, key: u64, look: impl FnOnce(&T) -> R) -> Option<R> {
        self.table.load().find(key).map(look)
    }

    /// To be asked before a value is found out that is to be kept.
    pub(super) fn epoch(&self) -> Epoch {
        self.filling().epoch
    }

    /// Adds a value that was found out in this epoch. It is not added if that has ended, if there is one with its
    /// number, or if it weighs too much alone.
    pub(super) fn keep(&self, epoch: Epoch, key: u64, value: T, weight: usize) {
        let mut filling = self.filling();
        let table = self.table.load_full();
        if filling.epoch != epoch || weight > self.most || table.find(key).is_some() {
            return;
        }
        let table = if filling.weight + weight > self.most {
            (filling.count, filling.weight) = (0, 0);
            self.replace(Table::new(FEWEST, table.factor))
        } else if (filling.count + 1) * 4 > table.slots.len() * 3 {
            self.replace(table.grown())
        } else {
            table
        };
        table.insert(key, value);
        filling.count += 1;
        filling.weight += weight;
    }

    /// Forgets everything, and what is being found out now.
    pub(super) fn clear(&self) {
        let mut filling = self.filling();
        *filling = Filling {
            epoch: Epoch(filling.epoch.0 + 1),
            ..Filling::default()
        };
        let factor = self.table.load().factor;
        self.replace(Table::new(FEWEST, factor));
    }

    fn replace(&self, table: Table<T>) -> Arc<Table<T>> {
        let table = Arc::new(table);
        self.table.store(Arc::clone(&table));
        table
    }

    fn filling(&self) -> MutexGuard<'_, Filling> {
        self.filling.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Clone> Table<T> {
    fn new(slots: usize, factor: u64) -> Self {
        Self {
            slots: (0..slots).map(|_| OnceLock::new()).collect(),
            factor,
        }
    }

    /// The slots that may have this number, in the order in which they are taken.
    fn places(&self, key: u64) -> impl Iterator<Item = &OnceLock<(u64, T)>> {
        let count = self.slots.len();
        // The upper bits of the product are those that all bits of the number have a part in.
        let first = key.wrapping_mul(self.factor) >> (u64::BITS - count.trailing_zeros());
        let first = usize::try_from(first).unwrap_or(0);
        (0..count).map(move |n| &self.slots[(first + n) & (count - 1)])
    }

    fn find(&self, key: u64) -> Option<&T> {
        self.places(key)
            .map_while(OnceLock::get)
            .find(|(there, _)| *there == key)
            .map(|(_, value)| value)
    }

    /// Only whoever holds the lock calls this, with a number that is not there.
    fn insert(&self, key: u64, value: T) {
        if let Some(free) = self.places(key).find(|slot| slot.get().is_none()) {
            // An error would be a value that somebody else has put there meanwhile.
            let _ours = free.set((key, value));
        }
    }

    fn grown(&self) -> Self {
        let table = Self::new(self.slots.len() * 2, self.factor);
        for (key, value) in self.slots.iter().filter_map(OnceLock::get) {
            table.insert(*key, value.clone());
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    const MOST: usize = 300;

    #[derive(Debug, Clone)]
    enum Step {
        Keep { key: u64, weight: usize },
        Find(u64),
        Clear,
    }

    fn step() -> impl Strategy<Value = Step> {
        // Few numbers, some of them far apart, so that they meet again.
        let key = prop_oneof![0..400_u64, (0..400_u64).prop_map(|n| n << 40)];
        prop_oneof![
            8 => (key.clone(), 0..4_usize).prop_map(|(key, weight)| Step::Keep { key, weight }),
            1 => (key.clone(), Just(MOST + 1)).prop_map(|(key, weight)| Step::Keep { key, weight }),
            8 => key.prop_map(Step::Find),
            1 => Just(Step::Clear),
        ]
    }

    proptest! {
        /// Of a list of all values that were ever added, in order.
        #[test]
        fn what_is_found_was_kept_and_is_not_too_much(steps in prop::collection::vec(step(), 0..2000)) {
            let kept = Kept::new(MOST);
            let mut added: HashMap<u64, (u64, usize)> = HashMap::new();
            for (number, step) in steps.into_iter().enumerate() {
                let number = number as u64;
                match step {
                    Step::Keep { key, weight } => {
                        let there = kept.find(key, |v| *v);
                        kept.keep(kept.epoch(), key, number, weight);
                        if weight > MOST {
                            prop_assert_eq!(kept.find(key, |v| *v), there);
                            continue;
                        }
                        prop_assert_eq!(kept.find(key, |v| *v), Some(there.unwrap_or(number)));
                        if there.is_none() {
                            added.insert(key, (number, weight));
                        }
                    }
                    Step::Find(key) => {
                        if let Some(found) = kept.find(key, |v| *v) {
                            prop_assert_eq!(Some(found), added.get(&key).map(|(number, _)| *number));
                        }
                    }
                    Step::Clear => {
                        kept.clear();
                        added.clear();
                    }
                }
                let found = added.iter().filter(|(key, _)| kept.find(**key, |_| ()).is_some());
                prop_assert!(found.map(|(_, (_, weight))| weight).sum::<usize>() <= MOST);
            }
        }
    }

    #[test]
    fn as_much_is_kept_as_may_be() {
        let kept = Kept::new(1000);
        for key in 0..1000 {
            kept.keep(kept.epoch(), key, key, 1);
        }
        assert!((0..1000).all(|key| kept.find(key, |v| *v) == Some(key)));
        kept.keep(kept.epoch(), 1000, 1000, 1);
        assert_eq!(
            (0..=1000).filter(|key| kept.find(*key, |_| ()).is_some()).count(),
            1
        );
    }

    #[test]
    fn what_was_found_out_before_everything_was_forgotten_is_not_kept() {
        let kept = Kept::new(MOST);
        let before = kept.epoch();
        kept.clear();
        kept.keep(before, 1, "old", 1);
        assert_eq!(kept.find(1, |v| *v), None);
        kept.keep(kept.epoch(), 1, "new", 1);
        assert_eq!(kept.find(1, |v| *v), Some("new"));
    }
}
