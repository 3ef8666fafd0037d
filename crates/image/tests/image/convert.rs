//! Images that umoci makes are converted, and unpack to the files that umoci unpacks.

use std::fs;
use std::path::Path;
use std::process::Command;

use nydusbox_image::source::{AccessOptions, MediaType, Platform, open_source, sha256_of};
use nydusbox_image::{
    Compressor, ConvertError, ConvertSummary, FsVersion, Phase, Progress, Quiet, RafsFormat,
};
use serde_json::Value;
use tar::EntryType::{Directory, Regular, Symlink};

use crate::nydusd::Served;
use crate::oci::{self, Original, convert_to, layout_ref};
use crate::{layout, names, peers, temp_dir, walk};

#[test]
fn files_are_those_umoci_unpacks_and_nydusd_serves_them() {
    let Some(original) = Original::make() else { return };
    let expected = original.files();
    for version in [FsVersion::V5, FsVersion::V6] {
        let out = original.path(&format!("out{version}"));
        let config = oci::config().format(RafsFormat::default().fs_version(version));
        let summary = original.convert(&layout_ref(&out, "nydus"), &config).unwrap();
        assert_eq!(summary.layers.len(), 3);
        let (_, bootstrap) = oci::unpack(&out, &summary, &original.path(&format!("boot{version}")));
        walk::assert_same(&expected, &walk::bootstrap(&bootstrap, &oci::blobs(&out)));
        if let Some(nydusd) = peers::program("nydusd").filter(|_| Path::new("/dev/fuse").exists()) {
            let dir = original.path(&format!("nydusd{version}"));
            fs::create_dir(&dir).unwrap();
            let served = Served::start(&nydusd, &bootstrap, &oci::blobs(&out), &dir);
            walk::assert_same(&expected, &walk::tree(served.root()));
        }
        peers::check(&bootstrap);
    }
}

/// The layer's own bootstrap does not tell that the link came first, which is to what is hidden or replaced then.
#[test]
fn an_image_that_is_ambiguous_layers_is_converted_again_as_before() {
    let dir = temp_dir();
    for then in [".wh.file", "file"] {
        let mut upper = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Link);
        header.set_size(0);
        upper.append_link(&mut header, "link", "file").unwrap();
        header.set_entry_type(Regular);
        upper.append_data(&mut header, then, &b""[..]).unwrap();
        let (lower, upper) = (
            layout::archive(&[("file", b"content")]),
            upper.into_inner().unwrap(),
        );
        let layers = [(MediaType::ImageLayer, &*lower), (MediaType::ImageLayer, &*upper)];
        let of = layout::write_layout(&dir.path().join(format!("of{then}")), "of", &layers);
        let to = layout_ref(&dir.path().join(format!("out{then}")), "nydus");
        let mut digests = Vec::new();
        for reused in [[false, false], [true, false]] {
            let summary = convert_to(&of, &to, &oci::config(), &Quiet).unwrap();
            let seen: Vec<_> = summary.layers.iter().map(|layer| layer.reused).collect();
            assert_eq!(seen, reused);
            digests.push(summary.digest);
        }
        assert_eq!(digests[0], digests[1]);
    }
}

/// An archive of empty files, directories and links.
fn archive(entries: &[(tar::EntryType, &str, &str)]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (kind, name, target) in entries {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(*kind);
        header.set_mode(0o755);
        header.set_size(0);
        if kind.is_symlink() {
            archive.append_link(&mut header, name, target).unwrap();
        } else {
            archive.append_data(&mut header, name, &b""[..]).unwrap();
        }
    }
    archive.into_inner().unwrap()
}

/// A layer's own bootstrap has neither what was below a name that the layer then makes another, nor which came last of what
/// has two names by a lower layer's link.
#[test]
fn a_layer_whose_order_counts_for_lower_layers_links_is_converted_again() {
    let dir = temp_dir();
    let lower = archive(&[
        (Directory, "real", ""),
        (Regular, "real/kept", ""),
        (Symlink, "link", "real"),
    ]);
    let uppers: [&[_]; 5] = [
        &[(Regular, "link/new", ""), (Symlink, "link", "real")],
        &[(Regular, "link/new", ""), (Directory, "link", "")],
        &[(Regular, "link/deep/new", ""), (Regular, ".wh.link", "")],
        &[(Regular, "real/file", ""), (Directory, "link/file", "")],
        &[(Symlink, "own", "link/../x"), (Regular, "own/new", "")],
    ];
    for (number, upper) in uppers.into_iter().enumerate() {
        let upper = archive(upper);
        let layers = [(MediaType::ImageLayer, &*lower), (MediaType::ImageLayer, &*upper)];
        let of = layout::write_layout(&dir.path().join(format!("of{number}")), "of", &layers);
        let to = layout_ref(&dir.path().join(format!("out{number}")), "nydus");
        let mut digests = Vec::new();
        for reused in [[false, false], [true, false]] {
            let summary = convert_to(&of, &to, &oci::config(), &Quiet).unwrap();
            let seen: Vec<_> = summary.layers.iter().map(|layer| layer.reused).collect();
            assert_eq!(seen, reused, "{number}");
            digests.push(summary.digest);
        }
        assert_eq!(digests[0], digests[1], "{number}");
    }
}

/// A directory that hides what lower layers have in it may have been a link to another one there, and what is in it may
/// be below a name of which lower layers' link is hidden.
#[test]
fn layers_used_again_hide_what_they_hid_in_the_directories_that_they_made() {
    let dir = temp_dir();
    let lower = archive(&[
        (Directory, "real", ""),
        (Regular, "real/kept", ""),
        (Symlink, "link", "real"),
        (Symlink, "+link", "real"),
    ]);
    let uppers: [&[_]; 3] = [
        &[(Directory, "link", ""), (Regular, "link/.wh..wh..opq", "")],
        &[(Directory, "link", ""), (Regular, "link/.wh.kept", "")],
        &[(Regular, ".wh.+link", ""), (Regular, "+link/kept", "")],
    ];
    for (number, upper) in uppers.into_iter().enumerate() {
        let upper = archive(upper);
        let layers = [(MediaType::ImageLayer, &*lower), (MediaType::ImageLayer, &*upper)];
        let of = layout::write_layout(&dir.path().join(format!("of{number}")), "of", &layers);
        let out = dir.path().join(format!("out{number}"));
        let to = layout_ref(&out, "nydus");
        let mut seen = Vec::new();
        for reused in [false, true] {
            let summary = convert_to(&of, &to, &oci::config(), &Quiet).unwrap();
            assert!(summary.layers.iter().all(|layer| layer.reused == reused));
            let (_, bootstrap) = oci::unpack(&out, &summary, &dir.path().join(format!("{number}{reused}")));
            seen.push(walk::bootstrap(&bootstrap, &oci::blobs(&out)));
        }
        walk::assert_same(&seen[0], &seen[1]);
        assert!(
            seen[1].contains_key(Path::new("/real/kept")),
            "{:?}",
            seen[1].keys()
        );
    }
}

#[test]
fn a_layer_that_fails_is_named_also_if_those_before_it_are_used_again() {
    let dir = temp_dir();
    let (good, bad) = (layout::archive(&[("file", b"content")]), vec![1; 2048]);
    let layers = [(MediaType::ImageLayer, &*good), (MediaType::ImageLayer, &*bad)];
    let image = |name: &str, layers: &[(MediaType, &[u8])]| {
        layout::write_layout(&dir.path().join(name), "of", layers)
    };
    let to = layout_ref(&dir.path().join("out"), "nydus");
    convert_to(&image("one", &layers[..1]), &to, &oci::config(), &Quiet).unwrap();
    let failed = convert_to(&image("both", &layers), &to, &oci::config(), &Quiet).unwrap_err();
    let ConvertError::Layer { digest, .. } = &failed else {
        panic!("{failed:?}");
    };
    assert_eq!(*digest, sha256_of(&bad).to_string());
}

#[test]
fn the_documents_are_those_the_snapshotter_expects() {
    let Some(original) = Original::make() else { return };
    let out = original.path("out");
    let to = layout_ref(&out, "nydus");
    let summary = original.convert(&to, &oci::config()).unwrap();
    let (manifest, _) = oci::unpack(&out, &summary, &original.path("boot"));
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
    let config = oci::read_json(&oci::blob(&out, &manifest["config"]["digest"]));
    let diff_ids = config["rootfs"]["diff_ids"].as_array().unwrap();
    assert_eq!(diff_ids.len(), 4);
    assert_eq!(diff_ids[0], layers[0]["digest"]);
    assert_ne!(diff_ids[3], last["digest"]);
    // The names of Go's client, which checks what it copies.
    if oci::is_there("skopeo") {
        let copy = original.path("copy");
        peers::run(Command::new("skopeo").args([
            "copy",
            "--insecure-policy",
            &to.to_string(),
            &format!("dir:{}", copy.display()),
        ]));
    }
    let again = convert_to(&to, &layout_ref(&out, "x"), &oci::config(), &Quiet);
    assert!(matches!(again, Err(ConvertError::AlreadyNydus)));
}

#[test]
fn layers_converted_before_are_used_again_and_give_the_same_image() {
    let Some(original) = Original::make() else { return };
    for version in [FsVersion::V5, FsVersion::V6] {
        let out = original.path(&format!("out{version}"));
        let to = layout_ref(&out, "nydus");
        let format = RafsFormat::default().fs_version(version);
        let config = oci::config().format(format);
        let first = original.convert(&to, &config).unwrap();
        assert!(first.layers.iter().all(|layer| !layer.reused));
        let second = original.convert(&to, &config).unwrap();
        assert!(second.layers.iter().all(|layer| layer.reused));
        let (_, one) = oci::unpack(&out, &first, &original.path(&format!("one{version}")));
        let (_, two) = oci::unpack(&out, &second, &original.path(&format!("two{version}")));
        let walked = |bootstrap: &Path| walk::bootstrap(bootstrap, &oci::blobs(&out));
        walk::assert_same(&walked(&one), &walked(&two));
        // Another way of compressing is another blob.
        let third = original
            .convert(&to, &config.format(format.compressor(Compressor::Lz4Block)))
            .unwrap();
        assert!(!third.layers[0].reused);
    }
}

#[test]
fn chunks_of_the_dictionary_are_not_stored_again() {
    let Some(original) = Original::make() else { return };
    let out = original.path("out");
    let plain = original
        .convert(&layout_ref(&out, "base"), &oci::config())
        .unwrap();
    let (_, dictionary) = oci::unpack(&out, &plain, &original.path("boot"));
    let config = oci::config().chunk_dict(Some(dictionary.clone()));
    let lean = original.convert(&layout_ref(&out, "lean"), &config).unwrap();
    let bytes = |summary: &ConvertSummary| summary.layers.iter().map(|layer| layer.blob_bytes).sum::<u64>();
    assert!(
        bytes(&lean) < bytes(&plain) / 2,
        "{} {}",
        bytes(&lean),
        bytes(&plain)
    );
    let (_, lean_boot) = oci::unpack(&out, &lean, &original.path("lean"));
    walk::assert_same(
        &walk::bootstrap(&dictionary, &oci::blobs(&out)),
        &walk::bootstrap(&lean_boot, &oci::blobs(&out)),
    );
    // Where the dictionary's blobs aren't, the image would be incomplete.
    let elsewhere = layout_ref(&original.path("elsewhere"), "x");
    let refused = original.convert(&elsewhere, &config).unwrap_err();
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
    let Some(original) = Original::make() else { return };
    let out = original.path("out");
    let to = layout_ref(&out, "nydus");
    let work = original.path("work");
    fs::create_dir(&work).unwrap();
    let config = oci::config().work_dir(Some(work.clone()));
    let stopped = convert_to(&original.reference(), &to, &config, &Stop).unwrap_err();
    assert!(matches!(stopped, ConvertError::Cancelled), "{stopped}");
    let named = || {
        oci::read_json(&out.join("index.json"))["manifests"]
            .as_array()
            .unwrap()
            .len()
    };
    assert_eq!(named(), 0);
    assert!(names(&work).is_empty());

    // A layer that isn't what its digest says.
    let image = open_source(&original.reference(), &AccessOptions::default())
        .unwrap()
        .image(&Platform::default())
        .unwrap();
    let layer = image.layers()[0].digest().to_string();
    let blob = oci::blob(&original.layout(), &Value::from(layer.as_str()));
    let mut bytes = fs::read(&blob).unwrap();
    let end = bytes.len() - 20;
    bytes[end] ^= 1;
    fs::write(&blob, bytes).unwrap();
    let damaged = original.convert(&to, &config).unwrap_err();
    assert!(
        matches!(&damaged, ConvertError::Layer { digest, .. } if *digest == layer),
        "{damaged:?}"
    );
    assert_eq!(named(), 0);
    assert!(names(&work).is_empty());
}

#[test]
fn two_conversions_at_once_are_both_right() {
    let Some(original) = Original::make() else { return };
    let out = original.path("out");
    let to = layout_ref(&out, "nydus");
    std::thread::scope(|scope| {
        let both = [(); 2].map(|()| scope.spawn(|| original.convert(&to, &oci::config()).unwrap()));
        for one in both {
            one.join().unwrap();
        }
    });
    let index = oci::read_json(&out.join("index.json"));
    assert_eq!(index["manifests"].as_array().unwrap().len(), 1);
}
