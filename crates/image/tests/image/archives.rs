//! Archives as tools make them: what `image build` takes of pax and GNU tar.

use std::cell::RefCell;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use nydusbox_image::{
    BuildConfig, BuildSummary, FsVersion, ImageDir, Note, Phase, Progress, Quiet, RafsFormat, Source, build,
};
use tar::{EntryType, Header};

use crate::refusals::{self, attribute};
use crate::{temp_dir, tree, walk};

fn build_archive(archive: &Path, out: &Path, version: FsVersion) -> BuildSummary {
    let config = BuildConfig::new(Source::detect(archive).unwrap(), out)
        .format(RafsFormat::default().fs_version(version))
        .force(true);
    build(&config, &Quiet).unwrap()
}

fn entry(kind: EntryType, name: &[u8], content: &[u8]) -> Vec<u8> {
    let mut header = Header::new_ustar();
    header.as_mut_bytes()[..name.len()].copy_from_slice(name);
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_size(content.len() as u64);
    header.set_mtime(1);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

#[test]
fn sparse_files_are_kept_in_each_of_gnu_tars_formats() {
    let dir = temp_dir();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    let file = File::create(source.join("sparse")).unwrap();
    file.set_len(64 << 20).unwrap();
    for at in [3 << 20, (40 << 20) + 17] {
        file.write_all_at(&tree::noise(at, 70_000), at).unwrap();
    }
    File::create(source.join("hole"))
        .unwrap()
        .set_len(5 << 20)
        .unwrap();
    let formats: [&[&str]; 4] = [
        &["--format=gnu"],
        &["--format=pax", "--sparse-version=0.0"],
        &["--format=pax", "--sparse-version=0.1"],
        &["--format=pax", "--sparse-version=1.0"],
    ];
    for format in formats {
        let archive = dir.path().join("archive");
        let made = Command::new("tar")
            .args(["--create", "--sparse", "--file"])
            .arg(&archive)
            .args(format)
            .arg("--directory")
            .arg(&source)
            .arg(".")
            .status()
            .unwrap();
        assert!(made.success());
        assert!(archive.metadata().unwrap().len() < 1 << 20, "holes take no room");
        for version in [FsVersion::V5, FsVersion::V6] {
            let out = dir.path().join("image");
            build_archive(&archive, &out, version);
            walk::assert_same(&walk::tree(&source), &walk::image(&ImageDir::open(&out).unwrap()));
        }
    }
}

#[test]
fn a_file_of_ten_gigabytes_of_holes_takes_one_chunk_and_no_time() {
    let dir = temp_dir();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    let length = 10 << 30;
    File::create(source.join("large"))
        .unwrap()
        .set_len(length)
        .unwrap();
    let archive = dir.path().join("archive");
    let made = Command::new("tar")
        .args(["--create", "--sparse", "--format=pax", "--file"])
        .arg(&archive)
        .arg("--directory")
        .arg(&source)
        .arg("large")
        .status()
        .unwrap();
    assert!(made.success());
    let summary = build_archive(&archive, &dir.path().join("image"), FsVersion::V6);
    assert_eq!(summary.uncompressed_bytes, length);
    assert_eq!(summary.chunks, 1);
}

#[test]
fn global_headers_and_any_byte_in_an_attribute_are_read() {
    let dir = temp_dir();
    let archive = dir.path().join("archive");
    // As `git archive` begins, and as a file capability may look.
    let content = [
        entry(
            EntryType::XGlobalHeader,
            b"pax_global_header",
            b"14 comment=abc\n",
        ),
        entry(EntryType::XHeader, b"x", b"27 SCHILY.xattr.user.a=b\nc\n"),
        entry(EntryType::Regular, b"file", b"content"),
        vec![0; 1024],
    ];
    fs::write(&archive, content.concat()).unwrap();
    let summary = build_archive(&archive, &dir.path().join("image"), FsVersion::V6);
    assert_eq!((summary.regular_files, summary.uncompressed_bytes), (1, 7));
}

/// As an archive that was made on macOS.
#[test]
fn attributes_that_linux_has_not_are_left_out_and_told_once() {
    struct Notes(RefCell<Vec<String>>);
    impl Progress for Notes {
        fn begin(&self, _phase: Phase, _total: Option<u64>) {}
        fn position(&self, _position: u64) {}
        fn note(&self, note: &Note) {
            self.0.borrow_mut().push(note.to_string());
        }
    }
    let dir = temp_dir();
    let file = |name: &str| refusals::entry(EntryType::Regular, name, b"");
    let content = [
        attribute("com.apple.provenance", 11),
        attribute("user.kept", 1),
        file("one"),
        attribute("system.other", 2),
        attribute("trusted.nydusbox.link", 3),
        file("two"),
        file("three"),
        vec![0; 1024],
    ];
    let archive = dir.path().join("archive");
    fs::write(&archive, content.concat()).unwrap();
    let layers = Source::Layers(vec![archive.clone(), archive]);
    let notes = Notes(RefCell::default());
    let out = dir.path().join("image");
    build(&BuildConfig::new(layers, &out), &notes).unwrap();
    assert_eq!(
        notes.0.into_inner(),
        [
            "extended attributes of 4 files are left out, as \"com.apple.provenance\" of \"one\": Linux has no such \
          name space"
        ]
    );
    let entries = walk::image(&ImageDir::open(&out).unwrap());
    let attributes = |path: &str| -> Vec<_> { entries[Path::new(path)].xattrs.keys().collect() };
    assert_eq!(attributes("/one"), ["user.kept"]);
    assert!(attributes("/two").is_empty());
}

#[test]
fn names_need_not_be_text_and_those_of_whiteouts_are_names() {
    let dir = temp_dir();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    for name in [
        &b"\xff\xfe\x80"[..],
        b"caf\xe9",
        b".wh.file",
        b".wh..wh..opq",
        b"new\nline",
    ] {
        let name: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(name);
        fs::write(source.join(name), name.len().to_string()).unwrap();
    }
    let archive = dir.path().join("archive");
    tree::archive(&source, &archive, true);
    for version in [FsVersion::V5, FsVersion::V6] {
        let out = dir.path().join("image");
        build_archive(&archive, &out, version);
        walk::assert_same(&walk::tree(&source), &walk::image(&ImageDir::open(&out).unwrap()));
    }
}
