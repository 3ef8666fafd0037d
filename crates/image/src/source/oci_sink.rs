//! An OCI image layout that is written to.
//!
//! Blobs are written by `blob_dir.rs`, so that what is under a digest has it. `index.json` is replaced as a whole,
//! under a lock, last. Never removes a blob.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use oci_spec::image::{Descriptor, Digest, ImageIndex, MediaType, SCHEMA_VERSION};
use rustix::fs::{FlockOperation, flock};
use serde_json::json;

use super::blob_dir::{BlobDir, PARTIAL_PREFIX, replace, write_error};
use super::oci_layout::{INDEX_FILE, LAYOUT_FILE, LAYOUT_VERSION, REF_NAME};
use super::{BlobContent, ImageSink, Put, SinkError};

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
        if !place.join(LAYOUT_FILE).is_file() {
            if sink.is_strangers().map_err(failed)? {
                return Err(SinkError::Occupied {
                    path: place.to_owned(),
                });
            }
            // First, because it is what a layout is known by, should we be killed now.
            let marker = json!({"imageLayoutVersion": LAYOUT_VERSION}).to_string();
            sink.replace(LAYOUT_FILE, &marker)?;
        }
        if !place.join(INDEX_FILE).exists() {
            let empty = json!({"schemaVersion": SCHEMA_VERSION, "manifests": []}).to_string();
            sink.replace(INDEX_FILE, &empty)?;
        }
        Ok(sink)
    }

    /// Whether there is anything that the making of a layout, interrupted, does not leave.
    fn is_strangers(&self) -> io::Result<bool> {
        for entry in fs::read_dir(&self.place)? {
            let name = entry?.file_name();
            let is_partial = name.as_bytes().starts_with(PARTIAL_PREFIX.as_bytes());
            let is_index = name == INDEX_FILE && self.index().is_ok_and(|index| index.manifests().is_empty());
            if !is_partial && !is_index {
                return Ok(true);
            }
        }
        Ok(false)
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

    fn blobs(&self) -> BlobDir {
        BlobDir::new(self.place.join("blobs"))
    }

    fn replace(&self, name: &str, text: &str) -> Result<(), SinkError> {
        let path = self.place.join(name);
        replace(&path, |file| file.write_all(text.as_bytes())).map_err(|source| write_error(&path, source))
    }
}

impl ImageSink for OciLayoutSink {
    fn has(&self, descriptor: &Descriptor) -> Result<bool, SinkError> {
        self.blobs().has(descriptor)
    }

    fn put(&self, descriptor: &Descriptor, content: &dyn BlobContent) -> Result<Put, SinkError> {
        self.blobs().put(descriptor, content)
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
        let text = serde_json::to_string(&index).expect("an index has nothing that JSON does not");
        self.replace(INDEX_FILE, &text)?;
        Ok(digest)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_layout_whose_making_was_interrupted_is_made_and_what_is_anothers_is_not_taken() {
        let empty = r#"{"schemaVersion": 2, "manifests": []}"#;
        for (files, is_ours) in [
            (&[(".partial-a", "")][..], true),
            (&[(".partial-a", "{"), (INDEX_FILE, empty)], true),
            (&[(LAYOUT_FILE, r#"{"imageLayoutVersion": "1.0.0"}"#)], true),
            (&[(INDEX_FILE, "{}")], false),
            (&[(INDEX_FILE, empty), ("notes", "")], false),
            (&[("partial-a", "")], false),
        ] {
            let dir = tempfile::tempdir().unwrap();
            for (name, text) in files {
                fs::write(dir.path().join(name), text).unwrap();
            }
            let opened = OciLayoutSink::open(dir.path(), None);
            if is_ours {
                opened.unwrap().publish(b"{}", &MediaType::ImageManifest).unwrap();
            } else {
                assert!(matches!(opened, Err(SinkError::Occupied { .. })), "{files:?}");
                assert_eq!(fs::read_dir(dir.path()).unwrap().count(), files.len());
            }
        }
    }
}
