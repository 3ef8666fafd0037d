//! The files that are read: many small ones and a large one, as a directory and as an image made of it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use super::plan::Plan;
use crate::tree;

/// The large file.
pub(super) const DATA: &str = "data";

/// What is on disk, and what is known of it.
#[derive(Debug)]
pub(super) struct Dataset {
    /// The directory that is shared.
    pub(super) share: PathBuf,
    /// The image of it.
    pub(super) bootstrap: PathBuf,
    pub(super) blobs: PathBuf,
    /// Names of the small files, all of one length, with their sizes.
    pub(super) files: Vec<(String, u64)>,
    /// Content of the large file.
    pub(super) data: Arc<[u8]>,
}

impl Dataset {
    pub(super) fn make(plan: &Plan, dir: &Path) -> io::Result<Self> {
        let share = dir.join("source");
        fs::create_dir(&share)?;
        let files = (0..plan.files)
            .map(|i| {
                let name = format!("file-{i:04}");
                fs::write(share.join(&name), tree::bytes(i as u64 + 1, i + 1))?;
                Ok((name, i as u64 + 1))
            })
            .collect::<io::Result<Vec<_>>>()?;
        let data: Arc<[u8]> = tree::bytes(4711, plan.data).into();
        fs::write(share.join(DATA), &data)?;
        let image = dir.join("image");
        let built = Command::new(&plan.nydusbox)
            .args(["image", "build"])
            .args([&share, &image])
            .output()?;
        if !built.status.success() {
            let said = String::from_utf8_lossy(&built.stderr).into_owned();
            return Err(io::Error::other(format!("`nydusbox image build` failed: {said}")));
        }
        Ok(Self {
            share,
            bootstrap: image.join("image.boot"),
            blobs: image.join("blobs"),
            files,
            data,
        })
    }
}
