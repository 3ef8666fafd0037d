//! What this process knows to be in the cache: one bit a chunk, without locks.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Bits that are set when a chunk has been seen in the cache.
#[derive(Debug)]
pub(super) struct Ready {
    words: Box<[AtomicU64]>,
    missing: AtomicU32,
}

impl Ready {
    /// From the bits of a chunk map, the first chunk in the highest bit of the first byte.
    pub(super) fn new(chunks: u32, bits: &[u8]) -> Self {
        let words = (0..chunks.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        let ready = Self {
            words,
            missing: AtomicU32::new(chunks),
        };
        for chunk in 0..chunks {
            let byte = usize::try_from(chunk / 8).ok().and_then(|at| bits.get(at));
            if byte.is_some_and(|byte| byte & (0x80 >> (chunk % 8)) != 0) {
                ready.set(chunk);
            }
        }
        ready
    }

    fn word(&self, chunk: u32) -> Option<&AtomicU64> {
        self.words.get(usize::try_from(chunk / 64).ok()?)
    }

    /// Whether a chunk is known to be there.
    pub(super) fn get(&self, chunk: u32) -> bool {
        // Acquire: who sees the bit sees the data, which were written before.
        self.word(chunk)
            .is_some_and(|word| word.load(Ordering::Acquire) & (1 << (chunk % 64)) != 0)
    }

    /// A chunk is there.
    pub(super) fn set(&self, chunk: u32) {
        let mask = 1 << (chunk % 64);
        if let Some(word) = self.word(chunk)
            && word.fetch_or(mask, Ordering::AcqRel) & mask == 0
        {
            self.missing.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Nothing is there after all.
    pub(super) fn clear_all(&self) {
        for word in &self.words {
            let was = word.swap(0, Ordering::AcqRel);
            self.missing.fetch_add(was.count_ones(), Ordering::AcqRel);
        }
    }

    /// Whether all chunks are there.
    pub(super) fn all(&self) -> bool {
        self.missing.load(Ordering::Acquire) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_read_set_and_cleared_and_the_missing_counted() {
        let ready = Ready::new(70, &[0b0001_0001, 0, 0, 0, 0, 0, 0, 0, 0b0000_0100]);
        let set: Vec<u32> = (0..70).filter(|c| ready.get(*c)).collect();
        assert_eq!(set, [3, 7, 69]);
        for chunk in (0..70).rev() {
            assert!(!ready.all());
            ready.set(chunk);
            ready.set(chunk);
        }
        assert!(ready.all() && !ready.get(70) && !ready.get(1000));
        ready.clear_all();
        assert!(!ready.all() && (0..70).all(|c| !ready.get(c)));
        (0..70).for_each(|c| ready.set(c));
        assert!(ready.all(), "the count is right");
    }
}
