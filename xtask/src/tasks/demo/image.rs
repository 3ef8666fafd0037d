//! The demo's image: Debian, one layer, as any builder would push it. Made once.

use std::path::Path;

use serde::Deserialize;

use super::registry::Registry;
use crate::command::Cmd;
use crate::error::TaskError;
use crate::workspace::remove;

/// How the image is called in the registry.
pub(super) const TAG: &str = "12";
/// And what was converted of it.
pub(super) const NYDUS_TAG: &str = "12-nydus";

#[derive(Debug, Deserialize)]
struct Manifest {
    layers: Vec<Layer>,
}

#[derive(Debug, Deserialize)]
struct Layer {
    size: u64,
}

/// The size of the image's layers, compressed, in bytes. Fails if the registry does not have it.
pub(super) fn size(registry: &Registry) -> Result<u64, TaskError> {
    let manifest = skopeo("inspect --raw --tls-verify=false")
        .arg(registry.reference(TAG))
        .output()?;
    let manifest: Manifest = serde_json::from_str(&manifest).map_err(TaskError::Manifest)?;
    Ok(manifest.layers.iter().map(|layer| layer.size).sum())
}

/// Makes the image of a root file system and has it in the registry. `layout` is where it is on the way.
pub(super) fn push(archive: &Path, layout: &Path, registry: &Registry) -> Result<(), TaskError> {
    eprintln!("xtask: making an image of it, and pushing it to a registry on loopback (once)");
    remove(layout)?;
    let image = format!("{}:{TAG}", layout.display());
    Cmd::new("umoci").words("init --layout").arg(layout).output()?;
    let of = |words: &str| Cmd::new("umoci").words(words).args(["--image", &image]);
    of("new").output()?;
    of("raw add-layer").arg(archive).output()?;
    of("config --config.cmd bash").output()?;
    skopeo("copy --quiet --dest-tls-verify=false")
        .arg(format!("oci:{image}"))
        .arg(registry.reference(TAG))
        .output()?;
    remove(layout)
}

/// Converts the image and pushes it; its name in the registry. What was converted before is not again.
pub(super) fn convert(nydusbox: &Path, registry: &Registry) -> Result<String, TaskError> {
    let there = registry.reference(NYDUS_TAG);
    Cmd::new(nydusbox)
        .words("image convert")
        .arg(registry.reference(TAG))
        .arg(&there)
        .shown()?;
    Ok(there)
}

/// skopeo, as it is without a configuration.
pub(super) fn skopeo(words: &str) -> Cmd {
    Cmd::new("skopeo").arg("--insecure-policy").words(words)
}
