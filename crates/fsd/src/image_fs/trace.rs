//! Records what guests read of an image, and in which order: the pattern of a start-up.
//!
//! Off unless it is asked for; then each READ notes what nobody has read before. Where in the image a file is, is
//! found out when the record is shown. What becomes of it is the business of whoever asked.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nydus_rafs::RafsError;
use nydus_rafs::RafsResult;
use nydus_rafs::metadata::{RafsInodeWalkAction, RafsSuper};
use nydusbox_protocol::{ReadTrace, TracedRead};
use percent_encoding::{AsciiSet, CONTROLS, percent_encode};

/// Reads that are kept, about 100 bytes each; later ones are not, and the record says so.
const LIMIT: usize = 16 << 10;
const PATH_MAX_BYTES: usize = 4095;
/// What of a path is written as `%XX`, besides what is not ASCII.
const ESCAPED: &AsciiSet = &CONTROLS.add(b'%');

/// The record of an image, if there is one.
#[derive(Debug, Default)]
pub(super) struct Tracer {
    /// Looked at by every READ; the lock is taken only while something is recorded.
    on: AtomicBool,
    trace: Mutex<Option<Trace>>,
}

impl Tracer {
    /// Begins to record, with nothing recorded yet.
    pub(super) fn start(&self) {
        *self.trace.lock().unwrap_or_else(PoisonError::into_inner) = Some(Trace::new(Instant::now()));
        self.on.store(true, Ordering::Release);
    }

    /// Ends recording and forgets what was recorded.
    pub(super) fn stop(&self) {
        self.on.store(false, Ordering::Release);
        *self.trace.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// When a READ begins that is to be noted; `None` if nothing is recorded.
    pub(super) fn begin(&self) -> Option<Instant> {
        self.on.load(Ordering::Relaxed).then(Instant::now)
    }

    /// Somebody has read a part of a file.
    pub(super) fn note(&self, ino: u64, read: Range<u64>, began: Instant) {
        let mut trace = self.trace.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(trace) = trace.as_mut() {
            trace.note(ino, read, began);
        }
    }

    /// What was recorded so far, in the order in which reads began; `None` if nothing is recorded.
    ///
    /// # Errors
    /// nydus' own, where the image's directories cannot be read.
    pub(super) fn shown(&self, sb: &RafsSuper) -> RafsResult<Option<ReadTrace>> {
        let trace = self.trace.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(mut trace) = trace else { return Ok(None) };
        trace.reads.sort_by_key(|read| read.after);
        let paths = paths(sb, trace.reads.iter().map(|read| read.ino).collect())?;
        let reads = trace.reads.iter().filter_map(|read| {
            Some(TracedRead {
                path: percent_encode(paths.get(&read.ino)?.as_os_str().as_bytes(), ESCAPED).to_string(),
                offset: read.offset,
                length: read.length,
                ms: u64::try_from(read.after.as_millis()).unwrap_or(u64::MAX),
            })
        });
        Ok(Some(ReadTrace {
            complete: trace.complete,
            reads: reads.collect(),
        }))
    }
}

/// A part of a file that was read for the first time.
#[derive(Debug, Clone, PartialEq, Eq)]
struct FirstRead {
    ino: u64,
    offset: u64,
    length: u64,
    /// Since recording began.
    after: Duration,
}

/// First reads, and all that was read. Pure.
#[derive(Debug, Clone)]
struct Trace {
    began: Instant,
    reads: Vec<FirstRead>,
    /// Ends of what was read, by inode and beginning; parts of a file neither overlap nor touch.
    known: BTreeMap<(u64, u64), u64>,
    complete: bool,
}

impl Trace {
    fn new(began: Instant) -> Self {
        Self {
            began,
            reads: Vec::new(),
            known: BTreeMap::new(),
            complete: true,
        }
    }

    fn note(&mut self, ino: u64, read: Range<u64>, began: Instant) {
        // What cannot be told any more need not be known.
        if read.is_empty() || !self.complete {
            return;
        }
        let after = began.saturating_duration_since(self.began);
        let mut known = read.clone();
        let mut at = read.start;
        for (start, end) in self.take_touching(ino, &read) {
            if at < start {
                self.push(ino, at..start.min(read.end), after);
            }
            at = at.max(end);
            known = known.start.min(start)..known.end.max(end);
        }
        if at < read.end {
            self.push(ino, at..read.end, after);
        }
        self.known.insert((ino, known.start), known.end);
    }

    /// Takes out the known parts of a file that a part touches, in order.
    fn take_touching(&mut self, ino: u64, part: &Range<u64>) -> Vec<(u64, u64)> {
        let before = self.known.range((ino, 0)..(ino, part.start)).next_back();
        let before = before.filter(|(_, end)| **end >= part.start);
        let inside = self.known.range((ino, part.start)..=(ino, part.end));
        let touching: Vec<_> = before
            .into_iter()
            .chain(inside)
            .map(|((_, start), end)| (*start, *end))
            .collect();
        for (start, _) in &touching {
            self.known.remove(&(ino, *start));
        }
        touching
    }

    fn push(&mut self, ino: u64, part: Range<u64>, after: Duration) {
        let length = part.end - part.start;
        let full = self.reads.len() >= LIMIT;
        match self.reads.last_mut() {
            // A reader that goes on.
            Some(last) if last.ino == ino && last.offset + last.length == part.start => last.length += length,
            _ if full => self.complete = false,
            _ => self.reads.push(FirstRead {
                ino,
                offset: part.start,
                length,
                after,
            }),
        }
    }
}

/// A path of each of some files. RAFS v6 does not know the directory of a file, so that all are walked.
fn paths(sb: &RafsSuper, mut wanted: HashSet<u64>) -> RafsResult<HashMap<u64, PathBuf>> {
    let failed = RafsError::FillSuperBlock;
    let mut paths = HashMap::new();
    let mut seen = HashSet::new();
    let mut pending = vec![(sb.superblock.root_ino(), PathBuf::from("/"))];
    while let Some((ino, path)) = pending.pop() {
        // A damaged image may have a directory inside itself.
        if wanted.is_empty() || !seen.insert(ino) {
            continue;
        }
        let mut children = Vec::new();
        sb.get_inode(ino, false)
            .map_err(failed)?
            .walk_children_inodes(0, &mut |_, name, ino, _| {
                children.push((ino, name));
                Ok(RafsInodeWalkAction::Continue)
            })
            .map_err(failed)?;
        for (ino, name) in children {
            let path = path.join(&name);
            // Longer ones cannot be asked for.
            if name == "." || name == ".." || path.as_os_str().len() > PATH_MAX_BYTES {
                continue;
            }
            if wanted.remove(&ino) {
                paths.insert(ino, path);
            } else if !seen.contains(&ino) && sb.get_inode(ino, false).is_ok_and(|inode| inode.is_dir()) {
                pending.push((ino, path));
            }
        }
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(ino: u64, offset: u64, length: u64) -> FirstRead {
        FirstRead {
            ino,
            offset,
            length,
            after: Duration::ZERO,
        }
    }

    #[test]
    fn what_was_read_before_is_not_noted_again_and_a_reader_that_goes_on_is_one() {
        let began = Instant::now();
        let mut trace = Trace::new(began);
        for (ino, part) in [
            (1, 0..4),
            (1, 4..8),
            (2, 0..4),
            (1, 6..12),
            (1, 0..2),
            (1, 20..24),
            (1, 10..30),
        ] {
            trace.note(ino, part, began);
        }
        assert_eq!(
            trace.reads,
            [
                read(1, 0, 8),
                read(2, 0, 4),
                read(1, 8, 4),
                read(1, 20, 4),
                read(1, 12, 8),
                read(1, 24, 6)
            ]
        );
        assert_eq!(trace.known, BTreeMap::from([((1, 0), 30), ((2, 0), 4)]));
    }

    #[test]
    fn of_too_many_reads_the_first_are_kept_and_it_says_so() {
        let began = Instant::now();
        let mut trace = Trace::new(began);
        for n in 0..LIMIT as u64 {
            trace.note(n, 0..1, began);
        }
        assert!(trace.complete);
        trace.note(0, 8..9, began);
        assert!(!trace.complete && trace.reads.len() == LIMIT);
        let known = trace.known.len();
        trace.note(0, 80..81, began);
        assert_eq!(trace.known.len(), known, "what cannot be told is not known");
    }

    proptest! {
        /// Beside a model that has each byte by itself.
        #[test]
        fn every_byte_is_noted_once_when_it_is_read_first(
            reads in proptest::collection::vec((0_u64..3, 0_u64..60, 0_u64..20), 0..60)
        ) {
            let began = Instant::now();
            let mut trace = Trace::new(began);
            let mut bytes = Vec::new();
            for (ino, start, length) in reads {
                trace.note(ino, start..start + length, began);
                for byte in start..start + length {
                    if !bytes.contains(&(ino, byte)) {
                        bytes.push((ino, byte));
                    }
                }
            }
            let noted: Vec<_> = trace
                .reads
                .iter()
                .flat_map(|read| (read.offset..read.offset + read.length).map(|byte| (read.ino, byte)))
                .collect();
            prop_assert_eq!(noted, bytes);
        }
    }
}
