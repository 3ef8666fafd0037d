#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::fixtures::{self, encoded};
use super::*;
use proptest::prelude::*;
use serde_json::{Value, json};

/// The options nydus-snapshotter writes for a writable snapshot, before it appends the image.
fn overlay() -> Vec<String> {
    let snapshots = "/var/lib/containerd/io.containerd.snapshotter.v1.nydus/snapshots";
    vec![
        format!("workdir={snapshots}/257/work"),
        format!("upperdir={snapshots}/257/fs"),
        format!("lowerdir={snapshots}/9/mnt"),
    ]
}

fn mount(mount_type: &str, more: &[String]) -> RootfsMount {
    RootfsMount {
        mount_type: mount_type.into(),
        source: "overlay".into(),
        options: overlay().into_iter().chain(more.iter().cloned()).collect(),
    }
}

fn extra(document: &Value) -> String {
    format!("extraoption={}", encoded(document))
}

fn volume(document: &Value) -> String {
    format!("io.katacontainers.volume={}", encoded(document))
}

#[test]
fn the_snapshotters_mount_becomes_a_plan() {
    let options = [
        overlay(),
        vec!["volatile".to_owned(), extra(&fixtures::extra_option())],
    ]
    .concat();
    let json = json!({"type": "fuse.nydus-overlayfs", "source": "overlay", "target": "", "options": options});
    let mount: RootfsMount = serde_json::from_value(json).unwrap();
    let plan = mount.plan().unwrap();
    assert_eq!(plan.origin(), ImageOrigin::ExtraOption);
    assert_eq!(plan.images().len(), 1);
    assert_eq!(plan.images()[0].source().as_str(), fixtures::BOOTSTRAP);
    assert_eq!(plan.snapshot_dir().as_str(), fixtures::SNAPSHOT_DIR);
    assert_eq!(plan.upperdir().unwrap(), format!("{}/fs", fixtures::SNAPSHOT_DIR));
    assert_eq!(
        plan.workdir().unwrap(),
        format!("{}/work", fixtures::SNAPSHOT_DIR)
    );
    assert_eq!(plan.lowerdirs().len(), 1);
    assert_eq!(plan.options(), ["volatile"]);
}

#[test]
fn a_view_has_several_lowers_and_no_upper() {
    let options = vec![r"lowerdir=/a:/b\:c".to_owned(), extra(&fixtures::extra_option())];
    let mount = RootfsMount {
        mount_type: "fuse./opt/bin/nydus-overlayfs-x".into(),
        source: "overlay".into(),
        options,
    };
    let plan = mount.plan().unwrap();
    assert_eq!(plan.lowerdirs(), ["/a", "/b:c"]);
    assert_eq!((plan.upperdir(), plan.workdir()), (None, None));
}

#[test]
fn a_volume_wins_over_the_type_and_the_extraoption() {
    for mount_type in ["fuse.nydus-overlayfs", "overlay", ""] {
        let both = [
            "extraoption=not read".to_owned(),
            volume(&fixtures::volume("image_nydus_fs")),
        ];
        let plan = mount(mount_type, &both).plan().unwrap();
        assert_eq!(
            (plan.origin(), plan.images().len()),
            (ImageOrigin::VirtualVolume, 1)
        );
    }
}

#[test]
fn layers_keep_their_order() {
    let layer = |name: &str| {
        let mut layer = fixtures::volume("layer_nydus_fs");
        layer["source"] = json!(format!("/layers/{name}"));
        volume(&layer)
    };
    let plan = mount("overlay", &[layer("top"), layer("middle"), layer("bottom")])
        .plan()
        .unwrap();
    let sources: Vec<&str> = plan.images().iter().map(|i| i.source().as_str()).collect();
    assert_eq!(sources, ["/layers/top", "/layers/middle", "/layers/bottom"]);
}

#[test]
fn what_contradicts_itself_is_refused() {
    let nydus = "fuse.nydus-overlayfs";
    let option = || extra(&fixtures::extra_option());
    let image = || volume(&fixtures::volume("image_nydus_fs"));
    let layer = || volume(&fixtures::volume("layer_nydus_fs"));
    let elsewhere = || {
        let mut layer = fixtures::volume("layer_nydus_fs");
        layer["nydus_image"]["snapshot_dir"] = json!("/other");
        volume(&layer)
    };
    let refused = |mount_type, more: &[String]| mount(mount_type, more).plan().unwrap_err();
    use RootfsMountError as E;
    assert_eq!(
        refused("overlay", &[option()]),
        E::NotNydus {
            mount_type: "overlay".into()
        }
    );
    assert_eq!(refused(nydus, &[]), E::NoImage);
    assert_eq!(
        refused(nydus, &[option(), option()]),
        E::Repeated {
            option: "extraoption",
            count: 2
        }
    );
    assert_eq!(
        refused(nydus, &["upperdir=/x".into(), option()]),
        E::Repeated {
            option: "upperdir",
            count: 2
        }
    );
    assert_eq!(
        refused(nydus, &[image(), layer()]),
        E::ImageWithOthers { others: 1 }
    );
    assert_eq!(
        refused(nydus, &[layer(), image(), image()]),
        E::ImageWithOthers { others: 2 }
    );
    assert_eq!(refused(nydus, &[layer(), elsewhere()]), E::SnapshotDirs);
}

/// An error and its causes, and its `Debug`, as someone might log it.
fn everything_of(error: &RootfsMountError) -> String {
    let mut text = format!("{error:?} {error}");
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        text += &format!(" {cause:?} {cause}");
        next = cause.source();
    }
    text
}

/// A document with the secret in any place, also where it does not belong.
fn documents() -> impl Strategy<Value = String> {
    let text = prop_oneof![
        Just("PLANTED".to_owned()),
        Just("/PLANTED".to_owned()),
        Just("/PLANTED/../x".to_owned()),
        Just(r#"{"auth":"PLANTED""#.to_owned()),
        Just(r#"{"version":2,"PLANTED":"PLANTED"}"#.to_owned()),
        Just("image_nydus_fs".to_owned()),
        Just("v6".to_owned()),
    ];
    let value = prop_oneof![4 => text.prop_map(Value::from), 1 => Just(json!(["PLANTED"])), 1 => Just(json!(7)),
        1 => Just(json!({"config": "PLANTED", "snapshot_dir": "PLANTED"}))];
    let key = prop_oneof![
        Just("source"),
        Just("config"),
        Just("snapshotdir"),
        Just("fs_version"),
        Just("volume_type"),
        Just("fs_type"),
        Just("nydus_image"),
        Just("PLANTED")
    ];
    let object = proptest::collection::vec((key, value), 0..8).prop_map(|fields| {
        let map: serde_json::Map<String, Value> =
            fields.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
        Value::Object(map).to_string()
    });
    prop_oneof![8 => object, 1 => Just("PLANTED".to_owned()), 1 => Just("\"PLANTED".to_owned())]
}

proptest! {
    #[test]
    fn no_error_has_anything_of_the_content(json in documents(), cut in 0usize..200, as_volume: bool, raw: bool) {
        use base64::Engine;
        let json = json.get(..json.len().saturating_sub(cut % 7)).unwrap_or("");
        let value = if raw { json.to_owned() } else { base64::engine::general_purpose::STANDARD.encode(json) };
        let key = if as_volume { "io.katacontainers.volume" } else { "extraoption" };
        let mount = mount("fuse.nydus-overlayfs", &[format!("{key}={value}")]);
        let shown = match mount.plan() {
            Ok(plan) => format!("{mount:?} {:?}", plan.images()[0].config()),
            Err(error) => format!("{mount:?} {}", everything_of(&error)),
        };
        prop_assert!(!shown.contains("PLANTED"), "{}", shown);
    }
}

#[test]
fn the_secret_of_a_good_option_is_in_no_debug_output() {
    let mount = mount("fuse.nydus-overlayfs", &[extra(&fixtures::extra_option())]);
    let plan = mount.plan().unwrap();
    assert!(plan.images()[0].config().expose().contains(fixtures::SECRET));
    assert!(!format!("{mount:?} {plan:?}").contains(fixtures::SECRET));
}
