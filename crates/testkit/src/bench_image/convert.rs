//! Conversions of an image, by us and by nydus-image in turn: how long they take, at which peak of memory, and how much
//! is stored.
//!
//! nydus-image is called as nydus' tools for images do it: for each layer, one after the other, then to merge what came
//! of them. It is given the same version of the format, compressor and size of chunks. We convert a whole image: layers
//! are verified by their digests, blobs synced to disk, manifest and configuration written, which it leaves to others.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::layout::Layout;
use super::process::{Measured, measured, output};
use super::{BenchError, Plan, Rows, add};

const MB: f64 = 1e6;
/// The tag of what was converted.
pub(super) const CONVERTED: &str = "converted";

/// How an image is converted: what we call it, the kind of nydus-image's sources.
const MODES: [(&str, &str); 2] = [("native", "targz-rafs"), ("ref", "targz-ref")];

/// A conversion.
struct Conversion {
    seconds: f64,
    peak_bytes: f64,
    stored_bytes: f64,
}

/// Measures both modes, `rounds` times, in `dir`, which is made; rows begin with `prefix`.
pub(super) fn measure(
    plan: &Plan,
    layout: &Layout,
    prefix: &str,
    rounds: usize,
    dir: &Path,
    rows: &mut Rows,
) -> Result<(), BenchError> {
    for round in 0..rounds {
        for (mode, kind) in MODES {
            let mut note = |whose: &str, conversion: Conversion| {
                let row = |what: &str| format!("{prefix}-{mode}-{what}");
                add(rows, row("seconds"), whose, conversion.seconds);
                add(rows, row("peak"), whose, conversion.peak_bytes / MB);
                add(rows, row("stored"), whose, conversion.stored_bytes / MB);
            };
            fs::create_dir_all(dir)?;
            note("nydusbox", ours(plan, layout, mode, round == 0, dir)?);
            fs::remove_dir_all(dir)?;
            if let Some(nydus_image) = &plan.nydus_image {
                fs::create_dir_all(dir.join("blobs"))?;
                note("nydus-image", theirs(nydus_image, layout, kind, round == 0, dir)?);
                fs::remove_dir_all(dir)?;
            }
        }
    }
    Ok(())
}

/// Converts the image of a layout to another one in the same.
pub(super) fn convert(
    nydusbox: &Path,
    layout: &Layout,
    mode: &str,
    dir: &Path,
) -> Result<Measured, BenchError> {
    let (from, to) = (layout.original(), layout.tagged(CONVERTED));
    let mut args = words(&["image", "convert", &from, &to, "--mode", mode, "--json"]);
    args.extend(words(&["--platform", "linux/amd64", "--work-dir"]));
    args.push(dir.into());
    measured(nydusbox, args, &dir.join("time"))
}

fn words(words: &[&str]) -> Vec<OsString> {
    words.iter().map(Into::into).collect()
}

fn ours(
    plan: &Plan,
    layout: &Layout,
    mode: &str,
    checked: bool,
    dir: &Path,
) -> Result<Conversion, BenchError> {
    let layout = layout.linked(&dir.join("layout"))?;
    let done = convert(&plan.nydusbox, &layout, mode, dir)?;
    let summary: Value = serde_json::from_str(&done.stdout)?;
    let layers = summary["layers"].as_array().ok_or("no layers in the summary")?;
    if layers.iter().any(|layer| layer["is_index"] != (mode == "ref")) {
        return Err(format!("a layer is not stored as it was to be: {summary}").into());
    }
    let blobs = layers.iter().filter_map(|layer| layer["blob_bytes"].as_f64());
    let bootstrap = summary["bootstrap_bytes"].as_f64().ok_or("no bootstrap")?;
    let stored_bytes = blobs.sum::<f64>() + bootstrap;
    if checked {
        let mut check = Command::new(&plan.nydusbox);
        output(check.args(["image", "check"]).arg(layout.tagged(CONVERTED)))?;
    }
    Ok(Conversion {
        seconds: done.seconds,
        peak_bytes: done.peak_bytes,
        stored_bytes,
    })
}

fn theirs(
    nydus_image: &Path,
    layout: &Layout,
    kind: &str,
    checked: bool,
    dir: &Path,
) -> Result<Conversion, BenchError> {
    let (scratch, blobs) = (dir.join("time"), dir.join("blobs"));
    let mut runs = Vec::new();
    let mut merge = words(&["merge", "--log-level", "warn", "--bootstrap"]);
    let merged = dir.join("merged.boot");
    merge.push(merged.clone().into());
    for (number, layer) in layout.layers().iter().enumerate() {
        let bootstrap = dir.join(format!("{number}.boot"));
        let mut create = words(&["create", "--type", kind, "--whiteout-spec", "oci"]);
        create.extend(words(&["--log-level", "warn", "--fs-version", "6"]));
        create.extend(words(&["--compressor", "zstd", "--chunk-size", "0x100000"]));
        create.push("--bootstrap".into());
        create.push(bootstrap.clone().into());
        create.push("--blob-dir".into());
        create.push(blobs.clone().into());
        create.push(layer.file.clone().into());
        runs.push(measured(nydus_image, create, &scratch)?);
        merge.push(bootstrap.into());
    }
    runs.push(measured(nydus_image, merge, &scratch)?);
    if checked {
        let mut check = Command::new(nydus_image);
        output(check.args(["check", "--bootstrap"]).arg(&merged))?;
    }
    let mut stored = fs::metadata(&merged)?.len();
    for blob in fs::read_dir(&blobs)? {
        stored += blob?.metadata()?.len();
    }
    Ok(Conversion {
        seconds: runs.iter().map(|run| run.seconds).sum(),
        peak_bytes: runs.iter().map(|run| run.peak_bytes).fold(0.0, f64::max),
        stored_bytes: stored as f64,
    })
}
