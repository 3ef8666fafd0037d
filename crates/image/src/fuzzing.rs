//! What reads the bytes of others, for the fuzz targets and nobody else: no part of what this crate promises.
//!
//! Each function takes bytes as they come from outside, does with them what commands do, and throws the result away.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64};

use crate::bootstrap_layer::unpack_bootstrap;
use crate::chunk_reader::unpack_by_index;
use crate::layers::{LayerTools, Names, Room, convert_layer, decompressed, index_layer};
use crate::merge::{MergeLayer, merge};
use crate::nydus_image::NydusImage;
use crate::progress::Quiet;
use crate::rafs::bootstrap::BootstrapPlan;
use crate::rafs::chunks::Dictionary;
use crate::rafs::compress::Compressors;
use crate::rafs::load::load;
use crate::rafs::reference::Original;
use crate::rafs::tail::{BlobFormat, bootstrap_in, complete};
use crate::rafs::with_nydus;
use crate::source::document::{Document, resolve};
use crate::source::{AccessOptions, ImageRef, Platform, SourceError, open_source, registry, sha256_of};
use crate::trace::StartupTrace;
use crate::{FsVersion, RafsFormat};

/// A bootstrap that is inspected, checked, compared, used as a dictionary, and written again; its blobs are in
/// `blob_dir`, and what is written goes to `scratch`.
pub fn bootstrap(path: &Path, blob_dir: &Path, scratch: &Path) {
    let Ok(image) = NydusImage::open(path, blob_dir) else {
        return;
    };
    let report = image.inspect();
    assert!(image.diff(&image).is_empty(), "an image is as it is itself");
    image.check(&Quiet);
    let loaded = || with_nydus(|| load(path)).ok();
    let format = BlobFormat {
        fs_version: report.fs_version,
        ..BlobFormat::from(RafsFormat::default())
    };
    if let Some(again) = loaded() {
        Dictionary::of(again);
    }
    let Some(again) = loaded() else { return };
    let blobs = again.blobs.clone();
    let layer = again.into_layer();
    let Ok(merged) = merge(&[MergeLayer { layer, blobs }]) else {
        return;
    };
    let _ = with_nydus(|| BootstrapPlan::of_image(&merged, format).write(scratch));
}

/// A layer's archive, compressed or not, that is converted to a blob in `scratch`, and one is made an index of.
pub fn layer(bytes: &[u8], fs_version: FsVersion, scratch: &Path) {
    let Ok(compressors) = Compressors::start() else {
        return;
    };
    let (cancelled, dictionary) = (AtomicBool::new(false), Dictionary::default());
    let read = AtomicU64::new(bytes.len() as u64);
    let room = Room::new(&read);
    let tools = LayerTools {
        format: BlobFormat {
            fs_version,
            ..BlobFormat::from(RafsFormat::default())
        },
        compressors: &compressors,
        dictionary: &dictionary,
        names: Names::OfLayer,
        room: &room,
        cancelled: &cancelled,
    };
    if let Ok(archive) = decompressed(io::Cursor::new(bytes.to_vec()))
        && let Ok(converted) = convert_layer(archive, scratch, tools)
    {
        let blob = File::open(scratch).and_then(|blob| bootstrap_in(&blob));
        assert!(blob.is_ok(), "{converted:?} has its bootstrap in it");
    }
    let Some(original) = Original::new(&sha256_of(bytes), bytes.len() as u64) else {
        return;
    };
    if fs_version == FsVersion::V6 {
        let _ = index_layer(bytes, original, scratch, tools);
    }
}

/// An archive with an image's bootstrap in it, or with the whole image; the bootstrap goes to `scratch`.
pub fn archive(path: &Path, scratch: &File) {
    if let Ok(archive) = File::open(path) {
        let _ = unpack_bootstrap(archive, scratch);
    }
    let path = path.to_owned();
    for reference in [
        ImageRef::OciArchive {
            path: path.clone(),
            tag: None,
        },
        ImageRef::DockerArchive { path, name: None },
    ] {
        let opened = open_source(&reference, &AccessOptions::default());
        let _ = opened.and_then(|source| source.image(&Platform::default()));
    }
}

/// A blob whose bootstrap is looked for.
pub fn blob(file: &File) {
    let _ = bootstrap_in(file);
    let mut own = crate::rafs::blob::Blob::unknown();
    let _ = complete(&mut own, [0; 32], file);
}

/// The table of an index, uncompressed, for a layer of which `layer` is the content: every chunk is unpacked.
pub fn index(table: &[u8], chunks: u32, contexts: u32, layer: &[u8]) {
    unpack_by_index(table, chunks, contexts, layer);
}

/// Documents of an image, each the answer to a question: the first is what the name stands for.
pub fn documents(documents: &[&[u8]]) {
    let asked = Cell::new(0);
    let blob = |_: &crate::source::Descriptor| {
        asked.set(asked.get() + 1);
        let answer = documents.get(asked.get()).copied().unwrap_or_default();
        Ok::<Box<dyn Read + Send>, SourceError>(Box::new(io::Cursor::new(answer.to_vec())))
    };
    let Some(first) = documents.first() else { return };
    let root = Document {
        bytes: first.to_vec(),
        media_type: None,
        digest: sha256_of(first),
    };
    if let Ok(image) = resolve(root, &Platform::default(), &blob) {
        assert_eq!(image.layers().len(), image.config.rootfs().diff_ids().len());
    }
}

/// Texts: the trace of a start-up, and what is between a registry and whoever asks it. `dir` is a directory of the
/// caller's for files.
pub fn texts(bytes: &[u8], dir: &Path) {
    let _ = StartupTrace::parse(&mut &*bytes, dir);
    registry::fuzzing(bytes, dir);
}
