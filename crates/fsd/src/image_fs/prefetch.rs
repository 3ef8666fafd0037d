//! Prefetching: what the mount, the configuration or the image name, when no guest waits for anything.
//!
//! What has been put in front for it comes first, then what is named, in its order: files, then parts of files. Chunks
//! that follow each other in a blob are one request, whichever files they are of, and as many requests are under way as
//! there are threads.

use std::collections::{HashSet, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use nydus_api::PrefetchConfigV2;
use nydus_rafs::RafsIoReader;
use nydus_rafs::metadata::RafsInodeWalkAction;
use nydus_utils::metrics::Metric;

use super::blob::Urgency;
use super::chunk::Chunk;
use super::layout::SEGMENT;
use super::readahead::REQUEST;
use super::runs::{CONTENT_LIMIT, follows};
use super::storage::Storage;
use super::{Image, Served};

/// Threads of one image at the most, whatever the configuration says.
const MOST_THREADS: usize = 16;

/// Something to prefetch.
#[derive(Debug, Clone, Copy)]
enum Work {
    /// A file, or everything in a directory.
    Inode(u64),
    /// What a segment of a file has of a part of it: the part's first byte, and the first one after it.
    Part(u64, u64, u64),
    /// The part of a blob that has been put in front for this, in bytes.
    Front(usize, u64),
}

/// What a mount names.
#[derive(Debug, Default)]
pub(crate) struct Named {
    /// Files, and directories with all that is in them.
    pub(crate) files: Option<Vec<PathBuf>>,
    /// Parts of files: the first byte, and the first one after it.
    pub(crate) parts: Vec<(PathBuf, u64, u64)>,
    /// Where the program may be that will be started; `startup.rs` is about it.
    pub(crate) program: Vec<PathBuf>,
}

/// Starts as many threads as the configuration says; they end with the work, or with the mount. False if there is
/// nothing to be done.
pub(super) fn start(
    image: &Arc<Image>,
    config: &PrefetchConfigV2,
    mut reader: RafsIoReader,
    names: Named,
) -> bool {
    let mut work = VecDeque::new();
    let served = image.served();
    for (index, info) in served.sb.superblock.get_blob_infos().iter().enumerate() {
        if info.prefetch_size() > 0 {
            work.push_back(Work::Front(index, info.prefetch_size()));
        }
    }
    let root = served.sb.superblock.root_ino();
    let named: Vec<u64> = match names.files {
        // What a mount names takes the place of what the image names.
        Some(files) => files
            .iter()
            .filter_map(|f| served.sb.ino_from_path(f).ok())
            .collect(),
        // So do parts of files.
        None if names.parts.is_empty() && served.sb.meta.prefetch_table_entries > 0 => {
            let table = served.sb.get_prefetched_inos(&mut reader).unwrap_or_default();
            table.into_iter().map(u64::from).filter(|ino| *ino != 0).collect()
        }
        None => Vec::new(),
    };
    let everything = config.prefetch_all && !named.contains(&root);
    work.extend(named.into_iter().map(Work::Inode));
    let last = everything.then_some(Work::Inode(root));
    let nothing = work.is_empty() && names.parts.is_empty() && last.is_none();
    if nothing || served.storage.blobs.is_empty() {
        return false;
    }
    let queue = Arc::new(Mutex::new(Queue {
        work,
        seen: HashSet::new(),
        parts: names.parts.into(),
        last,
        found: VecDeque::new(),
        version: served.version,
    }));
    let threads = config.threads_count.clamp(1, MOST_THREADS);
    let limit = u64::from(config.bandwidth_limit).div_ceil(threads as u64);
    for _ in 0..threads {
        let (image, queue) = (Arc::clone(image), Arc::clone(&queue));
        // With fewer threads it takes longer.
        let _spawned = thread::Builder::new()
            .name("prefetch".into())
            .spawn(move || image.prefetch(&queue, limit));
    }
    true
}

/// What is left to do.
struct Queue {
    work: VecDeque<Work>,
    /// Files and directories that were begun: a hostile image has a directory inside itself.
    seen: HashSet<u64>,
    /// What there is after that. Mounting does not wait until they are found in the image.
    parts: VecDeque<(PathBuf, u64, u64)>,
    /// And then.
    last: Option<Work>,
    /// Missing chunks with their blob's place, in order, that have not been asked for.
    found: VecDeque<(usize, Chunk)>,
    /// Which metadata have them there.
    version: u64,
}

impl Queue {
    /// The next request; `None` when all is done. Threads take turns: where chunks are is known at once, but for the
    /// table of a blob that is being fetched, and without that none of them could do anything.
    fn next(&mut self, image: &Image, served: &Served) -> Option<(usize, Vec<Chunk>)> {
        if std::mem::replace(&mut self.version, served.version) != served.version {
            // The blobs are others, or in another order.
            self.found.clear();
            self.work.retain(|work| !matches!(work, Work::Front(..)));
        }
        loop {
            let has = |(blob, chunk): &(usize, Chunk)| {
                served
                    .storage
                    .blobs
                    .get(*blob)
                    .is_none_or(|b| b.blob.generation().has(chunk.id))
            };
            // Somebody may have got them meanwhile.
            while self.found.front().is_some_and(has) {
                self.found.pop_front();
            }
            let length = self.request_length();
            // As long as there may be more that follows.
            if length == self.found.len()
                && let Some(work) = self.next_work(served)
            {
                self.expand(image, served, work);
                continue;
            }
            let (blob, _) = self.found.front()?;
            let blob = *blob;
            return Some((blob, self.found.drain(..length).map(|(_, chunk)| chunk).collect()));
        }
    }

    fn next_work(&mut self, served: &Served) -> Option<Work> {
        if let Some(work) = self.work.pop_front() {
            return Some(work);
        }
        while let Some((file, from, to)) = self.parts.pop_front() {
            let ino = served.sb.ino_from_path(&file).ok();
            if let Some(inode) = ino.and_then(|ino| served.sb.get_inode(ino, false).ok())
                && inode.is_reg()
            {
                return Some(Work::Part(inode.ino(), from, inode.size().min(to)));
            }
        }
        self.last.take()
    }

    /// How many of the chunks that were found make one request.
    fn request_length(&self) -> usize {
        let Some((blob, first)) = self.found.front() else {
            return 0;
        };
        let mut content = u64::from(first.size);
        let joins = |((at, chunk), (next_at, next)): &(&(usize, Chunk), &(usize, Chunk))| {
            content += u64::from(next.size);
            content <= CONTENT_LIMIT
                && at == next_at
                && next_at == blob
                && follows(chunk, next)
                && next.blob_end() - first.blob_offset <= REQUEST
        };
        1 + self
            .found
            .iter()
            .zip(self.found.iter().skip(1))
            .take_while(joins)
            .count()
    }

    /// Finds the chunks of one piece of work; what else there is to do is put in front of the rest.
    fn expand(&mut self, image: &Image, served: &Served, next: Work) {
        match next {
            Work::Front(index, size) => {
                let blob = served.storage.blobs.get(index);
                let table = blob.and_then(|b| b.table()).unwrap_or_default();
                let chunks = table.iter().filter(|c| c.blob_offset < size && c.is_listed);
                self.found.extend(chunks.map(|c| (index, c.clone())));
            }
            Work::Inode(ino) => {
                let Ok(inode) = served.sb.get_inode(ino, false) else {
                    return;
                };
                if !self.seen.insert(ino) {
                    return;
                }
                if inode.is_dir() {
                    let mut children = Vec::new();
                    let walked = inode.walk_children_inodes(0, &mut |_, name, child, _| {
                        if name != "." && name != ".." && !self.seen.contains(&child) {
                            children.push(Work::Inode(child));
                        }
                        Ok(RafsInodeWalkAction::Continue)
                    });
                    if walked.is_ok() {
                        children.into_iter().rev().for_each(|w| self.work.push_front(w));
                    }
                } else if inode.is_reg() {
                    self.work.push_front(Work::Part(ino, 0, inode.size()));
                }
            }
            Work::Part(ino, from, to) if from < to => {
                // One segment after the other: how many there are is the image's word.
                if let Ok(segment) = image.layouts.segment(served, ino, from) {
                    let pieces = segment.from(from).iter().take_while(|piece| piece.at < to);
                    self.found
                        .extend(pieces.map(|piece| (piece.blob, piece.chunk.clone())));
                    let next = (from / SEGMENT + 1).saturating_mul(SEGMENT);
                    if next < to {
                        self.work.push_front(Work::Part(ino, next, to));
                    }
                }
            }
            Work::Part(..) => {}
        }
    }
}

impl Image {
    fn prefetch(&self, queue: &Mutex<Queue>, bytes_a_second: u64) {
        loop {
            let served = self.served();
            let next = queue
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .next(self, &served);
            let Some((blob, chunks)) = next else { return };
            if !self.gate.wait_until_calm() {
                return;
            }
            let bytes = prefetch_chunks(&served.storage, blob, &chunks);
            // Whoever pauses keeps no blob from being closed.
            drop(served);
            // Each thread has its share of the limit, and pauses for as long as its data may take. 0 is no limit.
            if let Some(pause_ms) = bytes.saturating_mul(1000).checked_div(bytes_a_second)
                && !self.gate.pause(Duration::from_millis(pause_ms))
            {
                return;
            }
        }
    }
}

/// Fetches chunks of a blob; how many bytes of it came.
fn prefetch_chunks(storage: &Storage, index: usize, chunks: &[Chunk]) -> u64 {
    let Some(blob) = storage.blobs.get(index) else {
        return 0;
    };
    let counters = blob.blob.counters();
    counters.prefetch_requests_count.inc();
    counters.prefetch_unmerged_chunks.add(chunks.len() as u64);
    // A prefetch that fails is a read that fetches for itself.
    let fetched = blob
        .blob
        .ensure(chunks, Urgency::Prefetch)
        .map_or(0, |s| s.fetched);
    if fetched == 0 {
        return 0;
    }
    let bytes: u64 = chunks.iter().map(|c| u64::from(c.blob_size)).sum();
    counters.prefetch_data_amount.add(bytes);
    bytes
}
