//! Images in every form that skopeo writes are read, and it reads those that are written here.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::Command;

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use nydusbox_image::source::{
    AccessOptions, BlobMismatch, Descriptor, Digest, ImageSink, ImageSource, MediaType, OciLayoutSink,
    Platform, SinkError, open_sink, open_source, sha256_of,
};
use serde_json::{Value, json};

use crate::{names, peers, temp_dir};

/// skopeo, or `None` with the reason told, unless it has to be there.
fn skopeo() -> Option<Command> {
    if Command::new("skopeo").arg("--version").output().is_ok() {
        let mut command = Command::new("skopeo");
        command.arg("--insecure-policy");
        return Some(command);
    }
    assert!(
        std::env::var_os("NYDUSBOX_REQUIRE_PEERS").is_none_or(|value| value != "1"),
        "skopeo is not there; `cargo xtask test` installs it"
    );
    eprintln!("skipped: skopeo is not there; `cargo xtask test` installs it");
    None
}

/// A tar archive with one file.
fn archive(name: &str) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let content = name.repeat(5_000);
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    builder
        .append_data(&mut header, name, content.as_bytes())
        .unwrap();
    builder.into_inner().unwrap()
}

fn put(sink: &dyn ImageSink, media_type: MediaType, bytes: &[u8]) -> Value {
    let descriptor = Descriptor::new(media_type, bytes.len() as u64, sha256_of(bytes));
    sink.put(&descriptor, &bytes).unwrap();
    serde_json::to_value(&descriptor).unwrap()
}

/// Writes an image of these layers to `oci:PATH:TAG`, and returns its digest.
fn make_image(path: &Path, tag: &str, layers: &[Vec<u8>]) -> Digest {
    let reference = format!("oci:{}:{tag}", path.display()).parse().unwrap();
    let sink = open_sink(&reference, &AccessOptions::default()).unwrap();
    let mut descriptors = Vec::new();
    for layer in layers {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(layer).unwrap();
        descriptors.push(put(&*sink, MediaType::ImageLayerGzip, &encoder.finish().unwrap()));
    }
    let platform = Platform::default();
    let diff_ids: Vec<_> = layers.iter().map(|layer| sha256_of(layer).to_string()).collect();
    let config = json!({
        "architecture": platform.architecture, "os": platform.os,
        "config": {"Cmd": ["/bin/true"]}, "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = put(&*sink, MediaType::ImageConfig, config.to_string().as_bytes());
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MediaType::ImageManifest.to_string(),
        "config": config, "layers": descriptors,
    });
    sink.publish(manifest.to_string().as_bytes(), &MediaType::ImageManifest)
        .unwrap()
}

/// The layers' archives at `reference`.
fn read_layers(reference: &str) -> Vec<Vec<u8>> {
    let source = open_source(&reference.parse().unwrap(), &AccessOptions::default()).unwrap();
    let image = source.image(&Platform::default()).unwrap();
    assert_eq!(image.config.rootfs().diff_ids().len(), image.layers().len());
    assert_eq!(sha256_of(&image.manifest_bytes), image.digest);
    image
        .layers()
        .iter()
        .map(|layer| read_layer(&*source, layer))
        .collect()
}

fn read_layer(source: &dyn ImageSource, layer: &Descriptor) -> Vec<u8> {
    let mut bytes = Vec::new();
    source.blob(layer).unwrap().read_to_end(&mut bytes).unwrap();
    if !bytes.starts_with(&[0x1f, 0x8b]) {
        return bytes;
    }
    let mut archive = Vec::new();
    GzDecoder::new(&*bytes).read_to_end(&mut archive).unwrap();
    archive
}

#[test]
fn every_form_skopeo_writes_is_read_and_it_reads_ours() {
    let Some(mut inspect) = skopeo() else { return };
    let dir = temp_dir();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let layers = [archive("one"), archive("two"), archive("one")];
    let digest = make_image(&dir.path().join("layout"), "12", &layers);
    let from = format!("oci:{}:12", path("layout"));

    let output = inspect.args(["inspect", &from]).output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let seen: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(seen["Digest"], digest.to_string());
    assert_eq!(seen["Layers"].as_array().unwrap().len(), 3);

    for to in [
        format!("oci:{}:again", path("again")),
        format!("oci-archive:{}:12", path("oci.tar")),
        format!("docker-archive:{}:debian:12", path("docker.tar")),
        format!("dir:{}", path("dir")),
    ] {
        peers::run(skopeo().unwrap().args(["copy", "--quiet", &from, &to]));
        assert!(read_layers(&to) == layers, "{to}");
    }
    // As `docker save IMAGE | gzip` makes it.
    peers::run(Command::new("gzip").arg(path("docker.tar")));
    assert!(read_layers(&format!("docker-archive:{}", path("docker.tar.gz"))) == layers);
}

/// `docker save` packs layers by gzip or zstd where images are kept by containerd.
#[test]
fn layers_of_a_docker_archive_are_plain_or_packed() {
    let dir = temp_dir();
    let layers = [archive("one"), archive("two"), archive("three")];
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(&layers[1]).unwrap();
    let packed = [
        layers[0].clone(),
        gzip.finish().unwrap(),
        zstd::encode_all(&*layers[2], 1).unwrap(),
    ];
    let diff_ids: Vec<_> = layers.iter().map(|layer| sha256_of(layer).to_string()).collect();
    let config =
        json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    let names = ["0", "1", "2"];
    let manifest = json!([{"Config": "config", "RepoTags": ["a:1"], "Layers": names}]);
    let path = dir.path().join("docker.tar");
    let mut tar = tar::Builder::new(fs::File::create(&path).unwrap());
    let (config, manifest) = (config.to_string(), manifest.to_string());
    let documents = [
        ("config", config.as_bytes()),
        ("manifest.json", manifest.as_bytes()),
    ];
    for (name, content) in documents
        .into_iter()
        .chain(names.into_iter().zip(packed.iter().map(|l| &**l)))
    {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, name, content).unwrap();
    }
    tar.finish().unwrap();
    let reference = format!("docker-archive:{}", path.display()).parse().unwrap();
    let source = open_source(&reference, &AccessOptions::default()).unwrap();
    let image = source.image(&Platform::default()).unwrap();
    let types: Vec<_> = image.layers().iter().map(Descriptor::media_type).collect();
    assert_eq!(
        types,
        [
            &MediaType::ImageLayer,
            &MediaType::ImageLayerGzip,
            &MediaType::ImageLayerZstd
        ]
    );
    for (layer, packed) in image.layers().iter().zip(packed) {
        let mut content = Vec::new();
        source.blob(layer).unwrap().read_to_end(&mut content).unwrap();
        assert!(content == packed);
    }
}

#[test]
fn of_several_images_one_has_to_be_named() {
    let dir = temp_dir();
    let layout = dir.path().join("layout");
    make_image(&layout, "a", &[archive("a")]);
    make_image(&layout, "b", &[archive("b")]);
    // The same name again is another image of that name.
    make_image(&layout, "b", &[archive("c")]);
    let error = |tag: &str| {
        let reference = format!("oci:{}{tag}", layout.display()).parse().unwrap();
        let source = open_source(&reference, &AccessOptions::default()).unwrap();
        source.image(&Platform::default()).unwrap_err().to_string()
    };
    assert!(error("").ends_with("has several images; name one of a, b"));
    assert!(error(":c").ends_with("has no image \"c\"; it has a, b"));
    assert!(read_layers(&format!("oci:{}:b", layout.display())) == [archive("c")]);
}

#[test]
fn a_blob_that_is_not_what_it_should_be_is_not_taken_and_leaves_nothing() {
    let dir = temp_dir();
    let layout = dir.path().join("layout");
    let sink = OciLayoutSink::open(&layout, None).unwrap();
    let right = archive("right");
    let descriptor = Descriptor::new(MediaType::ImageLayer, right.len() as u64, sha256_of(&right));
    let mut wrong = right.clone();
    wrong[700] ^= 1;
    for content in [&right[..1000], &*wrong] {
        let Err(SinkError::Content { source, .. }) = sink.put(&descriptor, &content) else {
            panic!("it was taken")
        };
        assert!(source.get_ref().unwrap().is::<BlobMismatch>());
        assert!(!sink.has(&descriptor).unwrap());
        assert!(names(&layout.join("blobs/sha256")).is_empty());
    }
    sink.put(&descriptor, &right).unwrap();
    assert_eq!(
        names(&layout.join("blobs/sha256")),
        [descriptor.digest().digest()]
    );
}

#[test]
fn a_damaged_archive_and_a_foreign_directory_are_named() {
    let dir = temp_dir();
    let cut = dir.path().join("cut.tar");
    let whole = archive("index.json");
    fs::write(&cut, &whole[..900]).unwrap();
    let error = |reference: String| {
        open_source(&reference.parse().unwrap(), &AccessOptions::default())
            .unwrap_err()
            .to_string()
    };
    assert!(error(format!("oci-archive:{}", cut.display())).ends_with("is damaged or incomplete"));
    let here = dir.path().display();
    assert_eq!(
        error(format!("oci:{here}")),
        format!("{here} is not an OCI image layout: it has no oci-layout")
    );
    let sink = OciLayoutSink::open(dir.path(), None).unwrap_err();
    assert_eq!(
        sink.to_string(),
        format!("{here} exists and is not an OCI layout")
    );
    assert_eq!(names(dir.path()), ["cut.tar"]);
}
