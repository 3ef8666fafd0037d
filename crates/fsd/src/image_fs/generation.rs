//! The cache files of a blob, open, and what this process knows to be in them.
//!
//! Once something has happened to the files there is nothing in them any more, and `blob.rs` opens others.

use std::collections::HashSet;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use super::blob::BlobParts;
use super::cache_files::CacheFiles;
use super::chunk::Chunk;
use super::layout_note::LayoutNote;
use super::ready::Ready;
use crate::sys::mapping::Mapping;

/// How often files are made that others replace, whose blob of the name has its chunks elsewhere.
const ROUNDS: usize = 4;

/// The cache files of a blob, as long as nothing happens to them.
#[derive(Debug)]
pub(super) struct Generation {
    pub(super) files: CacheFiles,
    /// The data file, where it can be mapped.
    mapping: Option<Mapping>,
    pub(super) ready: Ready,
    /// Chunks whose content was compared with the image's digests; `None` if there are none. What others have put here
    /// was compared with other images' at best.
    compared: Option<Ready>,
    /// The files were damaged: whatever their map says, nothing is here.
    abandoned: AtomicBool,
    /// Chunks that another process had locked for too long: it is not waited for again.
    overdue: Mutex<HashSet<u32>>,
    /// There is content that may not be on the disk, and somebody sees to it.
    pub(super) unsettled: Arc<AtomicBool>,
}

impl Generation {
    pub(super) fn open(parts: &BlobParts, layout: Option<LayoutNote>) -> io::Result<Self> {
        let files = open_files(parts, layout)?;
        let ready = Ready::new(parts.chunks, &files.ready_bits()?);
        // Nobody asks when a guest last read of an image, and the kernel asks for each read whether to note it.
        // Refused where the file is another user's; then it is noted.
        if let Ok(flags) = fcntl_getfl(files.data()) {
            let _noted = fcntl_setfl(files.data(), flags | OFlags::NOATIME);
        }
        let mapping = Mapping::new(files.data().as_fd(), parts.size);
        Ok(Self {
            files,
            mapping,
            ready,
            compared: parts.compares.then(|| Ready::new(parts.chunks, &[])),
            abandoned: AtomicBool::new(false),
            overdue: Mutex::default(),
            unsettled: Arc::default(),
        })
    }

    /// Whether a chunk is known to be here.
    pub(super) fn has(&self, chunk: u32) -> bool {
        self.ready.get(chunk)
    }

    /// Whether a chunk that is here is known to be the image's.
    pub(super) fn is_compared(&self, chunk: u32) -> bool {
        self.compared.as_ref().is_none_or(|compared| compared.get(chunk))
    }

    /// A chunk that is here is the image's.
    pub(super) fn note_compared(&self, chunk: u32) {
        if let Some(compared) = &self.compared {
            compared.set(chunk);
        }
    }

    /// Whether all of the blob is here.
    pub(super) fn has_all(&self) -> bool {
        self.ready.all()
    }

    /// The data file; chunks are at their offsets.
    pub(super) fn files(&self) -> &CacheFiles {
        &self.files
    }

    /// The data file, mapped.
    pub(super) fn mapping(&self) -> Option<&Mapping> {
        self.mapping.as_ref()
    }

    /// The files were damaged; true if that is new.
    pub(super) fn abandon(&self) -> bool {
        let new = !self.abandoned.swap(true, Ordering::AcqRel);
        self.ready.clear_all();
        if let Some(compared) = &self.compared {
            compared.clear_all();
        }
        new
    }

    /// Whether the files were damaged.
    pub(super) fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Acquire)
    }

    /// Whether one of these was waited for too long before; all of them were if it `is_now`.
    pub(super) fn is_overdue(&self, group: &[Chunk], is_now: bool) -> bool {
        let mut overdue = self.overdue.lock().unwrap_or_else(PoisonError::into_inner);
        if is_now {
            overdue.extend(group.iter().map(|c| c.id));
        }
        group.iter().any(|c| overdue.contains(&c.id))
    }

    /// Whether a chunk is here, perhaps because of another process.
    pub(super) fn look(&self, chunk: u32) -> bool {
        if !self.is_abandoned() && !self.ready.get(chunk) && self.files.is_ready(chunk).unwrap_or(false) {
            self.ready.set(chunk);
        }
        self.ready.get(chunk)
    }
}

/// Files that only those fill who have its chunks in the same places.
fn open_files(parts: &BlobParts, layout: Option<LayoutNote>) -> io::Result<CacheFiles> {
    for _ in 0..ROUNDS {
        let files = CacheFiles::open(&parts.dir, &parts.id, parts.size, parts.chunks)?;
        match layout {
            Some(layout) if !files.is_laid_out(layout)? => files.unname(&parts.dir, &parts.id)?,
            _ => return Ok(files),
        }
    }
    Err(io::Error::other(
        "others with a blob of that name make their files again and again",
    ))
}
