//! Images are looked at: counted, checked chunk by chunk, compared. Ours and nydus-image's.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use nydusbox_image::{
    Aspect, BuildConfig, Change, CheckProblem, ChunkSize, FsVersion, NydusImage, Quiet, RafsFormat, Source,
    build,
};

use crate::{peers, temp_dir, tree};

fn built(source: &Path, out: &Path, version: FsVersion) -> NydusImage {
    let config = BuildConfig::new(Source::Directory(source.to_owned()), out)
        .format(RafsFormat::default().fs_version(version));
    build(&config, &Quiet).unwrap();
    open(out)
}

fn open(image: &Path) -> NydusImage {
    NydusImage::open(&image.join("image.boot"), &image.join("blobs")).unwrap()
}

#[test]
fn a_whole_image_is_found_right_and_counted() {
    for version in [FsVersion::V5, FsVersion::V6] {
        let dir = temp_dir();
        let source = dir.path().join("source");
        fs::create_dir(&source).unwrap();
        let made = tree::make(&source);
        let image = built(&source, &dir.path().join("image"), version);
        let report = image.inspect();
        assert_eq!(report.regular_files, made.regular_files);
        assert_eq!(report.hard_links, made.hard_links);
        assert_eq!(report.fs_version, version);
        assert_eq!(report.blobs[0].used_chunks, report.blobs[0].chunks);
        let check = image.check(&Quiet);
        assert_eq!(check.problems, []);
        assert_eq!(check.good_chunks, report.chunks);
    }
}

#[test]
fn a_damaged_chunk_is_named_with_its_file() {
    let dir = temp_dir();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("big"), tree::noise(1, 5 << 16)).unwrap();
    let out = dir.path().join("image");
    let config = BuildConfig::new(Source::Directory(source), &out)
        .format(RafsFormat::default().chunk_size(ChunkSize::new(1 << 16).unwrap()));
    build(&config, &Quiet).unwrap();
    let id = open(&out).inspect().blobs[0].id.clone();
    let blob = out.join("blobs").join(&id);
    let file = OpenOptions::new().write(true).open(&blob).unwrap();
    file.write_all_at(b"damage", 5 << 15).unwrap();
    let check = open(&out).check(&Quiet);
    assert_eq!(
        check.problems,
        [CheckProblem::Chunk {
            blob: id.clone(),
            chunk: 2,
            file: "/big".into()
        }]
    );
    assert_eq!(check.good_chunks, 4);
    file.set_len(100_000).unwrap();
    let short = open(&out).check(&Quiet);
    assert!(
        matches!(&short.problems[..], [CheckProblem::Blob { blob, .. }] if *blob == id),
        "{short:?}"
    );
    fs::remove_file(&blob).unwrap();
    assert!(matches!(
        &open(&out).check(&Quiet).problems[..],
        [CheckProblem::Blob { .. }]
    ));
}

#[test]
fn images_of_nydus_image_are_checked_too() {
    let Some(nydus_image) = peers::nydus_image() else {
        return;
    };
    let dir = temp_dir();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    tree::make(&source);
    for (version, digester) in [("5", "sha256"), ("6", "blake3"), ("6", "sha256")] {
        let blobs = dir.path().join("blobs");
        fs::create_dir(&blobs).unwrap();
        let bootstrap = dir.path().join("bootstrap");
        peers::run(
            Command::new(&nydus_image)
                .args(["create", "--type", "directory", "--compressor", "zstd"])
                .args([
                    "--fs-version",
                    version,
                    "--digester",
                    digester,
                    "--whiteout-spec",
                    "none",
                ])
                .arg("--blob-dir")
                .arg(&blobs)
                .arg("--bootstrap")
                .arg(&bootstrap)
                .arg(&source),
        );
        let image = NydusImage::open(&bootstrap, &blobs).unwrap();
        let check = image.check(&Quiet);
        assert_eq!(check.problems, [], "{version} {digester}");
        assert!(check.good_chunks > 5);
        assert_eq!(check.good_chunks, image.inspect().chunks);
        fs::remove_dir_all(&blobs).unwrap();
    }
}

#[test]
fn differences_are_told_by_path_and_kind() {
    let dir = temp_dir();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    for name in ["same", "mode", "content", "gone"] {
        fs::write(source.join(name), name).unwrap();
    }
    let before = built(&source, &dir.path().join("before"), FsVersion::V6);
    assert_eq!(before.diff(&open(&dir.path().join("before"))), []);
    fs::set_permissions(source.join("mode"), fs::Permissions::from_mode(0o4711)).unwrap();
    let time = fs::metadata(source.join("content")).unwrap().modified().unwrap();
    fs::write(source.join("content"), "another").unwrap();
    let file = OpenOptions::new()
        .write(true)
        .open(source.join("content"))
        .unwrap();
    file.set_modified(time).unwrap();
    fs::remove_file(source.join("gone")).unwrap();
    fs::write(source.join("new"), "new").unwrap();
    let after = built(&source, &dir.path().join("after"), FsVersion::V6);
    let found: Vec<_> = before
        .diff(&after)
        .into_iter()
        .map(|difference| {
            let path = difference.path.to_str().unwrap().to_owned();
            (path, difference.change, difference.aspects)
        })
        .collect();
    assert_eq!(
        found,
        [
            ("/content".to_owned(), Change::Changed, vec![Aspect::Content]),
            ("/gone".to_owned(), Change::Removed, vec![]),
            ("/mode".to_owned(), Change::Changed, vec![Aspect::Mode]),
            ("/new".to_owned(), Change::Added, vec![]),
        ]
    );
}

#[test]
fn a_difference_in_a_name_that_is_no_text_is_told_in_json_too() {
    use std::os::unix::ffi::OsStrExt;
    let dir = temp_dir();
    let (source, name) = (
        dir.path().join("source"),
        std::ffi::OsStr::from_bytes(b"na\xffme"),
    );
    fs::create_dir(&source).unwrap();
    let before = built(&source, &dir.path().join("before"), FsVersion::V6);
    fs::write(source.join(name), "x").unwrap();
    let after = built(&source, &dir.path().join("after"), FsVersion::V6);
    let json = serde_json::to_string(&before.diff(&after)).unwrap();
    assert!(json.contains("\"/na\u{fffd}me\""), "{json}");
    let problem = CheckProblem::Bootstrap { file: name.into() };
    serde_json::to_string(&problem).unwrap();
}
