//! Blobs as files under their digests: `<algorithm>/<digest>` below one directory.
//!
//! Each is written beside its place and renamed when it was found right, so that what is under a digest has it.
//! Never removes a blob, and knows nothing of images.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use oci_spec::image::{Descriptor, Digest};
use tempfile::NamedTempFile;

use super::digest::Hasher;
use super::{BlobContent, Put, SinkError, Verified, blob_content};

const COPY_BUFFER_BYTES: usize = 128 << 10;
/// What the names of files begin with that are not complete.
pub(crate) const PARTIAL_PREFIX: &str = ".partial-";

/// The directory.
#[derive(Debug, Clone)]
pub(crate) struct BlobDir {
    path: PathBuf,
}

impl BlobDir {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// The place of the blob with this digest. A digest has neither slashes nor dots after its algorithm.
    pub(crate) fn path_of(&self, digest: &Digest) -> PathBuf {
        self.path
            .join(digest.algorithm().to_string())
            .join(digest.digest())
    }

    /// Whether the blob is there, in the length its descriptor says.
    ///
    /// # Errors
    /// See [`SinkError`].
    pub(crate) fn has(&self, descriptor: &Descriptor) -> Result<bool, SinkError> {
        Hasher::like(descriptor.digest())?;
        let path = self.path_of(descriptor.digest());
        match fs::metadata(&path) {
            Ok(meta) => Ok(meta.is_file() && meta.len() == descriptor.size()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(write_error(&path, source)),
        }
    }

    /// Takes a blob, and checks its digest and length on the way. One that is there already is not written again.
    ///
    /// # Errors
    /// See [`SinkError`].
    pub(crate) fn put(&self, descriptor: &Descriptor, content: &dyn BlobContent) -> Result<Put, SinkError> {
        if self.has(descriptor)? {
            return Ok(Put::Present);
        }
        self.write(descriptor, &mut *blob_content::open(descriptor, content)?)?;
        Ok(Put::Written)
    }

    /// The same of content that can be read only once; it is written also if it is there already.
    ///
    /// # Errors
    /// See [`SinkError`].
    pub(crate) fn write(&self, descriptor: &Descriptor, content: &mut dyn Read) -> Result<(), SinkError> {
        let digest = descriptor.digest();
        let path = self.path_of(digest);
        let failed = |source| write_error(&path, source);
        let parent = path.parent().unwrap_or(&self.path);
        fs::create_dir_all(parent).map_err(failed)?;
        let mut file = beside(parent).map_err(failed)?;
        let mut content = Verified::new(content, descriptor)?;
        let mut buf = vec![0; COPY_BUFFER_BYTES];
        loop {
            // Apart from each other, because it matters whose fault it is.
            match content.read(&mut buf) {
                Ok(0) => break,
                // By itself: as a temporary file, it would name its own path beside the blob's.
                Ok(got) => file.as_file_mut().write_all(&buf[..got]).map_err(failed)?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(SinkError::Content {
                        digest: digest.clone(),
                        source,
                    });
                }
            }
        }
        persist(file, &path).map_err(failed)
    }
}

/// Writes a file that is seen whole or not at all; its directory is made if it isn't there.
///
/// # Errors
/// What the file system said.
pub(crate) fn replace(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(parent)?;
    let mut file = beside(parent)?;
    write(file.as_file_mut())?;
    persist(file, path)
}

pub(crate) fn write_error(path: &Path, source: io::Error) -> SinkError {
    SinkError::Write {
        path: path.to_owned(),
        source,
    }
}

fn beside(parent: &Path) -> io::Result<NamedTempFile> {
    use std::os::unix::fs::PermissionsExt;
    tempfile::Builder::new()
        .prefix(PARTIAL_PREFIX)
        // As other tools make them, within the umask: a layout is for whoever may read its directory.
        .permissions(fs::Permissions::from_mode(0o666))
        .tempfile_in(parent)
}

fn persist(file: NamedTempFile, path: &Path) -> io::Result<()> {
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}
