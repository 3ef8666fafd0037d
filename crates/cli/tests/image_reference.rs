//! An image by reference in a genuine registry: the data is there once.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
#[expect(dead_code, reason = "only layers of its own are made here")]
#[path = "../../image/tests/image/layout.rs"]
mod layout;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::host_mount::{Mounted, can_mount};
use common::{Dir, nydusbox, told};
use nydusbox_image::source::MediaType;
use nydusbox_testkit::registry::RegistryOptions;
use nydusbox_testkit::skopeo::Skopeo;
use serde_json::Value;

fn ok(command: &mut Command) -> String {
    let (code, out, err) = told(&command.output().unwrap());
    assert_eq!(code, 0, "{command:?}: {out}{err}");
    out
}

/// A layer of a few files, as tar and gzip make it.
fn layer(dir: &Dir) -> Vec<u8> {
    let root = dir.mkdir("root");
    let noise: Vec<u8> = (0..1_500_000_u32)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    fs::write(root.join("large"), &noise).unwrap();
    for number in 0..100 {
        fs::write(root.join(format!("{number}")), &noise[..1000 + number]).unwrap();
    }
    let archive = dir.join("layer.tar.gz");
    ok(Command::new("tar")
        .arg("-czf")
        .arg(&archive)
        .arg("-C")
        .arg(&root)
        .arg("."));
    fs::read(archive).unwrap()
}

#[test]
fn an_image_by_reference_needs_nothing_of_the_registry_but_an_index_and_the_original_layers() {
    let Some((registry, skopeo)) = Skopeo::beside_registry(RegistryOptions::default()) else {
        return;
    };
    let dir = Dir::new();
    let layer = layer(&dir);
    let layers = [(MediaType::ImageLayerGzip, layer.as_slice())];
    let local = layout::write_layout(&dir.join("layout"), "of", &layers).to_string();
    let there = |tag: &str| format!("docker://{}/a/b:{tag}", registry.host());
    skopeo.copy(&local, &there("of"));

    let out = format!("oci:{}:nydus", dir.join("out").display());
    let image = |args: &[&str]| {
        let mut command = nydusbox();
        command.arg("image").args(args).arg("--json");
        serde_json::from_str::<Value>(&ok(&mut command)).unwrap()
    };
    let platform = ["--platform", "linux/amd64"];
    let made = image(&[
        "convert",
        platform[0],
        platform[1],
        "--mode",
        "ref",
        &there("of"),
        &out,
    ]);
    let made = &made["layers"][0];
    assert_eq!(made["is_index"], true);
    // What goes to the registry is the index; the layer is no layer of this image.
    skopeo.copy(&out, &there("nydus"));
    let index = registry.blob_file(made["blob_digest"].as_str().unwrap());
    assert!(fs::metadata(index).unwrap().len() < layer.len() as u64 / 4);
    let checked = image(&["check", &there("nydus")]);
    assert_eq!(checked["problems"], Value::Array(Vec::new()));
    assert!(checked["good_chunks"].as_u64() > Some(100));

    // Served from there as it is read.
    if can_mount() {
        let mounted = Mounted::start(&dir, &there("nydus"));
        for name in ["large", "0", "99"] {
            let content = |root: &Path| fs::read(root.join(name)).unwrap();
            assert!(content(&mounted.at) == content(&dir.join("root")), "{name}");
        }
    }

    fs::remove_file(registry.blob_file(made["source_digest"].as_str().unwrap())).unwrap();
    let (code, _, err) = told(
        &nydusbox()
            .args(["image", "check", &there("nydus")])
            .output()
            .unwrap(),
    );
    assert_eq!(code, 1, "{err}");
}
