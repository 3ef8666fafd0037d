//! The image store: what it makes of a reference, that it is made once, and that nothing half-made is ever used.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, SystemTime};

use nydusbox_image::source::{AccessOptions, ImageRef, Platform, SourceError, open_sink, open_source};
use nydusbox_image::{
    BuildConfig, ConvertConfig, FsVersion, GcConfig, GetRequest, ImageData, ImageUse, NydusImage, Phase,
    Progress, PullPolicy, Quiet, RafsFormat, Source, Store, StoreError, StoredImage, StoredKind, build,
    convert,
};

use crate::convert::Stop;
use crate::layout::{Files, make_layout};
use crate::oci::reference;
use crate::{names, temp_dir, tree};

/// Converts an image to a layout of its own.
fn make_nydus(from: &ImageRef, layout: &Path) -> ImageRef {
    let to = reference(&format!("oci:{}:nydus", layout.display()));
    let access = AccessOptions::default();
    let source = open_source(from, &access).unwrap();
    let sink = open_sink(&to, &access).unwrap();
    convert(&*source, &*sink, None, &ConvertConfig::new(platform()), &Quiet).unwrap();
    to
}

pub(crate) fn platform() -> Platform {
    "linux/amd64".parse().unwrap()
}

pub(crate) fn request() -> GetRequest {
    GetRequest::new(platform())
}

fn blob_dir(image: &StoredImage) -> &Path {
    match &image.data {
        ImageData::Local { blob_dir } => blob_dir,
        other => panic!("{other:?}"),
    }
}

/// That every chunk of the image is there and right, and how many files it has.
pub(crate) fn checked(image: &StoredImage) -> u64 {
    let opened = NydusImage::open(&image.bootstrap, blob_dir(image)).unwrap();
    assert_eq!(opened.check(&Quiet).problems, []);
    opened.inspect().regular_files
}

/// Every file below `dir` with its size, but for locks.
pub(crate) fn files(dir: &Path) -> BTreeMap<PathBuf, u64> {
    let mut all = BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let entry = entry.unwrap();
            let meta = entry.metadata().unwrap();
            if meta.is_dir() {
                dirs.push(entry.path());
            } else if meta.len() > 0 {
                all.insert(entry.path(), meta.len());
            }
        }
    }
    all
}

/// Remembers which phases there were, and the bytes of layers that were to be converted.
#[derive(Default)]
struct Seen {
    phases: RefCell<Vec<Phase>>,
    data_bytes: Cell<u64>,
}

impl Seen {
    fn has_converted(&self) -> bool {
        self.phases.borrow().contains(&Phase::Finish)
    }
}

impl Progress for Seen {
    fn begin(&self, phase: Phase, total: Option<u64>) {
        self.phases.borrow_mut().push(phase);
        if phase == Phase::Data {
            self.data_bytes.set(total.unwrap_or_default());
        }
    }

    fn position(&self, _position: u64) {}
}

#[test]
fn an_image_is_converted_once_and_found_again_by_any_of_its_names() {
    let dir = temp_dir();
    let layout = dir.path().join("layout");
    let of = make_layout(
        &layout,
        "of",
        &[&[("a", b"1"), ("b", b"22")], &[("c", &[3; 70_000])]],
    );
    let store = Store::open(&dir.path().join("store")).unwrap();
    let first = store.get(&of, &request(), &Quiet).unwrap();
    assert_eq!(checked(&first), 3);
    assert_eq!(first.fs_version, FsVersion::V6);
    assert!(first.bootstrap.starts_with(store.path()) && blob_dir(&first).starts_with(store.path()));
    let command = first.config.config().as_ref().unwrap().cmd().clone();
    assert_eq!(command, Some(vec!["/bin/true".to_owned()]));
    assert_eq!(names(&store.path().join("work")), [""; 0]);

    let before = files(store.path());
    let seen = Seen::default();
    let again = Store::open(store.path())
        .unwrap()
        .get(&of, &request(), &seen)
        .unwrap();
    assert!(!seen.has_converted());
    assert_eq!(again.digest, first.digest);
    assert_eq!(files(store.path()), before);

    let other = make_layout(
        &layout,
        "other",
        &[&[("a", b"1"), ("b", b"22")], &[("c", &[3; 70_000])]],
    );
    let seen = Seen::default();
    let other = store.get(&other, &request(), &seen).unwrap();
    assert!(!seen.has_converted());
    assert_eq!(other.digest, first.digest);
    let list = store.list().unwrap();
    assert_eq!(list.len(), 2);
    assert!(
        list.iter()
            .all(|entry| entry.kind == StoredKind::Converted && entry.here_bytes > 4096)
    );
    assert_eq!(list[0].reference, of.to_string());
}

#[test]
fn layers_that_another_image_had_are_not_converted_again() {
    let dir = temp_dir();
    let layout = dir.path().join("layout");
    let base: Files<'_> = &[("base", &[7; 300_000])];
    let one = make_layout(&layout, "one", &[base, &[("one", b"1")]]);
    let two = make_layout(&layout, "two", &[base, &[("two", b"2")]]);
    let store = Store::open(&dir.path().join("store")).unwrap();
    let seen = Seen::default();
    let one = store.get(&one, &request(), &seen).unwrap();
    assert!(seen.data_bytes.get() > 300_000);
    let seen = Seen::default();
    let two = store.get(&two, &request(), &seen).unwrap();
    assert!(
        (1..100_000).contains(&seen.data_bytes.get()),
        "{}",
        seen.data_bytes.get()
    );
    assert_eq!((checked(&one), checked(&two)), (2, 2));
    // Made in another way, it is another blob.
    let config = ConvertConfig::new(platform()).format(RafsFormat::default().fs_version(FsVersion::V5));
    let seen = Seen::default();
    let reference = two.reference.clone();
    let older = store
        .get(&reference, &GetRequest::converted_by(config), &seen)
        .unwrap();
    assert!(seen.data_bytes.get() > 300_000);
    assert_eq!((older.fs_version, checked(&older)), (FsVersion::V5, 2));
}

#[test]
fn layers_that_were_done_when_another_failed_are_not_converted_again() {
    let dir = temp_dir();
    let layout = dir.path().join("layout");
    // More than are converted at once: when the last one begins, some are done.
    let content: Vec<_> = (0..6_u8).map(|number| vec![number; 100_000]).collect();
    let files_of: Vec<_> = content.iter().map(|content| [("file", &content[..])]).collect();
    let layers: Vec<Files<'_>> = files_of.iter().map(|files| &files[..]).collect();
    let broken = make_layout(&layout, "broken", &layers);
    let whole = make_layout(&layout, "whole", &layers[..5]);
    let source = open_source(&broken, &AccessOptions::default()).unwrap();
    let last = source.image(&platform()).unwrap().layers()[5].digest().clone();
    fs::write(layout.join("blobs/sha256").join(last.digest()), "damaged").unwrap();
    let store = Store::open(&dir.path().join("store")).unwrap();
    let failed = store.get(&broken, &request(), &Quiet).unwrap_err();
    assert!(matches!(failed, StoreError::Convert(_)), "{failed}");
    assert_eq!(store.list().unwrap(), []);
    let seen = Seen::default();
    let image = store.get(&whole, &request(), &seen).unwrap();
    assert!(seen.data_bytes.get() < 450_000, "{}", seen.data_bytes.get());
    checked(&image);
    // Nothing but the image stays.
    store.gc(GcConfig::default(), &nothing, &Quiet).unwrap();
    let fresh = Store::open(&dir.path().join("fresh")).unwrap();
    drop(fresh.get(&whole, &request(), &Quiet).unwrap());
    assert_eq!(files(store.path()).len(), files(fresh.path()).len());
}

#[test]
fn an_image_in_nydus_form_is_served_where_it_is() {
    let dir = temp_dir();
    let of = make_layout(&dir.path().join("layout"), "of", &[&[("a", &[1; 90_000])]]);
    let out = dir.path().join("out");
    let nydus = make_nydus(&of, &out);
    let store = Store::open(&dir.path().join("store")).unwrap();
    let image = store.get(&nydus, &request(), &Quiet).unwrap();
    assert_eq!(blob_dir(&image), out.join("blobs/sha256"));
    assert_eq!(checked(&image), 1);
    assert_eq!(
        image
            .config
            .config()
            .as_ref()
            .unwrap()
            .cmd()
            .as_ref()
            .unwrap()
            .len(),
        1
    );
    assert_eq!(store.list().unwrap()[0].kind, StoredKind::InPlace);
    let data = image.data_bytes;
    assert!(
        files(&store.path().join("blobs"))
            .values()
            .all(|size| *size < data)
    );
    // Found again without the place being read but for its manifest, and not at all if a blob is gone.
    let seen = Seen::default();
    store.get(&nydus, &request(), &seen).unwrap();
    assert_eq!(*seen.phases.borrow(), []);
    let blob = out.join("blobs/sha256").join(
        fs::read_dir(out.join("blobs/sha256"))
            .unwrap()
            .map(|entry| entry.unwrap())
            .find(|entry| entry.metadata().unwrap().len() == data)
            .unwrap()
            .file_name(),
    );
    fs::remove_file(blob).unwrap();
    let gone = store.get(&nydus, &request(), &Quiet).unwrap_err();
    assert!(matches!(gone, StoreError::MissingData { .. }), "{gone}");
}

#[test]
fn an_image_in_nydus_form_in_an_archive_is_copied() {
    let dir = temp_dir();
    let of = make_layout(&dir.path().join("layout"), "of", &[&[("a", &[1; 90_000])]]);
    let out = dir.path().join("out");
    make_nydus(&of, &out);
    let archive = dir.path().join("out.tar");
    let mut tar = tar::Builder::new(fs::File::create(&archive).unwrap());
    tar.append_dir_all(".", &out).unwrap();
    tar.finish().unwrap();
    let store = Store::open(&dir.path().join("store")).unwrap();
    let from = reference(&format!("oci-archive:{}:nydus", archive.display()));
    let image = store.get(&from, &request(), &Quiet).unwrap();
    assert_eq!(store.list().unwrap()[0].kind, StoredKind::Copied);
    fs::remove_dir_all(&out).unwrap();
    assert_eq!(checked(&image), 1);
    let stopped = Store::open(&dir.path().join("other"))
        .unwrap()
        .get(&from, &request(), &Stop)
        .unwrap_err();
    assert!(matches!(stopped, StoreError::Cancelled), "{stopped}");
}

#[test]
fn a_directory_that_was_built_is_served_and_a_root_file_system_refused() {
    let dir = temp_dir();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    let made = tree::make(&source);
    let built = dir.path().join("built");
    build(
        &BuildConfig::new(Source::Directory(source.clone()), &built),
        &Quiet,
    )
    .unwrap();
    let store = Store::open(&dir.path().join("store")).unwrap();
    let image = store
        .get(&reference(built.to_str().unwrap()), &request(), &Quiet)
        .unwrap();
    assert_eq!(checked(&image), made.regular_files);
    assert_eq!(
        (blob_dir(&image), image.digest.is_none()),
        (&*built.join("blobs"), true)
    );
    assert_eq!(store.list().unwrap(), []);
    let refused = store
        .get(&reference(source.to_str().unwrap()), &request(), &Quiet)
        .unwrap_err();
    assert!(
        matches!(refused, StoreError::Source(SourceError::RootFileSystem { .. })),
        "{refused}"
    );
}

#[test]
fn a_place_is_asked_as_the_policy_says() {
    let dir = temp_dir();
    let layout = dir.path().join("layout");
    let of = make_layout(&layout, "of", &[&[("a", b"1")]]);
    let store = Store::open(&dir.path().join("store")).unwrap();
    let never = request().policy(PullPolicy::Never);
    let absent = store.get(&of, &never, &Quiet).unwrap_err();
    assert!(matches!(absent, StoreError::NotHere { .. }), "{absent}");
    let old = store.get(&of, &request(), &Quiet).unwrap();
    make_layout(&layout, "of", &[&[("a", b"1"), ("b", b"2")]]);
    let still = store.get(&of, &never, &Quiet).unwrap();
    assert_eq!(still.digest, old.digest);
    let new = store.get(&of, &request(), &Quiet).unwrap();
    assert_eq!((checked(&old), checked(&new)), (1, 2));
    // What is here needs no place to be there.
    fs::remove_dir_all(&layout).unwrap();
    assert_eq!(store.get(&of, &never, &Quiet).unwrap().digest, new.digest);
}

/// Lets a conversion begin, and go on once it is told to.
struct Held {
    begun: mpsc::Sender<()>,
    go_on: mpsc::Receiver<()>,
}

impl Progress for Held {
    fn begin(&self, phase: Phase, _total: Option<u64>) {
        if phase == Phase::Data {
            self.begun.send(()).unwrap();
            self.go_on.recv().unwrap();
        }
    }

    fn position(&self, _position: u64) {}
}

/// Says when it waits.
struct Waits {
    waits: mpsc::Sender<()>,
    seen: Seen,
}

impl Progress for Waits {
    fn begin(&self, phase: Phase, total: Option<u64>) {
        self.seen.begin(phase, total);
        if phase == Phase::Wait {
            self.waits.send(()).unwrap();
        }
    }

    fn position(&self, _position: u64) {}
}

#[test]
fn of_two_at_once_the_second_waits_and_finds_it_done() {
    let dir = temp_dir();
    let of = make_layout(&dir.path().join("layout"), "of", &[&[("a", b"1")]]);
    let path = dir.path().join("store");
    let (begun, has_begun) = mpsc::channel();
    let (let_go, go_on) = mpsc::channel();
    std::thread::scope(|scope| {
        let first = scope.spawn(|| {
            let store = Store::open(&path).unwrap();
            store.get(&of, &request(), &Held { begun, go_on }).unwrap()
        });
        has_begun.recv().unwrap();
        let (waits, is_waiting) = mpsc::channel();
        let second = scope.spawn(|| {
            let progress = Waits {
                waits,
                seen: Seen::default(),
            };
            let image = Store::open(&path)
                .unwrap()
                .get(&of, &request(), &progress)
                .unwrap();
            assert!(!progress.seen.has_converted());
            image
        });
        is_waiting.recv().unwrap();
        // Who does not want to wait need not.
        let impatient = Store::open(&path)
            .unwrap()
            .get(&of, &request(), &Stop)
            .unwrap_err();
        assert!(matches!(impatient, StoreError::Cancelled), "{impatient}");
        let_go.send(()).unwrap();
        assert_eq!(first.join().unwrap().digest, second.join().unwrap().digest);
    });
}

#[test]
fn what_is_damaged_or_half_made_is_made_again() {
    let dir = temp_dir();
    let of = make_layout(&dir.path().join("layout"), "of", &[&[("a", &[1; 90_000])]]);
    let store = Store::open(&dir.path().join("store")).unwrap();
    let get = || store.get(&of, &request(), &Quiet).unwrap();
    let image = get();
    let whole = files(store.path());
    let bootstrap = image.bootstrap.clone();
    drop(image);
    // Left by processes that were killed.
    let leftovers = [
        "work/nydusbox-convert-x/layer-0",
        "blobs/sha256/.partial-x",
        "refs/.partial-x",
    ];
    for leftover in leftovers {
        let path = store.path().join(leftover);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "half").unwrap();
    }
    checked(&get());
    assert_eq!(files(store.path()), whole);

    fs::write(&bootstrap, "half").unwrap();
    checked(&get());
    assert_eq!(files(store.path()), whole);

    // The bootstrap as a layer was unpacked, and is not missed.
    let manifest = fs::read(
        store
            .path()
            .join("blobs/sha256")
            .join(bootstrap.file_name().unwrap()),
    )
    .unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    let packed = manifest["layers"][1]["digest"]
        .as_str()
        .unwrap()
        .replace(':', "/");
    let needed = |path: &&PathBuf| !path.ends_with("version") && !path.ends_with(&packed);
    for path in whole.keys().filter(needed) {
        fs::remove_file(path).unwrap();
        checked(&get());
        assert_eq!(files(store.path()), whole, "without {}", path.display());
    }
    let record = whole.keys().find(|path| path.extension().is_some()).unwrap();
    fs::write(record, "{").unwrap();
    checked(&get());
}

/// Nobody uses anything.
fn nothing() -> std::io::Result<Vec<ImageUse>> {
    Ok(Vec::new())
}

#[test]
fn removing_an_image_leaves_what_another_one_needs() {
    let dir = temp_dir();
    let layout = dir.path().join("layout");
    let base: Files<'_> = &[("base", &[7; 300_000])];
    let one = make_layout(&layout, "one", &[base, &[("one", b"1")]]);
    let two = make_layout(&layout, "two", &[base, &[("two", b"2")]]);
    let store = Store::open(&dir.path().join("store")).unwrap();
    let first = store.get(&one, &request(), &Quiet).unwrap();
    let only_first = files(store.path());
    let second = store.get(&two, &request(), &Quiet).unwrap();

    // Held here; mounted there.
    let refused = store
        .remove(std::slice::from_ref(&two), &nothing, &Quiet)
        .unwrap_err();
    assert!(
        matches!(&refused, StoreError::InUse { reference, .. } if *reference == two.to_string()),
        "{refused}"
    );
    let bootstrap = second.bootstrap.clone();
    drop(second);
    let mounted = || {
        Ok(vec![ImageUse {
            bootstrap: bootstrap.clone(),
            by: "sandbox s1".to_owned(),
        }])
    };
    let refused = store
        .remove(std::slice::from_ref(&two), &mounted, &Quiet)
        .unwrap_err();
    assert!(
        matches!(&refused, StoreError::InUse { by, .. } if by == "sandbox s1"),
        "{refused}"
    );
    let unknown = store
        .remove(
            std::slice::from_ref(&two),
            &|| Err(std::io::ErrorKind::Other.into()),
            &Quiet,
        )
        .unwrap_err();
    assert!(matches!(unknown, StoreError::UseUnknown { .. }), "{unknown}");
    let all = files(store.path());
    // All or none.
    let three = reference(&format!("oci:{}:three", layout.display()));
    let absent = store.remove(&[two.clone(), three], &nothing, &Quiet).unwrap_err();
    assert!(matches!(absent, StoreError::NoSuchImage { .. }), "{absent}");
    assert_eq!(files(store.path()), all);

    let report = store
        .remove(std::slice::from_ref(&two), &nothing, &Quiet)
        .unwrap();
    assert_eq!(report.references, [two.to_string()]);
    assert_eq!(files(store.path()), only_first);
    let freed: u64 = all.values().sum::<u64>() - only_first.values().sum::<u64>();
    let record = all
        .iter()
        .find(|(path, _)| !only_first.contains_key(*path) && path.extension().is_some());
    assert_eq!(report.bytes, freed - record.unwrap().1);
    assert_eq!(checked(&first), 2);
    // By another name it may be used on.
    let alias = make_layout(&layout, "alias", &[base, &[("one", b"1")]]);
    drop(store.get(&alias, &request(), &Quiet).unwrap());
    store.remove(&[one], &nothing, &Quiet).unwrap();
    assert_eq!(checked(&first), 2);
}

#[test]
fn what_is_in_use_under_no_name_any_more_stays_until_it_is_not() {
    let dir = temp_dir();
    let layout = dir.path().join("layout");
    let of = make_layout(&layout, "of", &[&[("a", &[1; 90_000])]]);
    let store = Store::open(&dir.path().join("store")).unwrap();
    let old = store.get(&of, &request(), &Quiet).unwrap();
    make_layout(&layout, "of", &[&[("b", &[2; 90_000])]]);
    let new = store.get(&of, &request(), &Quiet).unwrap();
    assert_eq!(store.gc(GcConfig::default(), &nothing, &Quiet).unwrap().files, 0);
    assert_eq!((checked(&old), checked(&new)), (1, 1));
    drop(old);
    let dry = GcConfig {
        dry_run: true,
        ..GcConfig::default()
    };
    let before = files(store.path());
    let would = store.gc(dry, &nothing, &Quiet).unwrap();
    assert_eq!(files(store.path()), before);
    let done = store.gc(GcConfig::default(), &nothing, &Quiet).unwrap();
    // Data, manifest, configuration, the bootstrap packed and unpacked.
    assert_eq!((done.files, done.bytes, done.dry_run), (5, would.bytes, false));
    assert_eq!(checked(&new), 1);
    let fresh = Store::open(&dir.path().join("fresh")).unwrap();
    drop(fresh.get(&of, &request(), &Quiet).unwrap());
    assert_eq!(files(store.path()).len(), files(fresh.path()).len());
}

#[test]
fn images_that_nobody_used_for_long_go_if_asked_for() {
    let dir = temp_dir();
    let layout = dir.path().join("layout");
    let old = make_layout(&layout, "old", &[&[("a", &[1; 90_000])]]);
    let new = make_layout(&layout, "new", &[&[("b", &[2; 90_000])]]);
    let store = Store::open(&dir.path().join("store")).unwrap();
    for of in [&old, &new] {
        drop(store.get(of, &request(), &Quiet).unwrap());
    }
    for path in files(&store.path().join("refs")).keys() {
        let file = fs::File::open(path).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(1000))
            .unwrap();
    }
    drop(store.get(&new, &request(), &Quiet).unwrap());
    let config = GcConfig {
        unused_for: Some(Duration::from_secs(900)),
        dry_run: false,
    };
    let report = store.gc(config, &nothing, &Quiet).unwrap();
    assert_eq!(report.references, [old.to_string()]);
    assert_eq!(store.list().unwrap().len(), 1);
    assert_eq!(names(&store.path().join("bootstraps")).len(), 1);
}

#[test]
fn a_store_of_another_version_is_left_alone() {
    let dir = temp_dir();
    fs::write(dir.path().join("version"), "2\n").unwrap();
    let refused = Store::open(dir.path()).unwrap_err();
    assert!(
        matches!(&refused, StoreError::Version { version, .. } if version == "2"),
        "{refused}"
    );
    assert_eq!(names(dir.path()), ["version"]);
}
