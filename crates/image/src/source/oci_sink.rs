//! An OCI image layout that is written to.
//!
//! Blobs are written beside their place and renamed when they were found right, so that what is under a
//! digest has it. `index.json` is replaced as a whole, under a lock, last. Never removes a blob.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use oci_spec::image::{Descriptor, Digest, ImageIndex, MediaType, SCHEMA_VERSION};
use rustix::fs::{FlockOperation, flock};
use serde_json::json;
use tempfile::NamedTempFile;

use super::digest::Hasher;
use super::oci_layout::{INDEX_FILE, LAYOUT_FILE, LAYOUT_VERSION, REF_NAME, blob_name};
use super::{ImageSink, SinkError, Verified, sha256_of};

const COPY_BUFFER_BYTES: usize = 128 << 10;

/// A layout that takes images.
#[derive(Debug)]
pub struct OciLayoutSink {
    place: PathBuf,
    tag: Option<String>,
}

impl OciLayoutSink {
    /// Opens the layout at `place`, or makes one there. `tag` is the name an image gets when it is published;
    /// without one it replaces the image that has none.
    ///
    /// # Errors
    /// See [`SinkError`].
    pub fn open(place: &Path, tag: Option<&str>) -> Result<Self, SinkError> {
        let sink = Self {
            place: place.to_owned(),
            tag: tag.map(str::to_owned),
        };
        let failed = |source| write_error(place, source);
        match fs::create_dir_all(place) {
            Ok(()) => {}
            // Something other than a directory at its place, or on the way there.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory
                ) =>
            {
                return Err(SinkError::Occupied {
                    path: place.to_owned(),
                });
            }
            Err(error) => return Err(failed(error)),
        }
        // Before the look: somebody else may be making the layout.
        let _lock = sink.lock()?;
        if !place.join(LAYOUT_FILE).is_file() && fs::read_dir(place).map_err(failed)?.next().is_some() {
            return Err(SinkError::Occupied {
                path: place.to_owned(),
            });
        }
        if !place.join(INDEX_FILE).exists() {
            let empty = json!({"schemaVersion": SCHEMA_VERSION, "manifests": []}).to_string();
            sink.replace(INDEX_FILE, |file| file.write_all(empty.as_bytes()))?;
        }
        if !place.join(LAYOUT_FILE).exists() {
            let marker = json!({"imageLayoutVersion": LAYOUT_VERSION}).to_string();
            sink.replace(LAYOUT_FILE, |file| file.write_all(marker.as_bytes()))?;
        }
        Ok(sink)
    }

    /// One writer at a time changes the index; freed when the file is closed.
    fn lock(&self) -> Result<File, SinkError> {
        let failed = |source| write_error(&self.place, source);
        let dir = File::open(&self.place).map_err(failed)?;
        flock(&dir, FlockOperation::LockExclusive).map_err(|errno| failed(errno.into()))?;
        Ok(dir)
    }

    fn index(&self) -> Result<ImageIndex, SinkError> {
        let path = self.place.join(INDEX_FILE);
        let text = fs::read(&path).map_err(|source| write_error(&path, source))?;
        serde_json::from_slice(&text).map_err(|source| SinkError::MalformedIndex { path, source })
    }

    /// Writes a file that is seen whole or not at all.
    fn replace(&self, name: &str, write: impl FnOnce(&mut File) -> io::Result<()>) -> Result<(), SinkError> {
        let path = self.place.join(name);
        let failed = |source| write_error(&path, source);
        let parent = path.parent().unwrap_or(&self.place);
        fs::create_dir_all(parent).map_err(failed)?;
        let mut file = self.beside(parent).map_err(failed)?;
        write(file.as_file_mut()).map_err(failed)?;
        persist(file, &path).map_err(failed)
    }

    fn beside(&self, parent: &Path) -> io::Result<NamedTempFile> {
        use std::os::unix::fs::PermissionsExt;
        tempfile::Builder::new()
            .prefix(".partial-")
            // As other tools make them, within the umask: a layout is for whoever may read its directory.
            .permissions(fs::Permissions::from_mode(0o666))
            .tempfile_in(parent)
    }
}

fn write_error(path: &Path, source: io::Error) -> SinkError {
    SinkError::Write {
        path: path.to_owned(),
        source,
    }
}

fn persist(file: NamedTempFile, path: &Path) -> io::Result<()> {
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

impl ImageSink for OciLayoutSink {
    fn has(&self, descriptor: &Descriptor) -> Result<bool, SinkError> {
        Hasher::like(descriptor.digest())?;
        let path = self.place.join(blob_name(descriptor.digest()));
        match fs::metadata(&path) {
            Ok(meta) => Ok(meta.is_file() && meta.len() == descriptor.size()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(write_error(&path, source)),
        }
    }

    fn put(&self, descriptor: &Descriptor, content: &mut (dyn Read + Send)) -> Result<(), SinkError> {
        if self.has(descriptor)? {
            return Ok(());
        }
        let digest = descriptor.digest();
        let path = self.place.join(blob_name(digest));
        let failed = |source| write_error(&path, source);
        let parent = path.parent().unwrap_or(&self.place);
        fs::create_dir_all(parent).map_err(failed)?;
        let mut file = self.beside(parent).map_err(failed)?;
        let mut content = Verified::new(content, descriptor)?;
        let mut buf = vec![0; COPY_BUFFER_BYTES];
        loop {
            // Apart from each other, because it matters whose fault it is.
            match content.read(&mut buf) {
                Ok(0) => break,
                Ok(got) => file.write_all(&buf[..got]).map_err(failed)?,
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

    fn put_manifest(&self, bytes: &[u8], media_type: &MediaType) -> Result<Digest, SinkError> {
        let digest = sha256_of(bytes);
        let descriptor = Descriptor::new(media_type.clone(), bytes.len() as u64, digest.clone());
        self.put(&descriptor, &mut &*bytes)?;
        Ok(digest)
    }

    fn publish(&self, bytes: &[u8], media_type: &MediaType) -> Result<Digest, SinkError> {
        let digest = self.put_manifest(bytes, media_type)?;
        let mut entry = Descriptor::new(media_type.clone(), bytes.len() as u64, digest.clone());
        let annotation = |tag: &String| [(REF_NAME.to_owned(), tag.clone())].into();
        entry.set_annotations(self.tag.as_ref().map(annotation));
        let _lock = self.lock()?;
        let mut index = self.index()?;
        let name = |entry: &Descriptor| entry.annotations().as_ref()?.get(REF_NAME).cloned();
        let mut entries = index.manifests().clone();
        entries.retain(|entry| name(entry) != self.tag);
        entries.push(entry);
        index.set_manifests(entries);
        let text = serde_json::to_vec(&index).expect("an index has nothing that JSON does not");
        self.replace(INDEX_FILE, |file| file.write_all(&text))?;
        Ok(digest)
    }
}
