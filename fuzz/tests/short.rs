//! A moment of each target in the ordinary tests, always the same: seeds, then mutations of them from a fixed seed.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;

use nydusbox_fuzz::{TARGETS, Target};

/// Marsaglia's xorshift: no dependency, and the same everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap() % end.max(1)
    }
}

/// What the formats are made of.
const WORDS: [&str; 18] = [
    "{",
    "}",
    "\"",
    ":",
    ",",
    "\\",
    "null",
    "[",
    "/..",
    "//",
    "/",
    "\0",
    "v5",
    "2",
    "lowerdir=",
    "image_nydus_fs",
    "\n",
    "=",
];

fn mutate(random: &mut Random, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut data = seeds[random.below(seeds.len())].clone();
    for _ in 0..=random.below(4) {
        let at = random.below(data.len() + 1);
        match random.below(6) {
            0 if at < data.len() => data[at] ^= 1 << random.below(8),
            1 => drop(data.drain(at..(at + random.below(12)).min(data.len()))),
            2 => {
                let word = WORDS[random.below(WORDS.len())];
                data.splice(at..at, word.bytes());
            }
            3 => {
                let other = &seeds[random.below(seeds.len())];
                let from = random.below(other.len());
                let until = (from + random.below(60)).min(other.len());
                data.splice(at..at, other[from..until].iter().copied());
            }
            // What is in its place, as in a format of offsets everything is.
            4 => {
                let number = [0, 1, 0x7f, 0xff, 0x1000, u64::MAX][random.below(6)].to_le_bytes();
                let until = (at + 1 + random.below(8)).min(data.len());
                data[at..until].copy_from_slice(&number[..until - at]);
            }
            _ => {
                let until = (at + random.below(80)).min(data.len());
                let piece = data[at..until].to_vec();
                data.splice(at..at, piece);
            }
        }
    }
    data
}

#[test]
fn every_target_keeps_its_promises_for_a_moment() {
    for Target { name, run, rounds } in TARGETS {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(name);
        let mut paths: Vec<_> = fs::read_dir(&dir)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        paths.sort();
        let seeds: Vec<Vec<u8>> = paths.iter().map(|path| fs::read(path).unwrap()).collect();
        assert!(!seeds.is_empty(), "{name} has no seeds");
        seeds.iter().for_each(|seed| run(seed));
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        for _ in 0..rounds {
            run(&mutate(&mut random, &seeds));
        }
    }
    nydusbox_fuzz::clean_up();
}
