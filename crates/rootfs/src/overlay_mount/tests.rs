#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;
use proptest::prelude::*;

fn mount(options: &str) -> OverlayMount {
    OverlayMount::parse([options]).unwrap()
}

fn error(options: &str) -> OverlayMountError {
    OverlayMount::parse([options]).unwrap_err()
}

#[test]
fn options_for_a_runtime_are_dropped_and_the_rest_is_kept_in_order() {
    let plan = mount(
        "volatile,workdir=/s/2/work,upperdir=/s/2/fs,lowerdir=/s/1/fs,extraoption=eyJ9,\
         io.katacontainers.volume=eyJ9,index=off,dev,suid",
    )
    .plan();
    let data = "volatile,workdir=/s/2/work,upperdir=/s/2/fs,lowerdir=/s/1/fs,index=off";
    assert_eq!(plan, MountPlan::AsGiven { data: data.into() });
}

#[test]
fn several_lists_are_one() {
    let several = OverlayMount::parse(["lowerdir=/a:/b", "", "ro,index=off", "extraoption=x"]).unwrap();
    assert_eq!(several, mount("lowerdir=/a:/b,ro,index=off"));
}

#[test]
fn flags_mean_what_mount8_says_and_the_last_word_counts() {
    let flags = |options: &str| mount(&format!("lowerdir=/a,{options}")).flags().clone();
    use MountFlag as F;
    assert_eq!(flags("dev,suid,rw,exec,async,atime"), BTreeSet::new());
    assert_eq!(
        flags("ro,nosuid,nodev,noexec"),
        [F::Ro, F::Nosuid, F::Nodev, F::Noexec].into()
    );
    assert_eq!(flags("ro,rw"), BTreeSet::new());
    assert_eq!(flags("rw,ro"), [F::Ro].into());
    assert_eq!(
        flags("defaults,x-systemd.automount,nofail,noatime"),
        [F::Noatime].into()
    );
}

#[test]
fn what_is_no_new_overlay_is_refused_without_its_value() {
    assert_eq!(error(""), OverlayMountError::NoLowerdir);
    assert_eq!(error("lowerdir=,ro"), OverlayMountError::NoLowerdir);
    assert_eq!(error("lowerdir=/a,upperdir=/u"), OverlayMountError::NoWorkdir);
    assert_eq!(
        error("lowerdir=/a,lowerdir=/b"),
        OverlayMountError::Repeated { option: "lowerdir" }
    );
    assert_eq!(
        error("lowerdir=/a,uidmap=0:1000:1").to_string(),
        "the mount option uidmap asks for an ID-mapped mount, which containerd makes itself for type overlay only"
    );
    for option in [
        "upperdir=",
        "workdir=",
        "bind",
        "remount",
        "rslave",
        "loop",
        "X-containerd.mkdir=1",
    ] {
        assert!(
            matches!(
                error(&format!("lowerdir=/a,{option}")),
                OverlayMountError::Unfit { .. }
            ),
            "{option}"
        );
    }
    let many = vec!["/l"; 501].join(":");
    assert_eq!(
        error(&format!("lowerdir={many}")),
        OverlayMountError::TooManyLayers { layers: 501 }
    );
}

/// `count` layers named by `name`, and writable directories beside them, below `root`.
fn long(root: &str, count: usize, name: impl Fn(usize) -> String) -> OverlayMount {
    let lowers: Vec<String> = (0..count).map(|n| format!("{root}/{}/fs", name(n))).collect();
    mount(&format!(
        "workdir={root}/900/work,upperdir={root}/900/fs,lowerdir={}",
        lowers.join(":")
    ))
}

const SNAPSHOTS: &str = "/var/lib/containerd/io.containerd.snapshotter.v1.nydus/snapshots";

#[test]
fn what_is_too_long_is_told_relative_to_the_common_directory() {
    assert!(matches!(
        long(SNAPSHOTS, 40, |n| n.to_string()).plan(),
        MountPlan::AsGiven { .. }
    ));
    let MountPlan::Relative { dir, data } = long(SNAPSHOTS, 128, |n| (128 - n).to_string()).plan() else {
        panic!("not relative");
    };
    assert_eq!(dir, Path::new(SNAPSHOTS));
    assert!(
        data.starts_with("workdir=900/work,upperdir=900/fs,lowerdir=128/fs:127/fs:"),
        "{data}"
    );
    assert!(data.ends_with(":1/fs"));
}

#[test]
fn what_is_longer_still_is_told_by_descriptor() {
    let mount = long(SNAPSHOTS, 128, |n| format!("{n:0200}"));
    assert_eq!(mount.plan(), MountPlan::ByDescriptor);
    let numbers: Vec<i32> = (10..140).collect();
    assert_eq!(mount.directories().count(), numbers.len());
    let data = mount.data_by_descriptor(&numbers).unwrap();
    assert!(
        data.starts_with("workdir=10,upperdir=11,lowerdir=12:13:"),
        "{data}"
    );
    // The most layers overlayfs takes, above a shell's and our own descriptors.
    let numbers: Vec<i32> = (1000..1502).collect();
    assert!(
        long("/s", 500, |n| n.to_string())
            .data_by_descriptor(&numbers)
            .is_ok()
    );
}

#[test]
fn nothing_is_relative_to_the_root_or_to_one_of_the_directories_itself() {
    let long = "x".repeat(4000);
    for options in [
        format!("lowerdir=/a/{long}:/b/{long}"),
        format!("lowerdir=relative/{long}:relative/b/{long}"),
        format!("lowerdir=/a\\:b/{long}:/a\\:b/{long}2"),
    ] {
        assert_eq!(
            mount(&options).plan(),
            MountPlan::ByDescriptor,
            "{}",
            &options[..20]
        );
    }
    // A trailing slash names the directory itself, which has no name below itself.
    for slashes in ["/", "//"] {
        let mount = mount(&format!("lowerdir=/{long}/a{slashes}:/{long}/a/x"));
        let MountPlan::Relative { dir, .. } = mount.plan() else {
            panic!("not relative");
        };
        assert_eq!(dir.as_os_str().len(), 4001);
    }
    // An escaped slash is one.
    let MountPlan::Relative { data, .. } = mount(&format!("lowerdir=/a/{long}/b/\\/c:/a/{long}/b/d")).plan()
    else {
        panic!("not relative");
    };
    assert_eq!(data, "lowerdir=b/\\/c:b/d");
    // /p/q is a layer itself, so the common directory is its parent.
    let MountPlan::Relative { dir, data } = mount(&format!(
        "lowerdir=/{long}/q:/{long}/q/r,upperdir=/{long}/u,workdir=/{long}/w"
    ))
    .plan() else {
        panic!("not relative");
    };
    assert_eq!(
        (dir.as_os_str().len(), data.as_str()),
        (4001, "lowerdir=q:q/r,upperdir=u,workdir=w")
    );
}

#[test]
fn escapes_and_data_only_layers_survive_shortening() {
    let root = format!("/{}", "x".repeat(2000));
    let mount = mount(&format!("lowerdir={root}/a\\:b:{root}/c::{root}/d\\,e"));
    let MountPlan::Relative { data, .. } = mount.plan() else {
        panic!("not relative");
    };
    assert_eq!(data, "lowerdir=a\\:b:c::d\\,e");
    let names: Vec<String> = mount
        .directories()
        .map(|(_, dir)| dir.file_name().unwrap().to_str().unwrap().to_owned())
        .collect();
    assert_eq!(names, ["a:b", "c", "d,e"]);
    assert_eq!(mount.data_by_descriptor(&[3, 4, 5]).unwrap(), "lowerdir=3:4::5");
}

fn component() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z0-9]{1,8}", "[a-z]{100,250}", r"[a-z]\\[:,\\][a-z]"]
}

proptest! {
    /// The model names each directory from the plan as the kernel would resolve it, and compares with what was given.
    #[test]
    fn every_plan_names_the_same_directories(
        root in proptest::collection::vec(component(), 0..4),
        dirs in proptest::collection::vec(proptest::collection::vec(component(), 1..3), 1..80),
        writable: bool,
    ) {
        let paths: Vec<String> =
            dirs.iter().map(|dir| format!("/{}", root.iter().chain(dir).cloned().collect::<Vec<_>>().join("/"))).collect();
        let mut options = format!("lowerdir={}", paths.join(":"));
        if writable {
            options += &format!(",upperdir={}/u,workdir={}/w", paths[0], paths[0]);
        }
        let mount = OverlayMount::parse([options.as_str()]).unwrap();
        let given: Vec<PathBuf> = mount.directories().map(|(_, dir)| dir).collect();
        match mount.plan() {
            MountPlan::AsGiven { data } => prop_assert_eq!(data, options),
            MountPlan::Relative { dir, data } => {
                prop_assert!(data.len() <= MAX_MOUNT_DATA && options.len() > MAX_MOUNT_DATA);
                let again = OverlayMount::parse([data.as_str()]).unwrap();
                let resolved: Vec<PathBuf> = again.directories().map(|(_, name)| dir.join(name)).collect();
                prop_assert!(again.directories().all(|(_, name)| name.is_relative()));
                prop_assert_eq!(resolved, given);
            }
            MountPlan::ByDescriptor => {
                let numbers: Vec<i32> = (3..).take(given.len()).collect();
                let again = OverlayMount::parse([mount.data_by_descriptor(&numbers).unwrap().as_str()]).unwrap();
                let told: Vec<String> = again.directories().map(|(_, n)| n.display().to_string()).collect();
                prop_assert_eq!(told, numbers.iter().map(i32::to_string).collect::<Vec<_>>());
            }
        }
    }
}
