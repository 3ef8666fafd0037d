//! Images whose start-up finds what it reads in front.

use std::fs::{self, OpenOptions};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use nydusbox_image::source::{
    AccessOptions, Descriptor, ImageRef, ImageSource, Platform, SourceError, SourceImage, open_sink,
    open_source,
};
use nydusbox_image::{
    BuildConfig, ChunkSize, FsVersion, ImageDir, Mode, NydusImage, OptimizeConfig, OptimizeError,
    OptimizeSummary, Quiet, RafsFormat, Source, StartupTrace, TraceRead, build, copy, optimize, optimize_dir,
};

use crate::oci::{self, Original, layout_ref};
use crate::{names, peers, temp_dir, tree};

const CHUNK: u64 = 1 << 16;

fn read(path: &str, offset: u64, length: Option<u64>) -> TraceRead {
    TraceRead {
        path: path.into(),
        offset,
        length,
        ms: None,
    }
}

fn trace(reads: Vec<TraceRead>) -> StartupTrace {
    let mut trace = StartupTrace::default();
    trace.reads = reads;
    trace
}

/// An image of everything there is, and a file `big` of five chunks.
fn built(dir: &Path, version: FsVersion) -> ImageDir {
    let source = dir.join("source");
    fs::create_dir(&source).unwrap();
    tree::make(&source);
    fs::write(source.join("big"), tree::noise(1, 5 << 16)).unwrap();
    fs::write(source.join("small"), tree::noise(2, 5000)).unwrap();
    let format = RafsFormat::default()
        .fs_version(version)
        .chunk_size(ChunkSize::new(CHUNK).unwrap());
    let out = dir.join("image");
    build(
        &BuildConfig::new(Source::Directory(source), &out).format(format),
        &Quiet,
    )
    .unwrap();
    ImageDir::open(&out).unwrap()
}

fn open(image: &ImageDir) -> NydusImage {
    NydusImage::open(&image.bootstrap(), &image.blob_dir()).unwrap()
}

#[test]
fn what_is_read_is_in_front_in_order_and_every_file_is_as_it_was() {
    for version in [FsVersion::V5, FsVersion::V6] {
        let dir = temp_dir();
        let image = built(dir.path(), version);
        let reads = vec![
            read("/small", 0, None),
            read("/big", 3 * CHUNK + 5, Some(CHUNK)),
            read("/none", 0, None),
            read("/big", 0, Some(1)),
        ];
        let mut first = trace(reads.clone());
        first.image = Some("sha256:0".to_owned());
        let out = dir.path().join("optimized");
        let summary = optimize_dir(&image, &out, false, &first, &Quiet).unwrap();
        assert_eq!((summary.front_chunks, summary.files), (4, 1), "{summary:?}");
        assert_eq!(summary.missing, [Path::new("/none")]);
        assert!(!summary.is_same_image);

        let made = ImageDir::open(&out).unwrap();
        let id = &summary.front_blob;
        // Noise can't be compressed: the blob begins with the chunks as they are.
        let front = fs::read(made.blob_dir().join(id)).unwrap();
        let big = fs::read(dir.path().join("source/big")).unwrap();
        let small = fs::read(dir.path().join("source/small")).unwrap();
        let chunk = |n: usize| &big[n * 65536..(n + 1) * 65536];
        let expected = [&small[..], chunk(3), chunk(4), chunk(0)].concat();
        assert!(front.starts_with(&expected), "{version}");
        assert_eq!(summary.front_bytes, expected.len() as u64);
        assert_eq!(open(&image).diff(&open(&made)), []);
        assert_eq!(open(&made).check(&Quiet).problems, []);
        peers::check(&made.bootstrap());

        // Once more, with what is read now.
        let again = dir.path().join("again");
        let second = trace(vec![read("/big", 0, None)]);
        optimize_dir(&made, &again, false, &second, &Quiet).unwrap();
        let again = ImageDir::open(&again).unwrap();
        assert_eq!(open(&image).diff(&open(&again)), []);
        assert_eq!(open(&again).check(&Quiet).problems, []);
        peers::check(&again.bootstrap());
    }
}

#[test]
fn what_cannot_be_optimized_leaves_nothing() {
    let dir = temp_dir();
    let image = built(dir.path(), FsVersion::V6);
    let out = dir.path().join("optimized");
    let nothing = optimize_dir(&image, &out, false, &trace(vec![read("/none", 0, None)]), &Quiet);
    assert!(matches!(nothing, Err(OptimizeError::Nothing)), "{nothing:?}");
    let blob = image.blob_dir().join(&image.summary().blobs[0].id);
    let bytes = fs::metadata(&blob).unwrap().len();
    let file = OpenOptions::new().write(true).open(&blob).unwrap();
    file.write_all_at(&vec![7; usize::try_from(bytes).unwrap() / 2], 0)
        .unwrap();
    let damaged = optimize_dir(&image, &out, false, &trace(vec![read("/big", 0, None)]), &Quiet);
    assert!(matches!(damaged, Err(OptimizeError::Chunk { .. })), "{damaged:?}");
    assert_eq!(names(dir.path()), ["image", "source"]);
}

fn source_of(reference: &ImageRef) -> Box<dyn ImageSource> {
    open_source(reference, &AccessOptions::default()).unwrap()
}

fn optimized(from: &ImageRef, to: &ImageRef, trace: &StartupTrace) -> OptimizeSummary {
    let sink = open_sink(to, &AccessOptions::default()).unwrap();
    let config = OptimizeConfig::new(Platform::default());
    optimize(source_of(from), &*sink, trace, &config, &Quiet).unwrap()
}

/// A place where the image of a name is another one as soon as it was asked for.
#[derive(Debug)]
struct Moving {
    place: Box<dyn ImageSource>,
    asked: AtomicBool,
}

impl ImageSource for Moving {
    fn image(&self, platform: &Platform) -> Result<SourceImage, SourceError> {
        assert!(!self.asked.swap(true, Ordering::Relaxed), "asked twice");
        self.place.image(platform)
    }

    fn blob(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send>, SourceError> {
        self.place.blob(descriptor)
    }
}

#[test]
fn an_image_whose_name_moves_meanwhile_is_the_one_that_was_there_first() {
    let Some(original) = Original::make() else { return };
    let (converted, other) = (original.path("converted"), original.path("other"));
    let from = layout_ref(&converted, "nydus");
    original
        .convert(&from, &oci::config().mode(Mode::Reference))
        .unwrap();
    let moving = || {
        let (place, asked) = (source_of(&from), AtomicBool::new(false));
        Box::new(Moving { place, asked })
    };
    let sink = |name| open_sink(&layout_ref(&other, name), &AccessOptions::default()).unwrap();
    let config = OptimizeConfig::new(Platform::default());
    let trace = trace(vec![read("/etc/text", 0, None)]);
    optimize(moving(), &*sink("fast"), &trace, &config, &Quiet).unwrap();
    copy(moving(), &*sink("copy"), &Platform::default(), &Quiet).unwrap();
}

#[test]
fn an_image_in_a_layout_becomes_one_with_the_same_files() {
    let Some(original) = Original::make() else { return };
    for mode in [Mode::Native, Mode::Reference] {
        let name = format!("{mode:?}");
        let (converted, other) = (original.path(&name), original.path(&format!("{name}-other")));
        let (from, to) = (layout_ref(&converted, "nydus"), layout_ref(&other, "fast"));
        original.convert(&from, &oci::config().mode(mode)).unwrap();
        let trace = trace(vec![read("/etc/text", 0, None), read("/many/new", 0, None)]);
        let summary = optimized(&from, &to, &trace);
        assert_eq!((summary.files, summary.missing.len()), (2, 0), "{summary:?}");
        let image = |reference: &ImageRef| {
            NydusImage::open_source(source_of(reference), &Platform::default()).unwrap()
        };
        assert_eq!(image(&from).diff(&image(&to)), []);
        let check = image(&to).check(&Quiet);
        assert_eq!((check.problems, check.unchecked_chunks), (Vec::new(), 0));

        let (before, after) = (source_of(&from), source_of(&to));
        let (before, after) = (
            before.image(&Platform::default()).unwrap(),
            after.image(&Platform::default()).unwrap(),
        );
        let kept = before.layers().len() - 1;
        assert_eq!(after.layers()[..kept], before.layers()[..kept], "blobs stay");
        assert_eq!(after.layers()[kept].digest().digest(), summary.front_blob);
        assert_eq!(after.config.rootfs().diff_ids().len(), after.layers().len());
        assert_eq!(after.config.config(), before.config.config());
    }
}
