//! An OCI image layout to read from: a directory, or an archive of one.
//!
//! `index.json` names images by annotation, `blobs/<algorithm>/<digest>` has everything. Never writes; see
//! `oci_sink.rs` for that.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use oci_spec::image::{Descriptor, Digest, ImageIndex, OciLayout as LayoutFile};

use super::document::{self, verified};
use super::error::DocumentName;
use super::files::Files;
use super::{ImageSource, Platform, SourceError, SourceImage};

/// The layout's marker, its version, its table of contents.
pub(super) const LAYOUT_FILE: &str = "oci-layout";
pub(super) const LAYOUT_VERSION: &str = "1.0.0";
pub(super) const INDEX_FILE: &str = "index.json";
/// The annotation that gives an entry of the index its name.
pub(super) const REF_NAME: &str = "org.opencontainers.image.ref.name";

#[derive(Debug)]
pub(super) struct OciLayout<F> {
    place: PathBuf,
    files: F,
    tag: Option<String>,
}

impl<F: Files> OciLayout<F> {
    pub(super) fn open(place: &Path, files: F, tag: Option<String>) -> Result<Self, SourceError> {
        let marker = files.document(place, LAYOUT_FILE)?;
        let marker = marker.ok_or_else(|| not_a_layout(place, LAYOUT_FILE))?;
        let marker: LayoutFile = document::parse(&marker, &DocumentName::File(place.join(LAYOUT_FILE)))?;
        if marker.image_layout_version() != LAYOUT_VERSION {
            return Err(SourceError::LayoutVersion {
                path: place.to_owned(),
                version: marker.image_layout_version().clone(),
            });
        }
        Ok(Self {
            place: place.to_owned(),
            files,
            tag,
        })
    }

    /// The entries of the index that are meant: several of one name are one image for several platforms.
    fn roots(&self, index: &ImageIndex) -> Result<Vec<Descriptor>, SourceError> {
        let all: &[Descriptor] = index.manifests();
        if let Some(tag) = &self.tag {
            let tagged = all.iter().filter(|entry| name_of(entry) == Some(tag));
            let tagged: Vec<_> = tagged.cloned().collect();
            if tagged.is_empty() {
                return Err(SourceError::NoSuchName {
                    path: self.place.clone(),
                    name: tag.clone(),
                    found: names(all),
                });
            }
            return Ok(tagged);
        }
        if let [first, rest @ ..] = all
            && rest.iter().any(|entry| name_of(entry) != name_of(first))
        {
            return Err(SourceError::Ambiguous {
                path: self.place.clone(),
                found: names(all),
            });
        }
        Ok(all.to_vec())
    }
}

fn name_of(entry: &Descriptor) -> Option<&String> {
    entry.annotations().as_ref()?.get(REF_NAME)
}

fn names(entries: &[Descriptor]) -> Vec<String> {
    let mut names: Vec<_> = entries.iter().filter_map(name_of).cloned().collect();
    names.dedup();
    names
}

fn not_a_layout(place: &Path, missing: &'static str) -> SourceError {
    SourceError::NotAnImage {
        path: place.to_owned(),
        expected: "an OCI image layout",
        missing,
    }
}

/// A blob's name in a layout. A digest has neither slashes nor dots after its algorithm.
pub(super) fn blob_name(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm(), digest.digest())
}

impl<F: Files> ImageSource for OciLayout<F> {
    fn image(&self, platform: &Platform) -> Result<SourceImage, SourceError> {
        let index = self.files.document(&self.place, INDEX_FILE)?;
        let index = index.ok_or_else(|| not_a_layout(&self.place, INDEX_FILE))?;
        let index: ImageIndex = document::parse(&index, &DocumentName::File(self.place.join(INDEX_FILE)))?;
        let blob = |descriptor: &Descriptor| self.blob(descriptor);
        match &*self.roots(&index)? {
            [only] => document::resolve(document::fetch(only, &blob)?, platform, &blob),
            several => document::resolve_among(several, platform, &blob),
        }
    }

    fn blob(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send>, SourceError> {
        let digest = descriptor.digest();
        let failed = |source: io::Error| SourceError::Blob {
            digest: digest.clone(),
            source,
        };
        let found = self.files.open(&blob_name(digest)).map_err(failed)?;
        let (content, _) = found.ok_or_else(|| SourceError::MissingBlob {
            digest: digest.clone(),
        })?;
        verified(content, descriptor)
    }
}
