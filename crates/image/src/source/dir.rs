//! What skopeo writes to `dir:`: `manifest.json`, and every blob under the hexadecimal part of its digest.
//!
//! Never writes. An image for several platforms, which `skopeo copy --all` writes, is read as well.

use std::io::Read;
use std::path::{Path, PathBuf};

use oci_spec::image::Descriptor;

use super::document::{self, Document, verified};
use super::files::{Directory, Files};
use super::{ImageSource, Platform, SourceError, SourceImage};

const MANIFEST_FILE: &str = "manifest.json";

#[derive(Debug)]
pub(super) struct Dir {
    place: PathBuf,
    files: Directory,
    manifest: Vec<u8>,
}

impl Dir {
    pub(super) fn open(place: &Path) -> Result<Self, SourceError> {
        let files = Directory::new(place);
        let manifest = files.document(place, MANIFEST_FILE)?;
        let manifest = manifest.ok_or_else(|| SourceError::NotAnImage {
            path: place.to_owned(),
            expected: "an image directory of skopeo",
            missing: MANIFEST_FILE,
        })?;
        Ok(Self {
            place: place.to_owned(),
            files,
            manifest,
        })
    }
}

impl ImageSource for Dir {
    fn image(&self, platform: &Platform) -> Result<SourceImage, SourceError> {
        let root = Document::named(self.manifest.clone(), None);
        document::resolve(root, platform, &|descriptor| self.blob(descriptor))
    }

    fn blob(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send>, SourceError> {
        let digest = descriptor.digest();
        let hex = digest.digest();
        for name in [hex.to_owned(), format!("{hex}.manifest.json")] {
            let opened = self.files.open(&name).map_err(|source| SourceError::Unreadable {
                path: self.place.join(&name),
                source,
            })?;
            if let Some((content, _)) = opened {
                return verified(content, descriptor);
            }
        }
        Err(SourceError::MissingBlob {
            digest: digest.clone(),
        })
    }
}
