//! Images whose data stays in the original layers.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use nydusbox_image::source::{AccessOptions, ImageRef, MediaType, Platform, open_source};
use nydusbox_image::{
    CheckProblem, ConvertConfig, ConvertError, FsVersion, LayerError, Mode, NydusImage, Quiet, RafsFormat,
    Unindexed,
};

use crate::layout;
use crate::nydusd::Served;
use crate::oci::{self, Original, layout_ref};
use crate::{peers, temp_dir, tree, walk};

fn by_reference() -> ConvertConfig {
    oci::config().mode(Mode::Reference)
}

fn open(reference: &ImageRef) -> NydusImage {
    let source = open_source(reference, &AccessOptions::default()).unwrap();
    NydusImage::open_source(source, &Platform::default()).unwrap()
}

/// What nydusd serves, if it is there.
fn served(bootstrap: &Path, layout: &Path, dir: &Path) -> Option<walk::Entries> {
    let nydusd = peers::program("nydusd").filter(|_| Path::new("/dev/fuse").exists())?;
    fs::create_dir(dir).unwrap();
    let served = Served::start(&nydusd, bootstrap, &oci::blobs(layout), dir);
    Some(walk::tree(served.root()))
}

#[test]
fn the_original_layers_stay_and_nydusd_serves_the_files_that_umoci_unpacks() {
    let Some(original) = Original::make() else { return };
    let out = original.path("out");
    let to = layout_ref(&out, "nydus");
    let summary = original.convert(&to, &by_reference()).unwrap();
    let (manifest, bootstrap) = oci::unpack(&out, &summary, &original.path("boot"));
    let layers = manifest["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 4);
    for (layer, made) in layers.iter().zip(&summary.layers) {
        assert!(made.is_index);
        assert_eq!(
            layer["mediaType"],
            "application/vnd.oci.image.layer.nydus.blob.v1"
        );
        let annotation = |name: &str| layer["annotations"][format!("containerd.io/snapshot/{name}")].clone();
        assert_eq!(annotation("nydus-blob"), "true");
        assert_eq!(annotation("nydus-ref"), made.source_digest.as_str());
        assert_eq!(layer["digest"], made.blob_digest.as_str());
    }
    // The largest layer is there, byte for byte; nothing else of the data is.
    let largest = summary
        .layers
        .iter()
        .max_by_key(|layer| layer.source_bytes)
        .unwrap();
    let name = oci::blob(Path::new(""), &largest.source_digest.as_str().into());
    assert_eq!(
        fs::read(out.join(&name)).unwrap(),
        fs::read(original.layout().join(&name)).unwrap()
    );
    assert!(largest.blob_bytes < largest.source_bytes / 4);

    peers::check(&bootstrap);
    let image = open(&to);
    let report = image.check(&Quiet);
    assert_eq!(report.problems, []);
    assert_eq!(report.unchecked_chunks, 0);
    assert_eq!(report.good_chunks, image.inspect().chunks);
    // Nothing differs from the image that has its own blobs.
    let native = layout_ref(&out, "native");
    original.convert(&native, &oci::config()).unwrap();
    assert_eq!(image.diff(&open(&native)), []);
    if let Some(files) = served(&bootstrap, &out, &original.path("nydusd")) {
        walk::assert_same(&original.files(), &files);
    }
}

#[test]
fn layers_indexed_before_are_used_again_but_not_those_of_the_other_mode() {
    let Some(original) = Original::make() else { return };
    let to = layout_ref(&original.path("out"), "nydus");
    let reused = |config: &ConvertConfig| -> Vec<_> {
        let summary = original.convert(&to, config).unwrap();
        summary.layers.iter().map(|layer| layer.reused).collect()
    };
    assert_eq!(reused(&by_reference()), [false; 3]);
    assert_eq!(reused(&by_reference()), [true; 3]);
    assert_eq!(open(&to).check(&Quiet).problems, []);
    assert_eq!(reused(&oci::config()), [false; 3]);
    assert_eq!(reused(&by_reference()), [false; 3]);
}

/// Packs with gzip.
pub(crate) fn gzip(archive: &[u8]) -> Vec<u8> {
    let mut packed = GzEncoder::new(Vec::new(), Compression::default());
    packed.write_all(archive).unwrap();
    packed.finish().unwrap()
}

/// An archive of one file.
fn archive(name: &str, content: &[u8]) -> Vec<u8> {
    layout::archive(&[(name, content)])
}

/// Writes an image of layers that say of themselves that they are gzipped.
fn write(layout: &Path, layers: &[&[u8]]) -> ImageRef {
    let layers: Vec<_> = layers
        .iter()
        .map(|layer| (MediaType::ImageLayerGzip, *layer))
        .collect();
    layout::write_layout(layout, "of", &layers)
}

#[test]
fn layers_that_cannot_be_indexed_become_blobs_of_the_same_image() {
    let dir = temp_dir();
    let content = tree::noise(7, 3 << 20);
    let sparse = dir.path().join("sparse");
    fs::create_dir(&sparse).unwrap();
    tree::make_sparse(&sparse.join("holes"));
    let sparse_archive = dir.path().join("sparse.tar");
    tree::archive_as(&sparse, &sparse_archive, &["--sparse"]);
    let mut without_end = archive("no-end", &content);
    without_end.truncate(without_end.len() - 1024);
    let layers = [
        (gzip(&archive("indexed", &content)), None),
        (archive("plain", &content), Some(Unindexed::NotGzip)),
        (
            zstd::encode_all(&archive("zstd", &content)[..], 1).unwrap(),
            Some(Unindexed::NotGzip),
        ),
        (gzip(&fs::read(&sparse_archive).unwrap()), Some(Unindexed::Sparse)),
        (gzip(&without_end), Some(Unindexed::NoEnd)),
        (
            one_block(&archive("zeros", &vec![0; 20 << 20])),
            Some(Unindexed::Block),
        ),
    ];
    let layout = dir.path().join("layout");
    let bytes: Vec<_> = layers.iter().map(|(bytes, _)| bytes.as_slice()).collect();
    write(&layout, &bytes);
    let out = dir.path().join("out");
    let to = layout_ref(&out, "nydus");
    let summary = oci::convert_to(&layout_ref(&layout, "of"), &to, &by_reference(), &Quiet).unwrap();
    for (number, (layer, (_, unindexed))) in summary.layers.iter().zip(&layers).enumerate() {
        assert_eq!(layer.unindexed, *unindexed, "{number}");
        assert_eq!(layer.is_index, unindexed.is_none(), "{number}");
    }
    let report = open(&to).check(&Quiet);
    assert_eq!(report.problems, []);
    let (_, bootstrap) = oci::unpack(&out, &summary, &dir.path().join("boot"));
    peers::check(&bootstrap);
    if let Some(files) = served(&bootstrap, &out, &dir.path().join("nydusd")) {
        assert_eq!(files.len(), 7);
        let digest = |path: &str| files[Path::new(path)].content.unwrap();
        for name in ["/plain", "/zstd", "/no-end"] {
            assert_eq!(digest(name), digest("/indexed"), "{name}");
        }
    }
}

/// nydusd 2.2.0 can't unpack a chunk that is in two members; later ones can.
#[test]
fn a_chunk_may_be_in_several_members_of_gzip() {
    let dir = temp_dir();
    let archive = archive("file", &tree::noise(9, 3 << 20));
    let members: Vec<_> = archive.chunks(300_000).map(gzip).collect();
    let layout = dir.path().join("layout");
    write(&layout, &[&members.concat()]);
    let to = layout_ref(&dir.path().join("out"), "nydus");
    let summary = oci::convert_to(&layout_ref(&layout, "of"), &to, &by_reference(), &Quiet).unwrap();
    assert!(summary.layers[0].is_index);
    let report = open(&to).check(&Quiet);
    assert_eq!(report.problems, []);
    assert_eq!(report.good_chunks, 3);
}

/// Packs with gzip, all of it in one block with fixed codes: a literal for each byte.
fn one_block(archive: &[u8]) -> Vec<u8> {
    let mut bits = Bits::default();
    bits.put(0b1, 1);
    bits.put(0b01, 2);
    for byte in archive {
        // RFC 1951, section 3.2.6; codes go in from their most significant bit.
        match u32::from(*byte) {
            low @ 0..=143 => bits.put((0x30 + low).reverse_bits() >> 24, 8),
            high => bits.put((0x190 + high - 144).reverse_bits() >> 23, 9),
        }
    }
    bits.put(0, 7);
    let mut crc = flate2::Crc::new();
    crc.update(archive);
    let mut packed = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];
    packed.extend(bits.bytes());
    packed.extend(crc.sum().to_le_bytes());
    packed.extend(crc.amount().to_le_bytes());
    packed
}

#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    waiting: u64,
    count: u32,
}

impl Bits {
    fn put(&mut self, bits: u32, count: u32) {
        self.waiting |= u64::from(bits) << self.count;
        self.count += count;
        while self.count >= 8 {
            self.bytes.push((self.waiting & 0xff) as u8);
            self.waiting >>= 8;
            self.count -= 8;
        }
    }

    fn bytes(mut self) -> Vec<u8> {
        if self.count > 0 {
            self.bytes.push((self.waiting & 0xff) as u8);
        }
        self.bytes
    }
}

/// What makes the index would not notice.
#[test]
fn a_layer_that_is_cut_off_is_refused() {
    let dir = temp_dir();
    let layer = gzip(&archive("file", &tree::noise(11, 2 << 20)));
    let from = write(&dir.path().join("layout"), &[&layer[..layer.len() / 2]]);
    let to = layout_ref(&dir.path().join("out"), "nydus");
    let refused = oci::convert_to(&from, &to, &by_reference(), &Quiet).unwrap_err();
    let ConvertError::Layer { source, .. } = &refused else {
        panic!("{refused:?}");
    };
    assert!(matches!(source, LayerError::Unreadable { .. }), "{source:?}");
}

#[test]
fn a_damaged_original_layer_is_told_with_the_files_in_it() {
    let dir = temp_dir();
    let layout = dir.path().join("layout");
    let layer = gzip(&archive("big", &tree::noise(3, 8 << 20)));
    write(&layout, &[&layer]);
    // An image beside its layer, opened as files are: nobody compares the layer's digest.
    let to = layout_ref(&layout, "nydus");
    let summary = oci::convert_to(&layout_ref(&layout, "of"), &to, &by_reference(), &Quiet).unwrap();
    let (_, bootstrap) = oci::unpack(&layout, &summary, &dir.path().join("boot"));
    let check = || {
        NydusImage::open(&bootstrap, &oci::blobs(&layout))
            .unwrap()
            .check(&Quiet)
    };
    assert_eq!(check().good_chunks, 8);
    let blob = oci::blob(&layout, &summary.layers[0].source_digest.as_str().into());
    let file = OpenOptions::new().write(true).open(&blob).unwrap();
    file.write_all_at(b"damage", 5 << 20).unwrap();
    let damaged = check();
    assert!((4..8).contains(&damaged.good_chunks), "{damaged:?}");
    assert!(!damaged.problems.is_empty());
    for problem in &damaged.problems {
        assert!(
            matches!(problem, CheckProblem::Chunk { file, .. } if file == Path::new("/big")),
            "{problem}"
        );
    }
    fs::remove_file(oci::blob(&layout, &summary.layers[0].blob_digest.as_str().into())).unwrap();
    assert!(matches!(&check().problems[..], [CheckProblem::Blob { .. }]));
}

#[test]
fn images_by_reference_of_nydus_image_are_checked_too() {
    let Some(nydus_image) = peers::nydus_image() else {
        return;
    };
    let dir = temp_dir();
    let (archive_path, blobs) = (dir.path().join("layer.tar.gz"), dir.path().join("blobs"));
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("big"), tree::noise(5, 5 << 20)).unwrap();
    fs::write(source.join("text"), b"some text").unwrap();
    tree::archive_as(&source, &archive_path, &["--gzip", "--format=ustar"]);
    fs::create_dir(&blobs).unwrap();
    let bootstrap = dir.path().join("bootstrap");
    peers::run(
        std::process::Command::new(nydus_image)
            .args([
                "create",
                "--type",
                "targz-ref",
                "--log-level",
                "warn",
                "--bootstrap",
            ])
            .arg(&bootstrap)
            .arg("--blob-dir")
            .arg(&blobs)
            .arg(&archive_path)
            .current_dir(dir.path()),
    );
    let image = NydusImage::open(&bootstrap, &blobs).unwrap();
    let id = image.inspect().blobs[0].id.clone();
    fs::rename(&archive_path, blobs.join(id)).unwrap();
    let report = image.check(&Quiet);
    assert_eq!(report.problems, []);
    assert_eq!(report.good_chunks, 6);
    assert_eq!(report.unchecked_chunks, 0);
}

#[test]
fn rafs_v5_cannot_refer_to_original_layers() {
    let dir = temp_dir();
    let layout = dir.path().join("layout");
    write(&layout, &[&gzip(&archive("file", b"content"))]);
    let to = layout_ref(&dir.path().join("out"), "nydus");
    let config = by_reference().format(RafsFormat::default().fs_version(FsVersion::V5));
    let refused = oci::convert_to(&layout_ref(&layout, "of"), &to, &config, &Quiet).unwrap_err();
    assert!(matches!(refused, ConvertError::ReferenceVersion), "{refused}");
}
