//! What a boot needs that is not in this repository: a genuine daemon, a guest to boot, QEMU, a Debian tree.
//!
//! Absent, the reason is printed and the test that asked passes; with `NYDUSBOX_REQUIRE_PEERS=1` it fails.

use std::env;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nydusbox_vmm::GuestAssets;

use crate::peers::{self, Peer, REQUIRE_VAR};

/// Names the directory with kernel, modules and busybox, instead of `target/guest`.
pub const GUEST_VAR: &str = "NYDUSBOX_GUEST_ROOT";
/// Names a Debian root file system as a directory, instead of `target/test-rootfs/rootfs`.
pub const ROOTFS_VAR: &str = "NYDUSBOX_TEST_ROOTFS";

/// The path of the genuine `peer`, and the guest to boot.
///
/// # Panics
/// If something is absent and must not be.
pub fn find(peer: Peer) -> Option<(PathBuf, GuestAssets)> {
    let program = peers::require(peer).ok()?;
    Some((program, guest()?.1))
}

/// The directory of what is booted, and its content.
///
/// # Panics
/// If something is absent and must not be.
pub fn guest() -> Option<(PathBuf, GuestAssets)> {
    let root = given(GUEST_VAR, "guest");
    let qemu = Command::new("qemu-system-x86_64").arg("-version").output();
    match (GuestAssets::find(&root), qemu) {
        (Err(error), _) => lacking(&error),
        (Ok(_), Err(error)) => lacking(&format_args!("qemu-system-x86_64: {error}")),
        (Ok(assets), Ok(_)) => Some((root, assets)),
    }
}

/// A Debian root file system.
///
/// # Panics
/// If it is absent and must not be.
pub fn debian_rootfs() -> Option<PathBuf> {
    let root = given(ROOTFS_VAR, "test-rootfs/rootfs");
    if root.join("etc/debian_version").exists() {
        return Some(root);
    }
    lacking(&format_args!("no Debian root file system in {}", root.display()))
}

fn given(variable: &str, default: &str) -> PathBuf {
    let target = || {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../target")
            .join(default)
    };
    env::var_os(variable).map_or_else(target, PathBuf::from)
}

fn lacking<T>(what: &dyn fmt::Display) -> Option<T> {
    let required = env::var_os(REQUIRE_VAR).is_some_and(|v| v == "1");
    assert!(
        !required,
        "`cargo xtask test` provides what is required here: {what}"
    );
    eprintln!("skipped: {what}");
    None
}
