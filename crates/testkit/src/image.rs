//! Test images made by the genuine nydus-image, and the configurations and mount bodies they need.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

/// The format of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RafsVersion {
    /// RAFS v5.
    V5,
    /// RAFS v6.
    V6,
    /// RAFS v6, with the digest of each chunk beside the blob's table of chunks.
    V6Digests,
}

impl RafsVersion {
    fn argument(self) -> &'static str {
        match self {
            Self::V5 => "5",
            Self::V6 | Self::V6Digests => "6",
        }
    }

    fn features(self) -> &'static [&'static str] {
        match self {
            Self::V5 | Self::V6 => &[],
            Self::V6Digests => &["--features", "blob-toc"],
        }
    }
}

/// An image on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The metadata.
    pub bootstrap: PathBuf,
    /// Where the data blobs are, each named by its id.
    pub blobs: PathBuf,
}

/// Builds an image of `source` in `out` (which is created): zstd, chunks of 1 MiB.
///
/// # Errors
/// [`io::ErrorKind::Other`] with the builder's output if it failed.
pub fn build(nydus_image: &Path, source: &Path, out: &Path, version: RafsVersion) -> io::Result<Image> {
    build_with_prefetch(nydus_image, source, out, version, &[])
}

/// As [`build`], with a table of what is to be prefetched: paths within the image.
///
/// # Errors
/// As [`build`].
pub fn build_with_prefetch(
    nydus_image: &Path,
    source: &Path,
    out: &Path,
    version: RafsVersion,
    prefetch: &[&str],
) -> io::Result<Image> {
    let image = Image {
        bootstrap: out.join("bootstrap"),
        blobs: out.join("blobs"),
    };
    fs::create_dir_all(&image.blobs)?;
    let policy = if prefetch.is_empty() { "none" } else { "fs" };
    let mut command = Command::new(nydus_image);
    command
        .args([
            "create",
            "--log-level",
            "warn",
            "--compressor",
            "zstd",
            "--chunk-size",
            "0x100000",
        ])
        .args(version.features())
        .args(["--prefetch-policy", policy])
        .args(["--fs-version", version.argument(), "--bootstrap"])
        .arg(&image.bootstrap)
        .arg("--blob-dir")
        .arg(&image.blobs)
        .arg(source)
        .current_dir(out);
    // The builder reads the names from its standard input.
    let names = out.join("prefetch");
    fs::write(&names, prefetch.join("\n"))?;
    run(command.stdin(fs::File::open(&names)?))?;
    Ok(image)
}

/// Runs a builder to its end.
pub(crate) fn run(command: &mut Command) -> io::Result<()> {
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    Err(io::Error::other(format!(
        "{} ended with {}:\n{out}\n{err}",
        command.get_program().display(),
        output.status
    )))
}

/// A daemon configuration with blobs in a local directory.
pub fn rafs_config_localfs(blob_dir: &Path, cache_dir: &Path) -> String {
    config(
        &json!({"type": "localfs", "localfs": {"dir": blob_dir}}),
        cache_dir,
    )
}

/// A daemon configuration with blobs behind HTTP at `addr` (`127.0.0.1:port`), under `/blobs/`.
pub fn rafs_config_http_proxy(addr: &str, cache_dir: &Path) -> String {
    let proxy =
        json!({"addr": format!("http://{addr}"), "path": "/blobs", "timeout": 60, "connect_timeout": 5});
    config(&json!({"type": "http-proxy", "http-proxy": proxy}), cache_dir)
}

/// A daemon configuration with blobs in a plain-http registry at `addr`, in repository `repo`.
pub fn rafs_config_registry(addr: &str, repo: &str, cache_dir: &Path) -> String {
    let registry = json!({"scheme": "http", "host": addr, "repo": repo, "timeout": 60, "connect_timeout": 5});
    config(&json!({"type": "registry", "registry": registry}), cache_dir)
}

fn config(backend: &serde_json::Value, cache_dir: &Path) -> String {
    json!({
        "version": 2,
        "id": cache_dir,
        "backend": backend,
        "cache": {"type": "blobcache", "filecache": {"work_dir": cache_dir}},
        "rafs": {"mode": "direct", "enable_xattr": true, "prefetch": {"enable": false}},
    })
    .to_string()
}

/// The same configuration with reads of RAFS v5 not widened to neighbouring chunks. nydusd 2.2.0 sends
/// the widened data to the guest, finds no room for it, and answers EIO to small cold reads.
pub fn without_read_amplification(config: &str) -> String {
    let mut value: serde_json::Value = serde_json::from_str(config).unwrap_or_default();
    value["rafs"]["batch_size"] = 0.into();
    value["rafs"]["prefetch"]["batch_size"] = 0.into();
    value.to_string()
}

/// The body of `POST /api/v1/mount`.
pub fn mount_body(fs_type: &str, source: &Path, config: &str) -> String {
    json!({"fs_type": fs_type, "source": source, "config": config}).to_string()
}

/// The body that mounts a host directory.
pub fn passthrough_body(source: &Path) -> String {
    mount_body("passthrough_fs", source, "")
}
