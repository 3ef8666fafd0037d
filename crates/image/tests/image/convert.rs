//! Images that umoci makes are converted, and unpack to the files that umoci unpacks.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nydusbox_image::source::{AccessOptions, ImageRef, Platform, open_sink, open_source};
use nydusbox_image::{
    ConvertConfig, ConvertError, ConvertSummary, FsVersion, Phase, Progress, Quiet, convert,
};
use serde_json::Value;

use crate::nydusd::Served;
use crate::{names, peers, temp_dir, tree, walk};

/// Whether the program is there; the reason is told if not, unless it has to be.
pub(crate) fn is_there(program: &str) -> bool {
    let there = Command::new(program).arg("--version").output().is_ok();
    assert!(
        there || std::env::var_os("NYDUSBOX_REQUIRE_PEERS").is_none_or(|value| value != "1"),
        "{program} is not there; `cargo xtask test` installs it"
    );
    if !there {
        eprintln!("skipped: {program} is not there; `cargo xtask test` installs it");
    }
    there
}

pub(crate) fn umoci() -> bool {
    is_there("umoci")
}

/// Three layers: files of all kinds; some of them gone, replaced and changed; a hard link's group changed.
pub(crate) fn make_image(dir: &Path) -> PathBuf {
    let (layout, bundle) = (dir.join("layout"), dir.join("bundle"));
    let run = |args: &[&str]| peers::run(Command::new("umoci").args(args).current_dir(dir));
    run(&["init", "--layout", "layout"]);
    run(&["new", "--image", "layout:of"]);
    run(&["unpack", "--image", "layout:of", "bundle"]);
    let root = bundle.join("rootfs");
    tree::make(&root);
    // umoci has no names that look like whiteouts.
    fs::remove_file(root.join("etc/.wh.not-a-whiteout")).unwrap();
    let repack = || {
        run(&["repack", "--refresh-bundle", "--image", "layout:of", "bundle"]);
    };
    repack();
    fs::remove_dir_all(root.join("many")).unwrap();
    fs::remove_file(root.join("etc/linked")).unwrap();
    fs::remove_file(root.join("bin/two-chunks")).unwrap();
    fs::create_dir(root.join("bin/two-chunks")).unwrap();
    fs::write(root.join("bin/two-chunks/inside"), b"now a directory").unwrap();
    fs::remove_dir_all(root.join("etc/deep")).unwrap();
    fs::write(root.join("etc/deep"), b"now a file").unwrap();
    repack();
    fs::create_dir(root.join("many")).unwrap();
    fs::write(root.join("many/new"), b"a directory of this name was there").unwrap();
    fs::hard_link(root.join("etc/text"), root.join("many/text")).unwrap();
    repack();
    fs::remove_dir_all(bundle).unwrap();
    run(&["unpack", "--image", "layout:of", "bundle"]);
    layout
}

pub(crate) fn reference(text: &str) -> ImageRef {
    text.parse().unwrap()
}

pub(crate) fn convert_to(
    from: &ImageRef,
    to: &ImageRef,
    config: &ConvertConfig,
    progress: &dyn Progress,
) -> Result<ConvertSummary, ConvertError> {
    let access = AccessOptions::default();
    let source = open_source(from, &access).unwrap();
    let sink = open_sink(to, &access).unwrap();
    let previous = open_source(to, &access).ok();
    convert(&*source, &*sink, previous.as_deref(), config, progress)
}

/// The image's manifest, and the bootstrap out of its last layer at `to`.
fn unpack_bootstrap(layout: &Path, summary: &ConvertSummary, to: &Path) -> Value {
    let blob = |digest: &str| layout.join("blobs").join(digest.replace(':', "/"));
    let manifest: Value = serde_json::from_slice(&fs::read(blob(&summary.digest)).unwrap()).unwrap();
    let last = manifest["layers"].as_array().unwrap().last().unwrap();
    let layer = fs::File::open(blob(last["digest"].as_str().unwrap())).unwrap();
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(layer));
    archive.unpack(to).unwrap();
    manifest
}

#[test]
fn files_are_those_umoci_unpacks_and_nydusd_serves_them() {
    if !umoci() || !tree::is_root() {
        return;
    }
    let dir = temp_dir();
    let layout = make_image(dir.path());
    let expected = walk::tree(&dir.path().join("bundle/rootfs"));
    let from = reference(&format!("oci:{}:of", layout.display()));
    for version in [FsVersion::V5, FsVersion::V6] {
        let out = dir.path().join(format!("out{version}"));
        let to = reference(&format!("oci:{}:nydus", out.display()));
        let config = ConvertConfig::new(Platform::default()).fs_version(version);
        let summary = convert_to(&from, &to, &config, &Quiet).unwrap();
        assert_eq!(summary.layers.len(), 3);
        let unpacked = dir.path().join(format!("boot{version}"));
        unpack_bootstrap(&out, &summary, &unpacked);
        let bootstrap = unpacked.join("image/image.boot");
        walk::assert_same(&expected, &walk::bootstrap(&bootstrap, &out.join("blobs/sha256")));
        if let Some(nydusd) = peers::program("nydusd").filter(|_| Path::new("/dev/fuse").exists()) {
            let dir = dir.path().join(format!("nydusd{version}"));
            fs::create_dir(&dir).unwrap();
            let served = Served::start(&nydusd, &bootstrap, &out.join("blobs/sha256"), &dir);
            walk::assert_same(&expected, &walk::tree(served.root()));
        }
        if let Some(nydus_image) = peers::nydus_image() {
            peers::run(
                Command::new(nydus_image)
                    .arg("check")
                    .arg("--bootstrap")
                    .arg(&bootstrap),
            );
        }
    }
}

#[test]
fn the_documents_are_those_the_snapshotter_expects() {
    if !umoci() || !tree::is_root() {
        return;
    }
    let dir = temp_dir();
    let layout = make_image(dir.path());
    let out = dir.path().join("out");
    let to = reference(&format!("oci:{}:nydus", out.display()));
    let from = reference(&format!("oci:{}:of", layout.display()));
    let summary = convert_to(&from, &to, &ConvertConfig::new(Platform::default()), &Quiet).unwrap();
    let manifest = unpack_bootstrap(&out, &summary, &dir.path().join("boot"));
    let layers = manifest["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 4);
    for layer in &layers[..3] {
        assert_eq!(
            layer["mediaType"],
            "application/vnd.oci.image.layer.nydus.blob.v1"
        );
        assert_eq!(layer["annotations"]["containerd.io/snapshot/nydus-blob"], "true");
    }
    let last = &layers[3];
    assert_eq!(last["mediaType"], "application/vnd.oci.image.layer.v1.tar+gzip");
    assert_eq!(
        last["annotations"]["containerd.io/snapshot/nydus-bootstrap"],
        "true"
    );
    assert_eq!(
        last["annotations"]["containerd.io/snapshot/nydus-fs-version"],
        "6"
    );
    let config = out
        .join("blobs")
        .join(manifest["config"]["digest"].as_str().unwrap().replace(':', "/"));
    let config: Value = serde_json::from_slice(&fs::read(config).unwrap()).unwrap();
    let diff_ids = config["rootfs"]["diff_ids"].as_array().unwrap();
    assert_eq!(diff_ids.len(), 4);
    assert_eq!(diff_ids[0], layers[0]["digest"]);
    assert_ne!(diff_ids[3], last["digest"]);
    // The names of Go's client, which checks what it copies.
    if is_there("skopeo") {
        let copy = dir.path().join("copy");
        peers::run(Command::new("skopeo").args([
            "copy",
            "--insecure-policy",
            &to.to_string(),
            &format!("dir:{}", copy.display()),
        ]));
    }
    let again = convert_to(
        &to,
        &reference(&format!("oci:{}:x", out.display())),
        &ConvertConfig::new(Platform::default()),
        &Quiet,
    );
    assert!(matches!(again, Err(ConvertError::AlreadyNydus)));
}

#[test]
fn layers_converted_before_are_used_again_and_give_the_same_image() {
    if !umoci() || !tree::is_root() {
        return;
    }
    let dir = temp_dir();
    let layout = make_image(dir.path());
    let from = reference(&format!("oci:{}:of", layout.display()));
    for version in [FsVersion::V5, FsVersion::V6] {
        let out = dir.path().join(format!("out{version}"));
        let to = reference(&format!("oci:{}:nydus", out.display()));
        let config = ConvertConfig::new(Platform::default()).fs_version(version);
        let first = convert_to(&from, &to, &config, &Quiet).unwrap();
        assert!(first.layers.iter().all(|layer| !layer.reused));
        let second = convert_to(&from, &to, &config, &Quiet).unwrap();
        assert!(second.layers.iter().all(|layer| layer.reused));
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        unpack_bootstrap(&out, &first, &one);
        unpack_bootstrap(&out, &second, &two);
        let walked = |at: &Path| walk::bootstrap(&at.join("image/image.boot"), &out.join("blobs/sha256"));
        walk::assert_same(&walked(&one), &walked(&two));
        // Another way of compressing is another blob.
        let other = config.compressor(nydusbox_image::Compressor::Lz4Block);
        let third = convert_to(&from, &to, &other, &Quiet).unwrap();
        assert!(!third.layers[0].reused);
        fs::remove_dir_all(one).unwrap();
        fs::remove_dir_all(two).unwrap();
    }
}

#[test]
fn chunks_of_the_dictionary_are_not_stored_again() {
    if !umoci() || !tree::is_root() {
        return;
    }
    let dir = temp_dir();
    let layout = make_image(dir.path());
    let out = dir.path().join("out");
    let from = reference(&format!("oci:{}:of", layout.display()));
    let to = |tag: &str| reference(&format!("oci:{}:{tag}", out.display()));
    let config = ConvertConfig::new(Platform::default());
    let plain = convert_to(&from, &to("base"), &config, &Quiet).unwrap();
    let boot = dir.path().join("boot");
    unpack_bootstrap(&out, &plain, &boot);
    let dictionary = boot.join("image/image.boot");
    let config = config.chunk_dict(Some(dictionary.clone()));
    let lean = convert_to(&from, &to("lean"), &config, &Quiet).unwrap();
    let bytes = |summary: &ConvertSummary| summary.layers.iter().map(|layer| layer.blob_bytes).sum::<u64>();
    assert!(
        bytes(&lean) < bytes(&plain) / 2,
        "{} {}",
        bytes(&lean),
        bytes(&plain)
    );
    let lean_boot = dir.path().join("lean");
    unpack_bootstrap(&out, &lean, &lean_boot);
    walk::assert_same(
        &walk::bootstrap(&dictionary, &out.join("blobs/sha256")),
        &walk::bootstrap(&lean_boot.join("image/image.boot"), &out.join("blobs/sha256")),
    );
    // Where the dictionary's blobs aren't, the image would be incomplete.
    let elsewhere = reference(&format!("oci:{}", dir.path().join("elsewhere").display()));
    let refused = convert_to(&from, &elsewhere, &config, &Quiet).unwrap_err();
    assert!(
        matches!(refused, ConvertError::DictionaryBlob { .. }),
        "{refused}"
    );
}

/// Stops as soon as it is asked.
pub(crate) struct Stop;

impl Progress for Stop {
    fn begin(&self, _phase: Phase, _total: Option<u64>) {}

    fn position(&self, _position: u64) {}

    fn is_cancelled(&self) -> bool {
        true
    }
}

#[test]
fn a_cancelled_or_failed_conversion_names_nothing() {
    if !umoci() || !tree::is_root() {
        return;
    }
    let dir = temp_dir();
    let layout = make_image(dir.path());
    let from = reference(&format!("oci:{}:of", layout.display()));
    let out = dir.path().join("out");
    let to = reference(&format!("oci:{}:nydus", out.display()));
    let work = dir.path().join("work");
    fs::create_dir(&work).unwrap();
    let config = ConvertConfig::new(Platform::default()).work_dir(Some(work.clone()));
    let stopped = convert_to(&from, &to, &config, &Stop).unwrap_err();
    assert!(matches!(stopped, ConvertError::Cancelled), "{stopped}");
    let index = || -> Value { serde_json::from_slice(&fs::read(out.join("index.json")).unwrap()).unwrap() };
    assert_eq!(index()["manifests"].as_array().unwrap().len(), 0);
    assert!(names(&work).is_empty());

    // A layer that isn't what its digest says.
    let manifest = open_source(&from, &AccessOptions::default())
        .unwrap()
        .image(&Platform::default())
        .unwrap();
    let layer = manifest.layers()[0].digest().to_string();
    let blob = layout.join("blobs").join(layer.replace(':', "/"));
    let mut bytes = fs::read(&blob).unwrap();
    let end = bytes.len() - 20;
    bytes[end] ^= 1;
    fs::write(&blob, bytes).unwrap();
    let damaged = convert_to(&from, &to, &config, &Quiet).unwrap_err();
    assert!(
        matches!(&damaged, ConvertError::Layer { digest, .. } if *digest == layer),
        "{damaged:?}"
    );
    assert_eq!(index()["manifests"].as_array().unwrap().len(), 0);
    assert!(names(&work).is_empty());
}

#[test]
fn two_conversions_at_once_are_both_right() {
    if !umoci() || !tree::is_root() {
        return;
    }
    let dir = temp_dir();
    let layout = make_image(dir.path());
    let from = reference(&format!("oci:{}:of", layout.display()));
    let out = dir.path().join("out");
    let to = reference(&format!("oci:{}:nydus", out.display()));
    let config = ConvertConfig::new(Platform::default());
    std::thread::scope(|scope| {
        let both = [(); 2].map(|()| scope.spawn(|| convert_to(&from, &to, &config, &Quiet).unwrap()));
        for one in both {
            one.join().unwrap();
        }
    });
    let index: Value = serde_json::from_slice(&fs::read(out.join("index.json")).unwrap()).unwrap();
    assert_eq!(index["manifests"].as_array().unwrap().len(), 1);
}
