//! Converts the layers of an image beside each other, watched from the caller's thread.
//!
//! Owns the threads; each ends before [`convert_layers`] returns. The first layer that fails stops the others.
//! What converting one is, is in `layers.rs`.

use std::fmt;
use std::io::{self, Read};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use crate::layers::{
    Compression, ConvertedLayer, LayerError, LayerTools, Names, Room, convert_layer, decompress, index_layer,
    sniff,
};
use crate::progress::{Note, Progress};
use crate::rafs::chunks::Dictionary;
use crate::rafs::compress::Compressors;
use crate::rafs::reference::{IndexError, Original, Unindexed};
use crate::rafs::tail::BlobFormat;

/// More layers at once take memory and bring nothing: compressing is shared anyway.
const MAX_AT_ONCE: usize = 4;

type Open<'a> = dyn Fn() -> io::Result<Box<dyn Read + Send>> + Send + Sync + 'a;

/// A layer's archive, compressed or not, that is yet to be opened.
pub(crate) struct LayerSource<'a> {
    /// Which of the image's layers it is.
    pub(crate) number: usize,
    pub(crate) open: Box<Open<'a>>,
    pub(crate) names: Names,
    /// Names it if it is to stay as it is, with an index of it made, where that can be.
    pub(crate) keep: Option<Original>,
}

impl fmt::Debug for LayerSource<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LayerSource")
            .field("number", &self.number)
            .field("keep", &self.keep)
            .finish_non_exhaustive()
    }
}

/// A layer that can't be converted, by its number.
#[derive(Debug)]
pub(crate) struct FailedLayer {
    pub(crate) layer: usize,
    pub(crate) error: LayerError,
}

/// Where the blob of the layer of this number is written.
pub(crate) fn blob_path(dir: &Path, layer: usize) -> PathBuf {
    dir.join(format!("layer-{layer}"))
}

/// Takes a layer, by its number, as soon as it is converted, in the thread that did it; `false` ends all others.
type Take<'a> = dyn Fn(usize, &ConvertedLayer) -> bool + Sync + 'a;

/// Converts `layers` to blobs in `dir`, telling `progress` how many bytes of them were read.
pub(crate) fn convert_layers(
    layers: &[LayerSource<'_>],
    format: BlobFormat,
    dictionary: &Dictionary,
    dir: &Path,
    take: &Take<'_>,
    progress: &dyn Progress,
) -> Result<Vec<ConvertedLayer>, FailedLayer> {
    let no_threads = |source| FailedLayer {
        layer: 0,
        error: LayerError::Unreadable { source },
    };
    let compressors = Compressors::start().map_err(no_threads)?;
    let cancelled = AtomicBool::new(false);
    let position = AtomicU64::new(0);
    let room = Room::new(&position);
    let pool = Pool {
        layers,
        dir,
        take,
        tools: LayerTools {
            format,
            compressors: &compressors,
            dictionary,
            names: Names::OfLayer,
            room: &room,
            cancelled: &cancelled,
        },
        next: AtomicUsize::new(0),
        position: &position,
        done: Mutex::new(layers.iter().map(|_| None).collect()),
        failed: Mutex::new(None),
    };
    let at_once = thread::available_parallelism()
        .map_or(1, NonZeroUsize::get)
        .min(MAX_AT_ONCE)
        .min(layers.len());
    thread::scope(|scope| -> io::Result<()> {
        let (alive, ended) = mpsc::channel::<()>();
        for _ in 0..at_once {
            let (pool, alive) = (&pool, alive.clone());
            thread::Builder::new()
                .name("layer".to_owned())
                .spawn_scoped(scope, move || {
                    let _alive = alive;
                    pool.work();
                })
                // Those there are already end by themselves, without more work.
                .inspect_err(|_| cancelled.store(true, Ordering::Relaxed))?;
        }
        drop(alive);
        while let Err(mpsc::RecvTimeoutError::Timeout) = ended.recv_timeout(progress.interval()) {
            progress.position(pool.position.load(Ordering::Relaxed));
            if progress.is_cancelled() {
                cancelled.store(true, Ordering::Relaxed);
            }
        }
        Ok(())
    })
    .map_err(no_threads)?;
    progress.position(pool.position.load(Ordering::Relaxed));
    let converted = pool.result()?;
    tell(&converted, progress);
    Ok(converted)
}

/// One note for all layers.
fn tell(converted: &[ConvertedLayer], progress: &dyn Progress) {
    let left_out = || converted.iter().filter_map(|layer| layer.left_out.as_ref());
    if let Some(first) = left_out().next() {
        progress.note(&Note::XattrsLeftOut {
            name: first.name.clone(),
            file: first.file.clone(),
            files: left_out().map(|layer| layer.files).sum(),
        });
    }
}

struct Pool<'a> {
    layers: &'a [LayerSource<'a>],
    dir: &'a Path,
    take: &'a Take<'a>,
    tools: LayerTools<'a>,
    next: AtomicUsize,
    /// Bytes read of all layers.
    position: &'a AtomicU64,
    done: Mutex<Vec<Option<ConvertedLayer>>>,
    /// What failed first.
    failed: Mutex<Option<FailedLayer>>,
}

impl Pool<'_> {
    fn work(&self) {
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(source) = self.layers.get(number) else {
                return;
            };
            match self.convert(source) {
                Ok(converted) => {
                    if !(self.take)(source.number, &converted) {
                        self.tools.cancelled.store(true, Ordering::Relaxed);
                        return;
                    }
                    self.done.lock().unwrap_or_else(PoisonError::into_inner)[number] = Some(converted);
                }
                Err(error) => {
                    let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
                    failed.get_or_insert(FailedLayer {
                        layer: source.number,
                        error,
                    });
                    self.tools.cancelled.store(true, Ordering::Relaxed);
                    return;
                }
            }
        }
    }

    fn convert(&self, source: &LayerSource<'_>) -> Result<ConvertedLayer, LayerError> {
        let unreadable = |source| LayerError::Unreadable { source };
        let counted = AtomicU64::new(0);
        let open = || -> Result<_, LayerError> {
            sniff(Counting {
                inner: (source.open)().map_err(unreadable)?,
                read: 0,
                counted: &counted,
                position: self.position,
            })
            .map_err(unreadable)
        };
        let out = blob_path(self.dir, source.number);
        let tools = LayerTools {
            names: source.names,
            ..self.tools
        };
        let (compression, mut archive) = open()?;
        let mut unindexed = None;
        if let Some(original) = &source.keep {
            let why = if compression == Compression::Gzip {
                match index_layer(archive, original.clone(), &out, tools) {
                    Ok(indexed) => return Ok(indexed),
                    Err(IndexError::Layer(error)) => return Err(error),
                    Err(IndexError::Unindexed(why)) => {
                        (_, archive) = open()?;
                        why
                    }
                }
            } else {
                Unindexed::NotGzip
            };
            unindexed = Some(why);
        }
        let archive = decompress(compression, archive).map_err(unreadable)?;
        let converted = convert_layer(archive, &out, tools)?;
        Ok(ConvertedLayer {
            unindexed,
            ..converted
        })
    }

    fn result(self) -> Result<Vec<ConvertedLayer>, FailedLayer> {
        if let Some(failed) = self.failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(failed);
        }
        let done = self.done.into_inner().unwrap_or_else(PoisonError::into_inner);
        let all: Option<Vec<_>> = done.into_iter().collect();
        // One that is missing was neither done nor failed: nobody came to it.
        all.ok_or(FailedLayer {
            layer: 0,
            error: LayerError::Cancelled,
        })
    }
}

/// Adds what passes to a count of all layers, once however often the layer is read.
struct Counting<'a, R> {
    inner: R,
    read: u64,
    /// Of this layer.
    counted: &'a AtomicU64,
    position: &'a AtomicU64,
}

impl<R: Read> Read for Counting<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let got = self.inner.read(buf)?;
        self.read += got as u64;
        let before = self.counted.fetch_max(self.read, Ordering::Relaxed);
        self.position
            .fetch_add(self.read.saturating_sub(before), Ordering::Relaxed);
        Ok(got)
    }
}
