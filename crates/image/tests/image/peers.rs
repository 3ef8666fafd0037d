//! The genuine nydus-image finds nothing wrong with our images, and unpacks what went in.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nydusbox_image::{BuildConfig, FsVersion, ImageDir, Quiet, RafsFormat, Source, build};

use crate::{temp_dir, tree, walk};

pub(crate) fn nydus_image() -> Option<PathBuf> {
    program("nydus-image")
}

/// The program, or `None` with the reason told, unless it has to be there.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    let bin = std::env::var_os("NYDUSBOX_PEERS").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/peers/bin")),
        PathBuf::from,
    );
    let program = bin.join(name);
    if program.exists() {
        return Some(program);
    }
    assert!(
        std::env::var_os("NYDUSBOX_REQUIRE_PEERS").is_none_or(|value| value != "1"),
        "{} is not there; `cargo xtask peers` installs it",
        program.display()
    );
    eprintln!(
        "skipped: {} is not there; `cargo xtask peers` installs it",
        program.display()
    );
    None
}

/// Has nydus-image look for mistakes in a bootstrap.
pub(crate) fn check(bootstrap: &Path) {
    if let Some(nydus_image) = nydus_image() {
        run(Command::new(nydus_image)
            .arg("check")
            .arg("--bootstrap")
            .arg(bootstrap));
    }
}

pub(crate) fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn nydus_image_checks_and_unpacks_our_images() {
    let Some(nydus_image) = nydus_image() else { return };
    for version in [FsVersion::V5, FsVersion::V6] {
        for from_archive in [false, true] {
            let dir = temp_dir();
            let source = dir.path().join("source");
            fs::create_dir(&source).unwrap();
            tree::make(&source);
            let mut input = Source::Directory(source.clone());
            if from_archive {
                let archive = dir.path().join("archive");
                tree::archive(&source, &archive, true);
                input = Source::Tar(archive);
            }
            let out = dir.path().join("image");
            build(
                &BuildConfig::new(input, &out).format(RafsFormat::default().fs_version(version)),
                &Quiet,
            )
            .unwrap();
            let image = ImageDir::open(&out).unwrap();

            check(&image.bootstrap());
            let unpacked = dir.path().join("unpacked.tar");
            run(Command::new(&nydus_image)
                .arg("unpack")
                .arg("--bootstrap")
                .arg(image.bootstrap())
                .arg("--blob")
                .arg(image.blob_dir().join(&image.summary().blobs[0].id))
                .arg("--output")
                .arg(&unpacked));
            // Content, modes, links and devices; what unpack doesn't carry is compared in `round_trip`.
            let again = dir.path().join("again");
            fs::create_dir(&again).unwrap();
            run(Command::new("tar")
                .args(["--extract", "--preserve-permissions", "--numeric-owner", "--file"])
                .arg(&unpacked)
                .arg("--directory")
                .arg(&again));
            walk::assert_same_content(&walk::tree(&source), &walk::tree(&again));
        }
    }
}
