//! What is read of images, layers and registries.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use nydusbox_image::{FsVersion, fuzzing};
use tempfile::TempDir;

use crate::calm::calm;

/// A bootstrap, as `image inspect`, `check`, `diff`, `optimize` and `convert --chunk-dict` read it.
pub fn bootstrap(data: &[u8]) {
    calm();
    let Ok((_file, path)) = in_memory(data) else {
        return;
    };
    fuzzing::bootstrap(&path, &blobs(), &scratch().join("bootstrap"));
}

/// A layer. The first byte says of which version its blob is to be.
pub fn layer(data: &[u8]) {
    calm();
    let Some((first, archive)) = data.split_first() else {
        return;
    };
    let version = if first % 2 == 0 {
        FsVersion::V6
    } else {
        FsVersion::V5
    };
    fuzzing::layer(archive, version, &scratch().join("layer"));
}

/// A blob whose end is read, and the table of an index: both of the same bytes.
pub fn blob(data: &[u8]) {
    calm();
    if let Ok((file, _)) = in_memory(data) {
        fuzzing::blob(&file);
    }
    // Chunks, contexts and the length of the table; then the table; then the layer.
    let Some((&[chunks, contexts, low, high], rest)) = data.split_first_chunk() else {
        return;
    };
    let length = usize::from(u16::from_le_bytes([low, high])).min(rest.len());
    let (table, layer) = rest.split_at(length);
    fuzzing::index(table, chunks.into(), contexts.into(), layer);
}

/// An archive with an image's bootstrap, or with the image.
pub fn archive(data: &[u8]) {
    calm();
    let scratch = || rustix::fs::memfd_create("bootstrap", rustix::fs::MemfdFlags::CLOEXEC);
    if let (Ok((_file, path)), Ok(scratch)) = (in_memory(data), scratch()) {
        fuzzing::archive(&path, &File::from(scratch));
    }
}

/// Manifests, indices and configurations, each in a line of its own: the answers to one question after the other.
pub fn documents(data: &[u8]) {
    let documents: Vec<&[u8]> = data.split(|byte| *byte == b'\n').collect();
    fuzzing::documents(&documents);
}

/// A trace, `hosts.toml`, docker's `config.json`, what a server asks for, and references: all of the same text.
pub fn registry_texts(data: &[u8]) {
    fuzzing::texts(data, Path::new("/"));
}

/// A file without a name, and the path it can be opened by.
pub(crate) fn in_memory(data: &[u8]) -> io::Result<(File, PathBuf)> {
    let file = rustix::fs::memfd_create("input", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut file = File::from(file);
    file.write_all(data)?;
    let path = Path::new("/proc/self/fd").join(file.as_raw_fd().to_string());
    Ok((file, path))
}

/// A directory for what is made and thrown away.
pub(crate) fn scratch() -> &'static Path {
    static SCRATCH: OnceLock<TempDir> = OnceLock::new();
    SCRATCH
        .get_or_init(|| TempDir::with_prefix("nydusbox-fuzz-").expect("there is room for temporary files"))
        .path()
}

/// Removes it: a value that lasts as long as the process is never dropped.
pub fn clean_up() {
    // What is left of it is in the way of nobody.
    let _removed = std::fs::remove_dir_all(scratch());
}

/// The blobs of the images among the seeds.
pub(crate) fn blobs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("blobs")
}
