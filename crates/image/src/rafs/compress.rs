//! Threads that compress chunks, for all layers that are converted at the time.
//!
//! Whoever hands a chunk in gets it back compressed on a channel of its own, in whatever order they get done.
//! Threads end when the [`Compressors`] is dropped; it waits for them.

use std::io;
use std::num::NonZeroUsize;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use nydus_utils::compress;
use zstd::bulk::Compressor;

/// A chunk to be compressed.
#[derive(Debug)]
pub(crate) struct Job {
    data: Vec<u8>,
    compressor: compress::Algorithm,
    answer: Answer,
}

impl Job {
    pub(crate) fn new(index: u32, data: Vec<u8>, compressor: compress::Algorithm, to: Sender<Done>) -> Self {
        let uncompressed_size = data.len();
        Self {
            data,
            compressor,
            answer: Answer {
                index,
                uncompressed_size,
                to: Some(to),
            },
        }
    }
}

/// Who waits for a chunk. Told in any case: a thread that panics drops it.
#[derive(Debug)]
struct Answer {
    index: u32,
    uncompressed_size: usize,
    to: Option<Sender<Done>>,
}

impl Answer {
    fn send(&mut self, data: io::Result<Vec<u8>>, is_compressed: bool) {
        if let Some(to) = self.to.take() {
            // Nobody waits any more when the layer has failed.
            let _ = to.send(Done {
                index: self.index,
                data,
                is_compressed,
                uncompressed_size: self.uncompressed_size,
            });
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.send(Err(io::Error::other("the compressor ended")), false);
    }
}

/// A chunk as it goes into a blob.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) index: u32,
    /// As it was if compressing it doesn't make it smaller.
    pub(crate) data: io::Result<Vec<u8>>,
    pub(crate) is_compressed: bool,
    pub(crate) uncompressed_size: usize,
}

/// The threads.
#[derive(Debug)]
pub(crate) struct Compressors {
    jobs: Option<Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

impl Compressors {
    /// One for each processor.
    pub(crate) fn start() -> io::Result<Self> {
        let count = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let (jobs, waiting) = mpsc::channel();
        let waiting = Arc::new(Mutex::new(waiting));
        let threads = (0..count)
            .map(|_| {
                let waiting = Arc::clone(&waiting);
                thread::Builder::new()
                    .name("compress".to_owned())
                    .spawn(move || work(&waiting))
            })
            .collect::<io::Result<_>>()?;
        Ok(Self {
            jobs: Some(jobs),
            threads,
        })
    }

    /// Hands in a chunk.
    pub(crate) fn submit(&self, job: Job) {
        if let Some(jobs) = &self.jobs {
            // It comes back in the error when all threads are gone; dropping it answers.
            let _ = jobs.send(job);
        }
    }
}

impl Drop for Compressors {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            // Whoever waited for its chunk was told of a panic.
            let _ = thread.join();
        }
    }
}

fn work(waiting: &Mutex<Receiver<Job>>) {
    let mut zstd = None;
    loop {
        let job = waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(mut job) = job else { return };
        match compressed(&job, &mut zstd) {
            Ok(Some(smaller)) => job.answer.send(Ok(smaller), true),
            Ok(None) => job.answer.send(Ok(job.data), false),
            Err(error) => job.answer.send(Err(error), false),
        }
    }
}

/// The chunk compressed; `None` if that doesn't make it smaller. `zstd` is kept between chunks: nydus makes a context
/// for each, which takes longer than compressing a small one.
fn compressed(job: &Job, zstd: &mut Option<Compressor<'static>>) -> io::Result<Option<Vec<u8>>> {
    if job.compressor != compress::Algorithm::Zstd {
        let (data, is_compressed) = compress::compress(&job.data, job.compressor)?;
        return Ok(is_compressed.then(|| data.into_owned()));
    }
    let compressor = match zstd {
        Some(compressor) => compressor,
        None => zstd.insert(Compressor::new(zstd::DEFAULT_COMPRESSION_LEVEL)?),
    };
    let data = compressor.compress(&job.data)?;
    Ok((data.len() < job.data.len()).then_some(data))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_compressed_as_nydus_compresses_them() {
        let mut zstd = None;
        let text: Vec<u8> = (0..60_000_u32)
            .flat_map(|n| (n * n).to_string().into_bytes())
            .collect();
        let noise = blake3_noise(5000);
        for data in [&text[..], &noise, b"x", &text[..300], &[0; 1 << 20]] {
            let (to, _answers) = mpsc::channel();
            let job = Job::new(0, data.to_vec(), compress::Algorithm::Zstd, to);
            let ours = compressed(&job, &mut zstd).unwrap();
            let (theirs, smaller) = compress::compress(data, compress::Algorithm::Zstd).unwrap();
            assert!(
                ours.as_deref() == smaller.then_some(&*theirs),
                "{} bytes",
                data.len()
            );
        }
    }

    /// What can't be compressed.
    fn blake3_noise(bytes: usize) -> Vec<u8> {
        use nydus_utils::digest::{Algorithm, RafsDigest};
        (0..bytes.div_ceil(32))
            .flat_map(|n| RafsDigest::from_buf(&n.to_le_bytes(), Algorithm::Blake3).data)
            .collect()
    }
}
