#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;
use nydusbox_rootfs::{ContainerId, ShareSocket};

/// On a socket where nobody listens.
pub(crate) fn spec() -> VmSpec {
    VmSpec::new(
        ShareDevice::on(ShareSocket::new("/run/fs.sock").unwrap()),
        OverlayPlan::for_container(&ContainerId::new("c1").unwrap()),
        vec!["cat".into()],
    )
}

fn path(text: &str) -> GuestPath {
    GuestPath::new(text).unwrap()
}

fn refused(change: impl FnOnce(&mut VmSpec)) -> VmConfigError {
    let mut spec = spec();
    change(&mut spec);
    VmConfig::new(spec).unwrap_err()
}

#[test]
fn the_defaults_are_valid() {
    let config = VmConfig::new(spec()).unwrap();
    assert!(
        config
            .spec()
            .rootfs
            .upper()
            .as_str()
            .ends_with("/c1/snapshotdir/fs")
    );
}

#[test]
fn each_limit_has_its_error() {
    let share = |target: &str| SharedDir {
        source: path("/share0"),
        target: path(target),
        read_only: false,
    };
    assert_eq!(refused(|s| s.command.clear()), VmConfigError::NoCommand);
    assert!(matches!(
        refused(|s| s.command.push("a\0b".into())),
        VmConfigError::Nul { .. }
    ));
    assert!(matches!(
        refused(|s| s.env.push(("A=B".into(), "c".into()))),
        VmConfigError::VariableName { .. }
    ));
    assert!(matches!(
        refused(|s| s.shares = vec![share("/")]),
        VmConfigError::ShareTarget { .. }
    ));
    assert!(matches!(
        refused(|s| s.shares = vec![share("/proc/")]),
        VmConfigError::ShareTarget { .. }
    ));
    assert!(matches!(
        refused(|s| s.shares = vec![share("/proc/sys")]),
        VmConfigError::ShareTarget { .. }
    ));
    assert!(matches!(
        refused(|s| s.shares = vec![share("/a"), share("/a/")]),
        VmConfigError::ShareTwice { .. }
    ));
}

#[test]
fn writes_in_guest_memory_leave_the_share_alone() {
    let config = VmConfig::new(VmSpec {
        upper: UpperDir::GuestMemory,
        ..spec()
    })
    .unwrap();
    assert_eq!(config.spec().rootfs.upper().as_str(), MEMORY_UPPER.0);
    assert!(
        config
            .spec()
            .rootfs
            .lower()
            .as_str()
            .ends_with("/rafs/c1/lowerdir")
    );
}
