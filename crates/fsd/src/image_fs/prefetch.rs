//! Prefetching: what the mount, the configuration or the image name, when no guest waits for anything.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use nydus_api::PrefetchConfigV2;
use nydus_rafs::RafsIoReader;
use nydus_utils::metrics::Metric;

use super::Image;
use super::blob::Urgency;
use super::chunk::Chunk;
use super::layout::SEGMENT;
use super::read::requests;

/// Threads of one image at the most, whatever the configuration says.
const MOST_THREADS: usize = 16;

/// Something to prefetch.
#[derive(Debug, Clone, Copy)]
enum Work {
    /// A file, or everything in a directory.
    Inode(u64),
    /// One segment of a file, by its first byte.
    Segment(u64, u64),
    /// The part of a blob that has been put in front for this, in bytes.
    Front(usize, u64),
}

/// Starts as many threads as the configuration says; they end with the work, or with the mount.
pub(super) fn start(
    image: &Arc<Image>,
    config: &PrefetchConfigV2,
    mut reader: RafsIoReader,
    files: Option<&[PathBuf]>,
) {
    let mut work = VecDeque::new();
    for (index, info) in image.sb.superblock.get_blob_infos().iter().enumerate() {
        if info.prefetch_size() > 0 {
            work.push_back(Work::Front(index, info.prefetch_size()));
        }
    }
    let root = image.sb.superblock.root_ino();
    let named: Vec<u64> = match files {
        // What a mount names takes the place of what the image names.
        Some(files) => files
            .iter()
            .filter_map(|f| image.sb.ino_from_path(f).ok())
            .collect(),
        None if image.sb.meta.prefetch_table_entries > 0 => {
            let table = image.sb.get_prefetched_inos(&mut reader).unwrap_or_default();
            table.into_iter().map(u64::from).filter(|ino| *ino != 0).collect()
        }
        None => Vec::new(),
    };
    let everything = config.prefetch_all && !named.contains(&root);
    work.extend(named.into_iter().map(Work::Inode));
    if everything {
        work.push_back(Work::Inode(root));
    }
    if work.is_empty() || image.storage().blobs.is_empty() {
        return;
    }
    let work = Arc::new(Mutex::new(work));
    let threads = config.threads_count.clamp(1, MOST_THREADS);
    let limit = u64::from(config.bandwidth_limit).div_ceil(threads as u64);
    for _ in 0..threads {
        let (image, work) = (Arc::clone(image), Arc::clone(&work));
        // With fewer threads it takes longer.
        let _spawned = thread::Builder::new()
            .name("prefetch".into())
            .spawn(move || image.prefetch(&work, limit));
    }
}

impl Image {
    fn prefetch(&self, work: &Mutex<VecDeque<Work>>, bytes_a_second: u64) {
        loop {
            let next = work.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some(next) = next else { return };
            for (blob, chunks) in self.expand(next, work) {
                if !self.gate.wait_until_calm() {
                    return;
                }
                self.prefetch_chunks(blob, &chunks, bytes_a_second);
            }
        }
    }

    /// What is to be fetched of one piece of work; what else there is to do is put in front of the rest.
    fn expand(&self, next: Work, work: &Mutex<VecDeque<Work>>) -> Vec<(usize, Vec<Chunk>)> {
        let storage = self.storage();
        let push = |more: Vec<Work>| {
            let mut work = work.lock().unwrap_or_else(PoisonError::into_inner);
            more.into_iter().rev().for_each(|w| work.push_front(w));
        };
        match next {
            Work::Front(index, size) => {
                let blob = storage.blobs.get(index);
                let table = blob.and_then(|b| b.table()).unwrap_or_default();
                let chunks = table.iter().filter(|c| c.blob_offset < size);
                return chunks.map(|c| (index, vec![c.clone()])).collect();
            }
            Work::Inode(ino) => {
                let Ok(inode) = self.sb.get_inode(ino, false) else {
                    return Vec::new();
                };
                if inode.is_dir() {
                    let children =
                        (0..inode.get_child_count()).filter_map(|n| inode.get_child_by_index(n).ok());
                    push(children.map(|child| Work::Inode(child.ino())).collect());
                } else if inode.is_reg() {
                    let segments = inode.size().div_ceil(SEGMENT);
                    push((0..segments).map(|n| Work::Segment(ino, n * SEGMENT)).collect());
                }
            }
            Work::Segment(ino, at) => {
                if let Ok(segment) = self.layouts.segment(&self.sb, &storage, ino, at) {
                    return requests(&storage, &segment.pieces);
                }
            }
        }
        Vec::new()
    }

    fn prefetch_chunks(&self, index: usize, chunks: &[Chunk], bytes_a_second: u64) {
        let storage = self.storage();
        let Some(blob) = storage.blobs.get(index) else {
            return;
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
            return;
        }
        let bytes: u64 = chunks.iter().map(|c| u64::from(c.blob_size)).sum();
        counters.prefetch_data_amount.add(bytes);
        // Each thread has its share of the limit, and pauses for as long as its data may take. 0 is no limit.
        if let Some(pause_ms) = bytes.saturating_mul(1000).checked_div(bytes_a_second) {
            thread::sleep(Duration::from_millis(pause_ms));
        }
    }
}
