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

impl BlobDir {
    /// A blob's content, of which a file is made as it is read: `done` gets that when all of it was. If it can't be
    /// written, the content is read all the same.
    ///
    /// `content` is checked while it is read: what it ends with, is right.
    pub(crate) fn keeping(
        &self,
        descriptor: &Descriptor,
        content: Box<dyn Read + Send>,
        done: impl FnOnce(NamedTempFile) + Send + 'static,
    ) -> Box<dyn Read + Send> {
        let path = self.path_of(descriptor.digest());
        let parent = path.parent().unwrap_or(&self.path);
        match fs::create_dir_all(parent).and_then(|()| beside(parent)) {
            Ok(file) => Box::new(Keeping {
                content,
                kept: Some((file, done)),
            }),
            Err(error) => {
                tracing::debug!(path = %path.display(), %error, "not kept while it is read");
                content
            }
        }
    }

    /// Gives a file that [`keeping`](Self::keeping) has made its place.
    ///
    /// # Errors
    /// See [`SinkError`].
    pub(crate) fn take(&self, descriptor: &Descriptor, file: NamedTempFile) -> Result<(), SinkError> {
        let path = self.path_of(descriptor.digest());
        persist(file, &path).map_err(|source| write_error(&path, source))
    }
}

/// Content that is written down as it passes.
struct Keeping<F> {
    content: Box<dyn Read + Send>,
    /// Until all of it was read, or it could not be written.
    kept: Option<(NamedTempFile, F)>,
}

impl<F: FnOnce(NamedTempFile)> Read for Keeping<F> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let got = self.content.read(buf)?;
        if let Some((mut file, done)) = self.kept.take_if(|_| !buf.is_empty()) {
            match file.as_file_mut().write_all(&buf[..got]) {
                Ok(()) if got == 0 => done(file),
                Ok(()) => self.kept = Some((file, done)),
                Err(error) => {
                    tracing::debug!(path = %file.path().display(), %error, "not kept while it is read");
                }
            }
        }
        Ok(got)
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

/// A file in `parent` that [`persist`] gives its name.
///
/// # Errors
/// What the file system said.
pub(crate) fn beside(parent: &Path) -> io::Result<NamedTempFile> {
    use std::os::unix::fs::PermissionsExt;
    tempfile::Builder::new()
        .prefix(PARTIAL_PREFIX)
        // As other tools make them, within the umask: a layout is for whoever may read its directory.
        .permissions(fs::Permissions::from_mode(0o666))
        .tempfile_in(parent)
}

/// Syncs a file, and gives it its name in the same directory.
///
/// # Errors
/// What the file system said.
pub(crate) fn persist(file: NamedTempFile, path: &Path) -> io::Result<()> {
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::sync::mpsc;

    use oci_spec::image::MediaType;

    use super::super::sha256_of;
    use super::*;

    const CONTENT: &[u8] = b"what a blob has";

    fn descriptor() -> Descriptor {
        Descriptor::new(MediaType::ImageLayer, CONTENT.len() as u64, sha256_of(CONTENT))
    }

    #[test]
    fn of_what_is_read_to_its_end_there_is_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = BlobDir::new(dir.path().join("blobs"));
        let (done, files) = mpsc::channel();
        let mut reader = blobs.keeping(&descriptor(), Box::new(CONTENT), move |file| {
            done.send(file).unwrap();
        });
        let mut some = [0; 4];
        reader.read_exact(&mut some).unwrap();
        assert_eq!(reader.read(&mut []).unwrap(), 0);
        assert!(files.try_recv().is_err());
        let mut rest = Vec::new();
        reader.read_to_end(&mut rest).unwrap();
        assert_eq!([&some, rest.as_slice()].concat(), CONTENT);
        assert!(!blobs.has(&descriptor()).unwrap());
        blobs.take(&descriptor(), files.recv().unwrap()).unwrap();
        assert!(blobs.has(&descriptor()).unwrap());
        assert_eq!(fs::read(blobs.path_of(descriptor().digest())).unwrap(), CONTENT);
        assert_eq!(reader.read(&mut some).unwrap(), 0);
    }

    #[test]
    fn of_what_is_read_in_part_nothing_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = BlobDir::new(dir.path().to_owned());
        blobs
            .keeping(&descriptor(), Box::new(CONTENT), |_| panic!("not all was read"))
            .read_exact(&mut [0; 5])
            .unwrap();
        assert_eq!(fs::read_dir(dir.path().join("sha256")).unwrap().count(), 0);
    }

    #[test]
    fn what_cannot_be_kept_is_read_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let mut read = Vec::new();
        // There is a file where the directory should be.
        fs::write(dir.path().join("sha256"), "").unwrap();
        BlobDir::new(dir.path().to_owned())
            .keeping(&descriptor(), Box::new(CONTENT), |_| panic!("nowhere to keep it"))
            .read_to_end(&mut read)
            .unwrap();
        assert_eq!(read, CONTENT);
        // Or the disk is full.
        let full = File::options().write(true).open("/dev/full").unwrap();
        let nowhere = NamedTempFile::new_in(dir.path()).unwrap().into_temp_path();
        let mut reader = Keeping {
            content: Box::new(CONTENT),
            kept: Some((NamedTempFile::from_parts(full, nowhere), |_: NamedTempFile| {
                panic!("it is not whole")
            })),
        };
        read.clear();
        reader.read_to_end(&mut read).unwrap();
        assert_eq!(read, CONTENT);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
