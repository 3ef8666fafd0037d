//! What the ecosystem hands a runtime: a containerd mount, with an image described in one of two options.
//!
//! [`RootfsMount::plan`] is the one entry point. Which option counts is decided here, as Kata decides it:
//! - an option `io.katacontainers.volume=` wins over the mount's type and over `extraoption=`, which is then not read;
//! - else the type must be nydus' ([`nydus_helper`]) and exactly one `extraoption=` must be there;
//! - volumes are either one `image_nydus_fs`, or `layer_nydus_fs` one for each layer, topmost first, as overlayfs
//!   orders its `lowerdir`. All name the same snapshot, since a container has one.
//!
//! No error here has a byte of an option's value in it. The options are read by [`parse_extra_option`] and
//! [`parse_virtual_volume`].

mod document;
mod extra_option;
#[cfg(test)]
mod fixtures;
mod mount_type;
mod rafs_config;
mod rafs_image;
mod virtual_volume;

use std::fmt;

use serde::Deserialize;

use crate::HostPath;
use crate::overlay_option::{OverlayOption, split, unescape};

pub use document::{DocumentError, MAX_OPTION_LEN};
pub use extra_option::{ExtraOptionError, parse_extra_option};
pub use mount_type::{HELPER_NAME, nydus_helper};
pub use rafs_config::{RafsConfig, RafsConfigError, RafsConfigVersion};
pub use rafs_image::{BOOTSTRAP_HEADER_LEN, RafsImage, RafsImageError, RafsVersion, RafsVersionError};
pub use virtual_volume::{VirtualVolume, VirtualVolumeError, VolumeType, parse_virtual_volume};

/// A root file system's mount as containerd describes it. Its options hold credentials: `Debug` counts them only.
#[derive(Clone, PartialEq, Eq, Deserialize)]
pub struct RootfsMount {
    /// The mount's type, such as `fuse.nydus-overlayfs`.
    #[serde(rename = "type", default)]
    pub mount_type: String,
    /// What is mounted; `overlay` here.
    #[serde(default)]
    pub source: String,
    /// The options, one an item.
    #[serde(default)]
    pub options: Vec<String>,
}

impl fmt::Debug for RootfsMount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RootfsMount")
            .field("mount_type", &self.mount_type)
            .field("source", &self.source)
            .field("options", &self.options.len())
            .finish()
    }
}

/// Why a mount cannot be made from images.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RootfsMountError {
    /// Neither a nydus mount type nor a volume.
    #[error(
        "mount type {mount_type:?} is not nydus' (fuse.nydus-overlayfs, or fuse. and the helper's path) and no \
         option io.katacontainers.volume is given"
    )]
    NotNydus {
        /// The type.
        mount_type: String,
    },
    /// The type is nydus', and nothing says which image.
    #[error("the mount has neither an option extraoption nor io.katacontainers.volume")]
    NoImage,
    /// Which one counts would be a guess.
    #[error("the mount has the option {option} {count} times")]
    Repeated {
        /// The option's key.
        option: &'static str,
        /// How often.
        count: usize,
    },
    /// An image is one volume; it has no layers beside it.
    #[error("the mount has a volume image_nydus_fs and {others} volumes beside it")]
    ImageWithOthers {
        /// The number of the other volumes.
        others: usize,
    },
    /// The layers would be written to in several places.
    #[error("the layers of the mount name different snapshot directories")]
    SnapshotDirs,
    /// The `extraoption` is refused.
    #[error(transparent)]
    ExtraOption(#[from] ExtraOptionError),
    /// A volume is refused.
    #[error(transparent)]
    VirtualVolume(#[from] VirtualVolumeError),
}

/// Which option described the images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageOrigin {
    /// `extraoption=`.
    ExtraOption,
    /// `io.katacontainers.volume=`.
    VirtualVolume,
}

/// What a mount asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootfsPlan {
    images: Vec<RafsImage>,
    origin: ImageOrigin,
    lowerdirs: Vec<String>,
    upperdir: Option<String>,
    workdir: Option<String>,
    options: Vec<String>,
}

impl RootfsPlan {
    /// The images to mount, at least one; several are layers, topmost first.
    #[must_use]
    pub fn images(&self) -> &[RafsImage] {
        &self.images
    }

    /// Which option described them.
    #[must_use]
    pub fn origin(&self) -> ImageOrigin {
        self.origin
    }

    /// The snapshot's directory, with `fs` and `work` in it; all images have the same.
    #[must_use]
    pub fn snapshot_dir(&self) -> &HostPath {
        self.images[0].snapshot_dir()
    }

    /// The overlay's lower directories on the host, topmost first. A VM doesn't need them: its lower is the image.
    #[must_use]
    pub fn lowerdirs(&self) -> &[String] {
        &self.lowerdirs
    }

    /// The overlay's upper directory on the host; a read-only view has none.
    #[must_use]
    pub fn upperdir(&self) -> Option<&str> {
        self.upperdir.as_deref()
    }

    /// overlayfs' scratch directory on the host.
    #[must_use]
    pub fn workdir(&self) -> Option<&str> {
        self.workdir.as_deref()
    }

    /// The options that are none of these, in their order.
    #[must_use]
    pub fn options(&self) -> &[String] {
        &self.options
    }
}

impl RootfsMount {
    /// Reads the mount.
    ///
    /// # Errors
    /// [`RootfsMountError`] when no image is described, or more than one way, or one that can't be served.
    pub fn plan(&self) -> Result<RootfsPlan, RootfsMountError> {
        let mut lowers = Vec::new();
        let mut uppers = Vec::new();
        let mut works = Vec::new();
        let mut extras = Vec::new();
        let mut volumes = Vec::new();
        let mut options = Vec::new();
        for option in &self.options {
            match OverlayOption::of(option) {
                OverlayOption::Lowerdir(dirs) => lowers.push(dirs),
                OverlayOption::Upperdir(dir) => uppers.push(dir),
                OverlayOption::Workdir(dir) => works.push(dir),
                OverlayOption::ExtraOption(value) => extras.push(value),
                OverlayOption::VirtualVolume(value) => volumes.push(value),
                OverlayOption::Other(other) => options.push(other.to_owned()),
            }
        }
        let (images, origin) = if volumes.is_empty() {
            if nydus_helper(&self.mount_type).is_none() {
                return Err(RootfsMountError::NotNydus {
                    mount_type: self.mount_type.clone(),
                });
            }
            let extra = at_most_one("extraoption", &extras)?.ok_or(RootfsMountError::NoImage)?;
            (vec![parse_extra_option(extra)?], ImageOrigin::ExtraOption)
        } else {
            (images_of(&volumes)?, ImageOrigin::VirtualVolume)
        };
        let lowerdirs = at_most_one("lowerdir", &lowers)?;
        Ok(RootfsPlan {
            images,
            origin,
            lowerdirs: lowerdirs.map_or_else(Vec::new, |dirs| split(dirs, ':').map(unescape).collect()),
            upperdir: at_most_one("upperdir", &uppers)?.map(unescape),
            workdir: at_most_one("workdir", &works)?.map(unescape),
            options,
        })
    }
}

fn images_of(values: &[&str]) -> Result<Vec<RafsImage>, RootfsMountError> {
    let mut images = Vec::with_capacity(values.len());
    for value in values {
        match parse_virtual_volume(value)? {
            VirtualVolume::Image(image) if values.len() == 1 => images.push(image),
            VirtualVolume::Image(_) => {
                return Err(RootfsMountError::ImageWithOthers {
                    others: values.len() - 1,
                });
            }
            VirtualVolume::Layer(image) => images.push(image),
        }
    }
    let one_snapshot = images
        .windows(2)
        .all(|pair| pair[0].snapshot_dir() == pair[1].snapshot_dir());
    if one_snapshot {
        Ok(images)
    } else {
        Err(RootfsMountError::SnapshotDirs)
    }
}

fn at_most_one<'a>(option: &'static str, values: &[&'a str]) -> Result<Option<&'a str>, RootfsMountError> {
    match values {
        [] => Ok(None),
        [value] => Ok(Some(value)),
        _ => Err(RootfsMountError::Repeated {
            option,
            count: values.len(),
        }),
    }
}

#[cfg(test)]
mod tests;
