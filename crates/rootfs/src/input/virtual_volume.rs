//! `io.katacontainers.volume=`: Kata's `KataVirtualVolume`, a superset of `extraoption`.
//!
//! All eight types are known by name. The two that are RAFS file systems are read into images; the others need what
//! a file-system daemon can't give, and the refusal says what.

use serde::Deserialize;

use super::document::{DocumentError, decode};
use super::rafs_image::{Fields, RafsImage, RafsImageError};

/// `volume_type`, as Kata names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VolumeType {
    /// A block device given to the VM and mounted there.
    DirectBlock,
    /// The image as one block device.
    ImageRawBlock,
    /// A layer as a block device.
    LayerRawBlock,
    /// The image as a nydus block device.
    ImageNydusBlock,
    /// A layer as a nydus block device.
    LayerNydusBlock,
    /// The image as a RAFS file system.
    ImageNydusFs,
    /// A layer as a RAFS file system.
    LayerNydusFs,
    /// The guest pulls the image itself.
    ImageGuestPull,
}

impl VolumeType {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::DirectBlock,
        Self::ImageRawBlock,
        Self::LayerRawBlock,
        Self::ImageNydusBlock,
        Self::LayerNydusBlock,
        Self::ImageNydusFs,
        Self::LayerNydusFs,
        Self::ImageGuestPull,
    ];

    /// The name in `volume_type`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::DirectBlock => "direct_block",
            Self::ImageRawBlock => "image_raw_block",
            Self::LayerRawBlock => "layer_raw_block",
            Self::ImageNydusBlock => "image_nydus_block",
            Self::LayerNydusBlock => "layer_nydus_block",
            Self::ImageNydusFs => "image_nydus_fs",
            Self::LayerNydusFs => "layer_nydus_fs",
            Self::ImageGuestPull => "image_guest_pull",
        }
    }

    fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }

    /// What such a volume needs instead of a daemon; `None` for the two that are served here.
    #[must_use]
    pub fn needs(self) -> Option<&'static str> {
        match self {
            Self::ImageNydusFs | Self::LayerNydusFs => None,
            Self::DirectBlock => {
                Some("a block device that the runtime hot-plugs; a file-system daemon cannot serve it")
            }
            Self::ImageRawBlock | Self::LayerRawBlock => Some(
                "a disk image that the runtime attaches; for RAFS, set the snapshotter's `fs_driver` to \
                 \"fusedev\" and disable its `experimental.tarfs`",
            ),
            Self::ImageNydusBlock | Self::LayerNydusBlock => Some(
                "an EROFS block device in the guest; for a file system, send image_nydus_fs or layer_nydus_fs",
            ),
            Self::ImageGuestPull => Some(
                "an agent that pulls the image in the guest; for RAFS, set the snapshotter's `fs_driver` to \
                 \"fusedev\" instead of \"proxy\"",
            ),
        }
    }
}

/// Why a `KataVirtualVolume` is refused. Nothing of its content is part of it: the configuration holds credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VirtualVolumeError {
    /// Not a JSON object in base64.
    #[error("io.katacontainers.volume cannot be read")]
    Document(#[source] DocumentError),
    /// No `volume_type`.
    #[error("io.katacontainers.volume lacks `volume_type`")]
    NoType,
    /// A `volume_type` Kata doesn't define.
    #[error("io.katacontainers.volume has a `volume_type` that is none of the eight of KataVirtualVolume")]
    UnknownType,
    /// A type that isn't a file system served by a daemon.
    #[error(
        "io.katacontainers.volume is of type {}, which needs {}",
        kind.as_str(),
        kind.needs().unwrap_or("no other program")
    )]
    NotServed {
        /// The type.
        kind: VolumeType,
    },
    /// A field is missing or unusable.
    #[error("io.katacontainers.volume of type {} describes no image", kind.as_str())]
    Image {
        /// The type.
        kind: VolumeType,
        /// What is wrong.
        #[source]
        source: RafsImageError,
    },
}

/// A volume that is served here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VirtualVolume {
    /// `image_nydus_fs`: the whole image.
    Image(RafsImage),
    /// `layer_nydus_fs`: one layer of it.
    Layer(RafsImage),
}

#[derive(Deserialize)]
struct KataVirtualVolume {
    volume_type: Option<String>,
    source: Option<String>,
    fs_type: Option<String>,
    nydus_image: Option<NydusImageVolume>,
}

#[derive(Deserialize)]
struct NydusImageVolume {
    config: Option<String>,
    snapshot_dir: Option<String>,
}

/// Reads the value of one `io.katacontainers.volume=`.
///
/// # Errors
/// [`VirtualVolumeError`], without anything of the value but the name of a known type.
pub fn parse_virtual_volume(value: &str) -> Result<VirtualVolume, VirtualVolumeError> {
    let volume: KataVirtualVolume = decode(value).map_err(VirtualVolumeError::Document)?;
    let name = volume.volume_type.ok_or(VirtualVolumeError::NoType)?;
    let kind = VolumeType::named(&name).ok_or(VirtualVolumeError::UnknownType)?;
    if kind.needs().is_some() {
        return Err(VirtualVolumeError::NotServed { kind });
    }
    let refused = |source| VirtualVolumeError::Image { kind, source };
    let nydus = volume
        .nydus_image
        .ok_or_else(|| refused(RafsImageError::Missing { field: "nydus_image" }))?;
    let image = RafsImage::from_fields(Fields {
        source: volume.source,
        config: nydus.config,
        snapshot_dir: ("snapshot_dir", nydus.snapshot_dir),
        version: ("fs_type", volume.fs_type),
        versions: ["rafsv5", "rafsv6"],
    })
    .map_err(refused)?;
    Ok(if kind == VolumeType::LayerNydusFs {
        VirtualVolume::Layer(image)
    } else {
        VirtualVolume::Image(image)
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::input::RafsVersion;
    use crate::input::fixtures::{self, encoded, without};
    use serde_json::json;

    #[test]
    fn the_two_file_system_types_are_read_whole() {
        let VirtualVolume::Image(image) =
            parse_virtual_volume(&encoded(&fixtures::volume("image_nydus_fs"))).unwrap()
        else {
            panic!("a layer");
        };
        assert_eq!(image.source().as_str(), fixtures::BOOTSTRAP);
        assert_eq!(image.snapshot_dir().as_str(), fixtures::SNAPSHOT_DIR);
        assert_eq!(image.config().expose(), fixtures::config_v1());
        assert_eq!(image.version(), RafsVersion::V6);
        let mut layer = fixtures::volume("layer_nydus_fs");
        layer["fs_type"] = json!("rafsv5");
        let VirtualVolume::Layer(image) = parse_virtual_volume(&encoded(&layer)).unwrap() else {
            panic!("an image");
        };
        assert_eq!(image.version(), RafsVersion::V5);
    }

    #[test]
    fn every_field_is_needed() {
        let kind = VolumeType::ImageNydusFs;
        let refused = |volume| parse_virtual_volume(&encoded(&volume)).unwrap_err();
        for field in ["source", "fs_type", "nydus_image"] {
            let error = refused(without(fixtures::volume("image_nydus_fs"), field));
            assert_eq!(
                error,
                VirtualVolumeError::Image {
                    kind,
                    source: RafsImageError::Missing { field }
                }
            );
        }
        for field in ["config", "snapshot_dir"] {
            let mut volume = fixtures::volume("image_nydus_fs");
            volume["nydus_image"] = without(volume["nydus_image"].clone(), field);
            let error = refused(volume);
            assert_eq!(
                error,
                VirtualVolumeError::Image {
                    kind,
                    source: RafsImageError::Missing { field }
                }
            );
        }
        assert_eq!(
            refused(without(fixtures::volume("x"), "volume_type")),
            VirtualVolumeError::NoType
        );
        assert_eq!(
            refused(fixtures::volume("image_nydus")),
            VirtualVolumeError::UnknownType
        );
        let mut v6 = fixtures::volume("image_nydus_fs");
        v6["fs_type"] = json!("v6");
        assert!(matches!(
            refused(v6),
            VirtualVolumeError::Image {
                source: RafsImageError::Version { field: "fs_type", .. },
                ..
            }
        ));
    }

    /// As the snapshotter (Go, `omitempty`) and Kata (`force_guest_pull`) write them.
    #[test]
    fn the_other_types_are_refused_by_name_with_what_they_need() {
        let verity = json!({"hashtype": "sha256", "hash": "9d".repeat(32), "blocknum": 16384, "blocksize": 512,
            "hashsize": 4096, "offset": 8_388_608});
        for (name, volume) in [
            (
                "direct_block",
                json!({"volume_type": "direct_block", "source": "/dev/sdb", "fs_type": "ext4",
                "options": ["rw"], "direct_volume": {"metadata": {"key": "value"}}}),
            ),
            (
                "image_raw_block",
                json!({"volume_type": "image_raw_block", "source": "/t/image.disk",
                "fs_type": "erofs", "options": ["ro"], "dm_verity": verity}),
            ),
            (
                "layer_raw_block",
                json!({"volume_type": "layer_raw_block", "source": "/t/layer.disk",
                "fs_type": "erofs", "options": ["ro"]}),
            ),
            ("image_nydus_block", fixtures::volume("image_nydus_block")),
            ("layer_nydus_block", fixtures::volume("layer_nydus_block")),
            ("image_guest_pull", json!({"volume_type": "image_guest_pull"})),
        ] {
            let error = parse_virtual_volume(&encoded(&volume)).unwrap_err();
            assert!(
                matches!(error, VirtualVolumeError::NotServed { kind } if kind.as_str() == name),
                "{error:?}"
            );
            assert!(
                error.to_string().contains(&format!("type {name}, which needs a")),
                "{error}"
            );
        }
    }
}
