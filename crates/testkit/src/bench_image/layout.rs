//! An OCI layout with one image, as a container engine would save it.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::layers::Layer;
use super::{BenchError, ImageFigures};

/// The tag of the image that is converted.
const TAG: &str = "of";

/// The layout, and what is in it.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    dir: PathBuf,
    layers: Vec<Layer>,
}

impl Layout {
    /// Writes one to `dir`, which is made. The layers' files become its.
    pub(super) fn write(dir: &Path, mut layers: Vec<Layer>) -> Result<Self, BenchError> {
        let blobs = dir.join("blobs/sha256");
        fs::create_dir_all(&blobs)?;
        for layer in &mut layers {
            let file = blobs.join(&layer.digest);
            fs::rename(&layer.file, &file)?;
            layer.file = file;
        }
        let put = |media_type: &str, content: &Value| -> Result<Value, BenchError> {
            let text = content.to_string();
            let digest = format!("{:x}", Sha256::digest(&text));
            fs::write(blobs.join(&digest), &text)?;
            Ok(json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": text.len()}))
        };
        let diff_ids = layers.iter().map(|layer| format!("sha256:{}", layer.diff_id));
        let config = json!({
            "architecture": "amd64",
            "os": "linux",
            "config": {
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
                "Cmd": ["sh"],
            },
            "rootfs": {"type": "layers", "diff_ids": diff_ids.collect::<Vec<_>>()},
        });
        let described = layers.iter().map(|layer| {
            json!({
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                "digest": format!("sha256:{}", layer.digest),
                "size": layer.bytes,
            })
        });
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": put("application/vnd.oci.image.config.v1+json", &config)?,
            "layers": described.collect::<Vec<_>>(),
        });
        let mut manifest = put("application/vnd.oci.image.manifest.v1+json", &manifest)?;
        manifest["annotations"] = json!({"org.opencontainers.image.ref.name": TAG});
        let index = json!({"schemaVersion": 2, "manifests": [manifest]});
        fs::write(dir.join("index.json"), index.to_string())?;
        let version = json!({"imageLayoutVersion": "1.0.0"});
        fs::write(dir.join("oci-layout"), version.to_string())?;
        Ok(Self {
            dir: dir.to_owned(),
            layers,
        })
    }

    /// The layers, the lowest first.
    pub(super) fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// The image.
    pub(super) fn original(&self) -> String {
        self.tagged(TAG)
    }

    /// Another one in the same layout.
    pub(super) fn tagged(&self, tag: &str) -> String {
        format!("oci:{}:{tag}", self.dir.display())
    }

    /// The same in another directory, whatever has been written to this one. No content is copied.
    pub(super) fn linked(&self, dir: &Path) -> Result<Self, BenchError> {
        let layers = self.layers.iter().enumerate().map(|(number, layer)| {
            let file = dir.join(format!("layer-{number}"));
            fs::create_dir_all(dir)?;
            fs::hard_link(&layer.file, &file)?;
            Ok(Layer {
                file,
                ..layer.clone()
            })
        });
        Self::write(dir, layers.collect::<Result<_, BenchError>>()?)
    }

    pub(super) fn figures(&self) -> ImageFigures {
        ImageFigures {
            layers: self.layers.len(),
            compressed_bytes: self.layers.iter().map(|layer| layer.bytes).sum(),
            archive_bytes: self.layers.iter().map(|layer| layer.archive_bytes).sum(),
        }
    }
}
