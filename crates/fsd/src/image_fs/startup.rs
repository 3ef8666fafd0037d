//! Fetches what a program reads to start, while the machine that will run it boots: the program itself, the libraries
//! it is linked to, and the few files that are looked at before it. Each of them is a round trip to whoever waits for
//! it, and none of them depends on what the guest does.
//!
//! `startup/needs.rs` says what a program names; here it is found in the image, where the dynamic loader would look.
//! What an image or a mount names to be prefetched is better knowledge and takes this one's place.

mod needs;
mod paths;

use std::collections::HashSet;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use rustix::io::Errno;

pub(crate) use self::needs::Needs;
use self::paths::{Found, in_turn};
use super::Image;
use super::blob::Urgency;

/// Files that are fetched at the most.
const MOST_FILES: usize = 64;
/// The most of one file that is fetched, in bytes: of a large program, a start reads a part.
const MOST_OF_FILE: u64 = 16 << 20;
/// And of all of them.
const MOST: u64 = 32 << 20;
/// Whoever starts a program looks for its user, and the dynamic loader for its list of libraries.
const BEFORE: [&str; 3] = ["/etc/passwd", "/etc/group", "/etc/ld.so.cache"];

/// What the file of a program names.
pub(crate) fn needs_of(file: impl Read + Seek) -> Option<Needs> {
    needs::of(file, |_| {})
}

/// Fetches what the first of `programs` that the image has needs. In the background: nobody waits for it.
pub(super) fn start(image: &Arc<Image>, programs: Vec<PathBuf>) {
    let image = Arc::clone(image);
    // Without it, a start waits for more round trips.
    let _spawned = thread::Builder::new()
        .name("startup".into())
        .spawn(move || Walk::of(&image).run(&programs));
}

/// A file to be fetched.
struct Wanted {
    file: Found,
    /// Whether it names others in turn.
    is_program: bool,
}

struct Walk<'a> {
    image: &'a Arc<Image>,
    seen: HashSet<u64>,
    /// What may still be fetched, in bytes.
    left: u64,
}

impl<'a> Walk<'a> {
    fn of(image: &'a Arc<Image>) -> Self {
        Self {
            image,
            seen: HashSet::new(),
            left: MOST,
        }
    }

    /// One wave after the other: what those of the last one name.
    fn run(&mut self, programs: &[PathBuf]) {
        let mut wave: Vec<Wanted> = Vec::new();
        wave.extend(self.first_of(programs, true));
        for file in BEFORE {
            wave.extend(self.first_of(&[file.into()], false));
        }
        while !wave.is_empty() && !self.image.gate.is_closed() {
            // The beginnings of all at once: each says what else there is to fetch, and small files are then whole.
            for wanted in &wave {
                self.fetch(wanted.file.ino, 0, 1);
            }
            let mut named = Vec::new();
            for Wanted { file, .. } in wave.iter().filter(|wanted| wanted.is_program) {
                let needs = self.needs(file.ino).unwrap_or_default();
                named.extend(in_turn(&needs, &file.dir));
            }
            wave.clear();
            for candidates in named {
                wave.extend(self.first_of(&candidates, true));
            }
        }
    }

    /// The first of these files that is in the image, if it is wanted at all.
    fn first_of(&mut self, candidates: &[PathBuf], is_program: bool) -> Option<Wanted> {
        let image = self.image;
        let file = candidates.iter().find_map(|path| image.regular_file(path))?;
        let new = self.seen.len() < MOST_FILES && self.seen.insert(file.ino);
        new.then_some(Wanted { file, is_program })
    }

    /// What a program names, as soon as enough of it is here; all that is loaded of it is fetched.
    fn needs(&mut self, ino: u64) -> Option<Needs> {
        let image = self.image;
        let size = image.served().sb.get_inode(ino, false).ok()?.size();
        let file = Contents {
            image,
            ino,
            size,
            at: 0,
        };
        needs::of(file, |loaded| self.fetch(ino, 0, loaded.min(MOST_OF_FILE)))
    }

    /// Has a part of a file fetched, as far as that is not too much in all.
    fn fetch(&mut self, ino: u64, from: u64, to: u64) {
        let to = to.min(from.saturating_add(self.left));
        if from < to && !self.image.gate.is_closed() {
            let served = self.image.served();
            self.left -= to - from;
            self.image.fetch_ahead(&served, ino, from..to);
        }
    }
}

/// A file of the image as something to read, for ourselves.
struct Contents<'a> {
    image: &'a Image,
    ino: u64,
    size: u64,
    at: u64,
}

impl Read for Contents<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at >= self.size || buffer.is_empty() {
            return Ok(0);
        }
        let read = self.image.content(self.ino, self.at, buffer)?;
        self.at += read as u64;
        Ok(read)
    }
}

impl Seek for Contents<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let to = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.size.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = to.ok_or(Errno::INVAL)?;
        Ok(self.at)
    }
}

impl Image {
    /// Reads a part of a file: to the end of a chunk at the most, and not beyond its end, before which `offset` must
    /// be.
    fn content(&self, ino: u64, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let served = self.served();
        let segment = self.layouts.segment(&served, ino, offset)?;
        let piece = segment.from(offset).first().ok_or(Errno::IO)?;
        let blob = &served.storage.blobs.get(piece.blob).ok_or(Errno::IO)?.blob;
        let supply = blob
            .ensure(std::slice::from_ref(&piece.chunk), Urgency::Demand)
            .map_err(|_| Errno::IO)?;
        let skip = offset.checked_sub(piece.at).ok_or(Errno::IO)?;
        let left = usize::try_from(u64::from(piece.length) - skip).map_err(|_| Errno::IO)?;
        let length = buffer.len().min(left);
        let within = u64::from(piece.within) + skip;
        let buffer = &mut buffer[..length];
        match supply.held.iter().find(|(id, _)| *id == piece.chunk.id) {
            Some((_, content)) => {
                let from = usize::try_from(within).map_err(|_| Errno::IO)?;
                buffer.copy_from_slice(content.get(from..from + length).ok_or(Errno::IO)?);
            }
            None => {
                let generation = blob.generation();
                let data = generation.files().data();
                data.read_exact_at(buffer, piece.chunk.offset + within)?;
            }
        }
        Ok(length)
    }
}
