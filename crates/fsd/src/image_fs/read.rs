//! READ: from the cache straight into guest memory, after what is missing has been fetched.

use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::sync::Arc;

use fuse_backend_rs::api::filesystem::ZeroCopyWriter;
use fuse_backend_rs::file_buf::FileVolatileSlice;
use fuse_backend_rs::file_traits::FileReadWriteVolatile;
use nydus_utils::metrics::Metric;
use rustix::io::Errno;

use super::blob::{Held, Urgency};
use super::chunk::Chunk;
use super::events::report;
use super::generation::Generation;
use super::layout::{Piece, Segment};
use super::readahead;
use super::runs::follows;
use super::storage::{ImageBlob, Storage};
use super::thrift::Amount;
use super::{Image, Served};
use crate::sys::volatile;

/// How often a read starts over because the cache lost what it had.
const LOSSES: usize = 4;

impl Image {
    /// Reads a file into `w` and gives how much that was, in bytes.
    ///
    /// # Errors
    /// EIO if some of it is not to be had; why is among the events.
    pub(super) fn read(
        self: &Arc<Self>,
        w: &mut dyn ZeroCopyWriter,
        ino: u64,
        size: u64,
        offset: u64,
    ) -> io::Result<usize> {
        let mut served = self.served();
        if served.storage.blobs.is_empty() {
            return self.read_by_nydus(&served, w, ino, size, offset);
        }
        let mut segment = self.segment(&mut served, ino, offset)?;
        let size = size
            .min(segment.file_size.saturating_sub(offset))
            .min(w.available_bytes() as u64);
        let end = offset + size;
        if size == 0 {
            return Ok(0);
        }
        if !served.storage.is_complete() {
            self.thrift.read(size);
            if let Some(range) = self.streams.note(ino, offset..end, segment.file_size) {
                self.fetch_ahead(&served, ino, range);
            }
        }
        let mut at = offset;
        let mut fetched = 0;
        let mut missed = false;
        loop {
            let last = segment.pieces.last().map_or(at, Piece::end);
            let to = end.min(last);
            let mut part = SegmentRead {
                image: self,
                served: &served,
                segment: &segment,
                ino,
                at,
                end: to,
                fetched: 0,
                missed: false,
            };
            let done = part.run(w);
            fetched += part.fetched;
            missed |= part.missed;
            at = part.at;
            if done.is_err() && self.is_renewed(&mut served) {
                segment = self.segment(&mut served, ino, at)?;
                continue;
            }
            done?;
            if at >= end {
                break;
            }
            segment = self.segment(&mut served, ino, at)?;
            if segment.from(at).is_empty() {
                return Err(Errno::IO.into());
            }
        }
        if missed {
            self.fetches.missed();
        }
        if fetched > 0 {
            self.streams.fell_behind(ino, end);
        }
        usize::try_from(size).map_err(|_| Errno::IO.into())
    }

    /// Has a part of a file fetched in the background.
    pub(super) fn fetch_ahead(self: &Arc<Self>, served: &Arc<Served>, ino: u64, range: std::ops::Range<u64>) {
        let mut at = range.start;
        while at < range.end {
            // What is wrong there is told to whoever reads it.
            let Ok(segment) = self.layouts.segment(served, ino, at) else {
                return;
            };
            let pieces = segment.from(at);
            let until = pieces.partition_point(|p| p.at < range.end);
            let Some(last) = pieces[..until].last() else { break };
            at = last.end();
            for request in requests(&served.storage, &pieces[..until]) {
                self.thrift.fetch_ahead(Amount::of(&request.1));
                let (image, served) = (Arc::clone(self), Arc::clone(served));
                self.workers.submit(move || {
                    if !image.gate.is_closed()
                        && let Some(blob) = served.storage.blobs.get(request.0)
                    {
                        // What it does not get, the reader will.
                        let _missing = blob.blob.ensure(&request.1, Urgency::Ahead);
                    }
                });
            }
        }
    }

    /// The kinds of caches that `storage.rs` leaves to nydus.
    fn read_by_nydus(
        &self,
        served: &Served,
        w: &mut dyn ZeroCopyWriter,
        ino: u64,
        size: u64,
        offset: u64,
    ) -> io::Result<usize> {
        let inode = served.sb.get_inode(ino, false)?;
        let size = size
            .min(inode.size().saturating_sub(offset))
            .min(w.available_bytes() as u64);
        if size == 0 {
            return Ok(0);
        }
        let size = usize::try_from(size).map_err(|_| Errno::IO)?;
        let mut done = 0;
        for vector in &mut inode.alloc_bio_vecs(&served.storage.device, offset, size, true)? {
            let read = served.storage.device.read_to(w, vector)?;
            done += read;
            if read as u64 != vector.size() {
                break;
            }
        }
        Ok(done)
    }
}

/// Missing chunks in groups for one request each, with the blob's place.
pub(super) fn requests(storage: &Storage, pieces: &[Piece]) -> Vec<(usize, Vec<Chunk>)> {
    let mut requests: Vec<(usize, Vec<Chunk>)> = Vec::new();
    for piece in pieces {
        let Some(blob) = storage.blobs.get(piece.blob) else {
            continue;
        };
        if blob.blob.generation().has(piece.chunk.id) {
            continue;
        }
        match requests.last_mut() {
            Some((index, chunks))
                if *index == piece.blob
                    && chunks.last().is_some_and(|last| follows(last, &piece.chunk))
                    && chunks
                        .first()
                        .is_some_and(|first| piece.chunk.end() - first.offset <= readahead::REQUEST) =>
            {
                chunks.push(piece.chunk.clone());
            }
            _ => requests.push((piece.blob, vec![piece.chunk.clone()])),
        }
    }
    requests
}

/// The part of a read that is within one segment.
struct SegmentRead<'a> {
    image: &'a Image,
    served: &'a Served,
    segment: &'a Segment,
    ino: u64,
    at: u64,
    end: u64,
    /// Chunks that were fetched for it.
    fetched: usize,
    /// Something was not in the cache.
    missed: bool,
}

impl SegmentRead<'_> {
    fn run(&mut self, w: &mut dyn ZeroCopyWriter) -> io::Result<()> {
        let segment = self.segment;
        let mut losses = 0;
        let mut held: Vec<(usize, Held)> = Vec::new();
        while self.at < self.end {
            let pieces = segment.from(self.at);
            let Some(piece) = pieces.first() else {
                return Err(Errno::IO.into());
            };
            let source = self.served.storage.blobs.get(piece.blob).ok_or(Errno::IO)?;
            let generation = source.blob.generation();
            let kept = held
                .iter()
                .find(|(blob, (id, _))| (*blob, *id) == (piece.blob, piece.chunk.id));
            if let Some((_, (_, content))) = kept {
                self.copy(w, piece, content)?;
            } else if !generation.has(piece.chunk.id) {
                let (wanted, needed) = self.missing(source, &generation, pieces);
                let supply = source.blob.ensure_first(&wanted, needed, Urgency::Demand);
                let present = source.blob.generation();
                self.image.thrift.give_back_missing(&wanted, |chunk| {
                    let held = supply.as_ref().map_or(&[][..], |supply| &supply.held);
                    present.has(chunk.id) || held.iter().any(|(id, _)| *id == chunk.id)
                });
                // The events say why.
                let supply = supply.map_err(|_| Errno::IO)?;
                self.fetched += supply.fetched;
                self.missed = true;
                held.extend(supply.held.into_iter().map(|h| (piece.blob, h)));
                losses += 1;
            } else if !self.copy_cached(w, source, &generation, pieces)? {
                losses += 1;
            }
            if losses > LOSSES + pieces.len() {
                return Err(Errno::IO.into());
            }
        }
        let counters = self.served.storage.blobs.first().map(|b| b.blob.counters());
        if let Some(counters) = counters {
            counters.total.inc();
            if self.missed {
                &counters.partial_hits
            } else {
                &counters.whole_hits
            }
            .inc();
        }
        Ok(())
    }

    fn copy(&mut self, w: &mut dyn ZeroCopyWriter, piece: &Piece, content: &[u8]) -> io::Result<()> {
        let skip = self.at - piece.at;
        let length = piece.end().min(self.end) - self.at;
        let from = usize::try_from(u64::from(piece.within) + skip).map_err(|_| Errno::IO)?;
        let to = from + usize::try_from(length).map_err(|_| Errno::IO)?;
        w.write_all(content.get(from..to).ok_or(Errno::IO)?)?;
        self.at += length;
        Ok(())
    }

    /// The chunks of one blob that this read lacks, how many those are, and neighbours that make the request worth its
    /// while.
    fn missing(&self, source: &ImageBlob, generation: &Generation, pieces: &[Piece]) -> (Vec<Chunk>, usize) {
        let blob = pieces.first().map(|p| p.blob);
        let mut wanted: Vec<Chunk> = pieces
            .iter()
            .take_while(|p| p.at < self.end)
            .filter(|p| Some(p.blob) == blob && !generation.has(p.chunk.id))
            .map(|p| p.chunk.clone())
            .collect();
        wanted.sort_unstable_by_key(|c| c.id);
        wanted.dedup_by_key(|c| c.id);
        let (lacking, needed) = (wanted.len(), Amount::of(&wanted));
        let most = self.image.settings.batch.saturating_sub(needed.stored);
        let beside = self.image.thrift.fetch(needed, most);
        let came = self.widen(source, generation, pieces, &mut wanted, beside);
        self.image.thrift.give_back(beside - came);
        (wanted, lacking)
    }

    /// Small files lie beside each other in the blob, and who reads one reads the next: nydus, too, asks for up to
    /// `rafs.batch_size` at once. Here as much comes along as is worth it (`thrift.rs`), `most`; gives how much came.
    fn widen(
        &self,
        source: &ImageBlob,
        generation: &Generation,
        pieces: &[Piece],
        wanted: &mut Vec<Chunk>,
        most: Amount,
    ) -> Amount {
        let mut came = Amount::default();
        let mut push = |next: &Chunk| {
            let with = came + Amount::of_one(next);
            let fits = next.is_listed
                && wanted.last().is_some_and(|last| follows(last, next))
                && !generation.has(next.id)
                && with.fits(most);
            if fits {
                came = with;
                wanted.push(next.clone());
            }
            fits
        };
        if let Some(table) = source.table() {
            let needed = pieces.iter().take_while(|p| p.at < self.end);
            let last = needed.map(|p| p.chunk.id).max().unwrap_or_default();
            for next in table
                .iter()
                .skip(usize::try_from(last).unwrap_or(usize::MAX))
                .skip(1)
            {
                if !push(next) {
                    return came;
                }
            }
            return came;
        }
        // RAFS v5 has no table of a blob's chunks, but files in the order of their chunks.
        for piece in pieces.iter().skip_while(|p| p.at < self.end) {
            if !push(&piece.chunk) {
                return came;
            }
        }
        for ino in self.ino + 1..=self.ino + NEXT_FILES {
            let layouts = &self.image.layouts;
            let Ok(segment) = layouts.segment(self.served, ino, 0) else {
                continue;
            };
            for piece in &segment.pieces {
                if !push(&piece.chunk) {
                    return came;
                }
            }
        }
        came
    }

    /// Copies as much as lies together in the cache; false if some of it is not there after all.
    fn copy_cached(
        &mut self,
        w: &mut dyn ZeroCopyWriter,
        source: &ImageBlob,
        generation: &Arc<Generation>,
        pieces: &[Piece],
    ) -> io::Result<bool> {
        let Some(piece) = pieces.first() else {
            return Ok(true);
        };
        if source.compares_cached {
            let Some(content) = verified(source, generation, &piece.chunk)? else {
                return Ok(false);
            };
            return self.copy(w, piece, &content).map(|()| true);
        }
        if !generation.is_compared(piece.chunk.id) {
            if verified(source, generation, &piece.chunk)?.is_none() {
                return Ok(false);
            }
            generation.note_compared(piece.chunk.id);
        }
        let mut end = piece.end();
        for pair in pieces.windows(2) {
            let [before, next] = pair else { break };
            let together = next.at < self.end
                && next.blob == before.blob
                && next.offset() == before.offset() + u64::from(before.length)
                && generation.has(next.chunk.id)
                && generation.is_compared(next.chunk.id);
            if !together {
                break;
            }
            end = next.end();
        }
        let length = usize::try_from(end.min(self.end) - self.at).map_err(|_| Errno::IO)?;
        let offset = piece.offset() + (self.at - piece.at);
        match w.write_from(&mut CacheData(generation), length, offset) {
            Ok(n) if n > 0 => {
                self.at += n as u64;
                Ok(true)
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => Ok(true),
            Err(e)
                if e.kind() != ErrorKind::UnexpectedEof
                    && e.raw_os_error() != Some(Errno::IO.raw_os_error()) =>
            {
                Err(e)
            }
            // Other daemons and mounts go by what is said of a chunk here: not on the word of where it was to go.
            Ok(_) | Err(_) if cached(generation, &piece.chunk).is_some() => Err(Errno::IO.into()),
            Ok(_) | Err(_) => {
                source.blob.lost(generation, piece.chunk.id);
                Ok(false)
            }
        }
    }
}

/// A cache file as the source of guest memory.
struct CacheData<'a>(&'a Generation);

impl FileReadWriteVolatile for CacheData<'_> {
    fn read_volatile(&mut self, _: FileVolatileSlice<'_>) -> io::Result<usize> {
        Err(Errno::SPIPE.into())
    }

    fn write_volatile(&mut self, _: FileVolatileSlice<'_>) -> io::Result<usize> {
        Err(Errno::ROFS.into())
    }

    fn read_at_volatile(&mut self, slice: FileVolatileSlice<'_>, offset: u64) -> io::Result<usize> {
        self.read_vectored_at_volatile(&[slice], offset)
    }

    fn write_at_volatile(&mut self, _: FileVolatileSlice<'_>, _: u64) -> io::Result<usize> {
        Err(Errno::ROFS.into())
    }

    fn read_vectored_at_volatile(
        &mut self,
        buffers: &[FileVolatileSlice<'_>],
        offset: u64,
    ) -> io::Result<usize> {
        if let Some(read) = self
            .0
            .mapping()
            .and_then(|mapping| mapping.read_at(buffers, offset))
        {
            return Ok(read);
        }
        // Also what went wrong with the mapping is said here: the file is as short, or its disk as bad.
        Ok(volatile::read_at(self.0.files().data().as_fd(), buffers, offset)?)
    }
}

/// How many of the following files are looked at for neighbours.
const NEXT_FILES: u64 = 64;

/// A chunk's content from the cache, compared with its digest; `None` if it is not there.
///
/// # Errors
/// EIO if nobody can say. It may well be there then.
fn verified(source: &ImageBlob, generation: &Arc<Generation>, chunk: &Chunk) -> io::Result<Option<Vec<u8>>> {
    if let Some(content) = cached(generation, chunk) {
        match source.agree(chunk, &content) {
            Ok(true) => return Ok(Some(content)),
            Ok(false) => {}
            Err(error) => {
                report(&error);
                return Err(Errno::IO.into());
            }
        }
    }
    source.blob.lost(generation, chunk.id);
    Ok(None)
}

/// What the cache file has of a chunk, if it can be read to its end.
fn cached(generation: &Generation, chunk: &Chunk) -> Option<Vec<u8>> {
    let mut content = vec![0; usize::try_from(chunk.size).ok()?];
    let data = generation.files().data();
    std::os::unix::fs::FileExt::read_exact_at(data, &mut content, chunk.offset).ok()?;
    Some(content)
}
