//! An image that umoci made, and what becomes of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nydusbox_image::source::{AccessOptions, ImageRef, Platform, open_sink, open_source};
use nydusbox_image::{ConvertConfig, ConvertError, ConvertSummary, Progress, Quiet, convert};
use serde_json::Value;
use tempfile::TempDir;

use crate::{peers, temp_dir, tree, walk};

/// A configuration that differs from the default in nothing.
pub(crate) fn config() -> ConvertConfig {
    ConvertConfig::new(Platform::default())
}

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

/// An image with gzipped layers in an OCI layout, and what umoci unpacks of it.
pub(crate) struct Original {
    pub(crate) dir: TempDir,
}

impl Original {
    /// Three layers: files of all kinds; some of them gone, replaced and changed; a hard link's group changed. `None`
    /// where it can't be made.
    pub(crate) fn make() -> Option<Self> {
        if !is_there("umoci") || !tree::is_root() {
            return None;
        }
        let dir = temp_dir();
        let run = |args: &[&str]| peers::run(Command::new("umoci").args(args).current_dir(dir.path()));
        run(&["init", "--layout", "layout"]);
        run(&["new", "--image", "layout:of"]);
        run(&["unpack", "--image", "layout:of", "bundle"]);
        let root = dir.path().join("bundle/rootfs");
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
        fs::remove_dir_all(dir.path().join("bundle")).unwrap();
        run(&["unpack", "--image", "layout:of", "bundle"]);
        Some(Self { dir })
    }

    /// A path that is the test's own.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The layout it is in.
    pub(crate) fn layout(&self) -> PathBuf {
        self.path("layout")
    }

    pub(crate) fn reference(&self) -> ImageRef {
        layout_ref(&self.layout(), "of")
    }

    /// The files as umoci unpacks them.
    pub(crate) fn files(&self) -> walk::Entries {
        walk::tree(&self.path("bundle/rootfs"))
    }

    /// Converts it to the image `to`.
    pub(crate) fn convert(
        &self,
        to: &ImageRef,
        config: &ConvertConfig,
    ) -> Result<ConvertSummary, ConvertError> {
        convert_to(&self.reference(), to, config, &Quiet)
    }
}

pub(crate) fn reference(text: &str) -> ImageRef {
    text.parse().unwrap()
}

/// The image `tag` in a layout.
pub(crate) fn layout_ref(layout: &Path, tag: &str) -> ImageRef {
    reference(&format!("oci:{}:{tag}", layout.display()))
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

/// A layout's directory of blobs.
pub(crate) fn blobs(layout: &Path) -> PathBuf {
    layout.join("blobs/sha256")
}

/// The file of a digest with its algorithm.
pub(crate) fn blob(layout: &Path, digest: &Value) -> PathBuf {
    layout
        .join("blobs")
        .join(digest.as_str().unwrap().replace(':', "/"))
}

pub(crate) fn read_json(file: &Path) -> Value {
    serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
}

/// A converted image's manifest, and its bootstrap, unpacked below `to`.
pub(crate) fn unpack(layout: &Path, summary: &ConvertSummary, to: &Path) -> (Value, PathBuf) {
    let manifest = read_json(&blob(layout, &Value::from(summary.digest.as_str())));
    let last = manifest["layers"].as_array().unwrap().last().unwrap();
    let layer = fs::File::open(blob(layout, &last["digest"])).unwrap();
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(layer));
    archive.unpack(to).unwrap();
    (manifest, to.join("image/image.boot"))
}
