//! OCI images of a few files, made without any other program. The command's tests include this file, too.

use std::path::Path;

use nydusbox_image::source::{Descriptor, ImageRef, ImageSink, MediaType, OciLayoutSink, sha256_of};
use serde_json::json;

/// A layer: names and what is in the files.
pub(crate) type Files<'a> = &'a [(&'a str, &'a [u8])];

/// Writes an image of such layers to `layout`.
pub(crate) fn make_layout(layout: &Path, tag: &str, layers: &[Files<'_>]) -> ImageRef {
    let layers: Vec<_> = layers.iter().map(|files| archive(files)).collect();
    let layers: Vec<_> = layers
        .iter()
        .map(|layer| (MediaType::ImageLayer, layer.as_slice()))
        .collect();
    write_layout(layout, tag, &layers)
}

/// A tar archive of such files.
pub(crate) fn archive(files: Files<'_>) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, name, *content).unwrap();
    }
    tar.into_inner().unwrap()
}

/// Writes an image to `layout` whose layers are these, whatever they are.
pub(crate) fn write_layout(layout: &Path, tag: &str, layers: &[(MediaType, &[u8])]) -> ImageRef {
    let sink = OciLayoutSink::open(layout, Some(tag)).unwrap();
    let put = |media_type: MediaType, bytes: &[u8]| {
        let descriptor = Descriptor::new(media_type, bytes.len() as u64, sha256_of(bytes));
        sink.put(&descriptor, &bytes).unwrap();
        descriptor
    };
    let layers: Vec<_> = layers
        .iter()
        .map(|(media_type, layer)| put(media_type.clone(), layer))
        .collect();
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {"Cmd": ["/bin/true"]},
        "rootfs": {"type": "layers", "diff_ids": layers.iter().map(Descriptor::digest).collect::<Vec<_>>()},
    });
    let config = put(MediaType::ImageConfig, config.to_string().as_bytes());
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": layers}).to_string();
    sink.publish(manifest.as_bytes(), &MediaType::ImageManifest)
        .unwrap();
    format!("oci:{}:{tag}", layout.display()).parse().unwrap()
}
