//! The options a snapshotter hands a runtime.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use nydusbox_rootfs::HostPath;
use nydusbox_rootfs::input::{
    ImageOrigin, RafsImage, RafsVersion, RootfsMount, VirtualVolume, nydus_helper, parse_extra_option,
    parse_virtual_volume,
};
use serde_json::json;

/// The value of an `extraoption`, as it is and as what it encodes.
pub fn extra_option(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = parse_extra_option(text);
    }
    let Ok(image) = parse_extra_option(&STANDARD.encode(data)) else {
        return;
    };
    holds(&image);
    let again = json!({
        "source": image.source().as_str(),
        "config": image.config().expose(),
        "snapshotdir": image.snapshot_dir().as_str(),
        "fs_version": image.version().as_str(),
    });
    let again = parse_extra_option(&STANDARD.encode(again.to_string()));
    assert_eq!(again.as_ref(), Ok(&image), "what was read is read again");
}

/// The value of an `io.katacontainers.volume`, as it is and as what it encodes.
pub fn virtual_volume(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = parse_virtual_volume(text);
    }
    let Ok(volume) = parse_virtual_volume(&STANDARD.encode(data)) else {
        return;
    };
    let (kind, image) = match &volume {
        VirtualVolume::Image(image) => ("image_nydus_fs", image),
        VirtualVolume::Layer(image) => ("layer_nydus_fs", image),
    };
    holds(image);
    let again = json!({
        "volume_type": kind,
        "source": image.source().as_str(),
        "fs_type": match image.version() { RafsVersion::V5 => "rafsv5", RafsVersion::V6 => "rafsv6" },
        "nydus_image": {"config": image.config().expose(), "snapshot_dir": image.snapshot_dir().as_str()},
    });
    let again = parse_virtual_volume(&STANDARD.encode(again.to_string()));
    assert_eq!(again.as_ref(), Ok(&volume), "what was read is read again");
}

/// A whole mount: its type in the first line, then an option a line. A line `e:` or `v:` is what an `extraoption` or a
/// volume encodes.
pub fn rootfs_mount(data: &[u8]) {
    let mut lines = data.split(|&byte| byte == b'\n');
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mount_type = text(lines.next().unwrap_or_default());
    let options = lines
        .map(|line| match line {
            [b'e', b':', json @ ..] => format!("extraoption={}", STANDARD.encode(json)),
            [b'v', b':', json @ ..] => format!("io.katacontainers.volume={}", STANDARD.encode(json)),
            line => text(line),
        })
        .collect();
    let mount = RootfsMount {
        mount_type,
        source: "overlay".into(),
        options,
    };
    let Ok(plan) = mount.plan() else { return };
    assert!(!plan.images().is_empty());
    for image in plan.images() {
        holds(image);
        assert_eq!(
            image.snapshot_dir(),
            plan.snapshot_dir(),
            "a container has one snapshot"
        );
    }
    if plan.origin() == ImageOrigin::ExtraOption {
        assert!(nydus_helper(&mount.mount_type).is_some() && plan.images().len() == 1);
    }
    let private = [
        "extraoption=",
        "io.katacontainers.volume=",
        "lowerdir=",
        "upperdir=",
        "workdir=",
    ];
    assert!(
        plan.options()
            .iter()
            .all(|option| private.iter().all(|key| !option.starts_with(key)))
    );
}

/// What every image has.
fn holds(image: &RafsImage) {
    for path in [image.source(), image.snapshot_dir()] {
        assert_eq!(
            HostPath::new(path.as_str()).as_ref(),
            Ok(path),
            "a path is normal"
        );
        assert!(path.as_path().is_absolute() && !path.as_str().split('/').any(|c| matches!(c, "." | "..")));
    }
    let config: serde_json::Value = serde_json::from_str(image.config().expose()).unwrap_or_default();
    let backend = config
        .get("backend")
        .or_else(|| config.get("device")?.get("backend"));
    assert!(
        backend.is_some_and(|b| b["type"].is_string()),
        "a configuration has a backend"
    );
    let shown = format!("{image:?}");
    assert!(shown.len() < 400 + 8 * (image.source().as_str().len() + image.snapshot_dir().as_str().len()));
}
