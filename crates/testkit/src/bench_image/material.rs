//! What is converted: an image of real files in layers, and one with a layer of any size.

use std::fs;
use std::path::Path;

use super::layout::Layout;
use super::{BenchError, Plan, layers};

/// The image of the plan's archives, a layer of each.
pub(super) fn image(plan: &Plan, dir: &Path) -> Result<Layout, BenchError> {
    fs::create_dir_all(dir)?;
    let mut made = Vec::new();
    let mut lower = None;
    for (number, archive) in plan.archives.iter().enumerate() {
        let out = dir.join(format!("layer-{number}"));
        made.push(layers::difference(lower, archive, &out)?);
        lower = Some(&**archive);
    }
    if made.is_empty() {
        return Err("no archive of a root file system is given".into());
    }
    Layout::write(dir, made)
}

/// An image with one layer of so many bytes of content.
pub(super) fn large(bytes: u64, dir: &Path) -> Result<Layout, BenchError> {
    fs::create_dir_all(dir)?;
    let layer = layers::large(bytes, &dir.join("layer"))?;
    Layout::write(dir, vec![layer])
}
