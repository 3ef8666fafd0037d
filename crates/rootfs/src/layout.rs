//! The names host, daemon and guest agree on. They are Kata Containers' own, so that its agent finds everything.
//!
//! Three name spaces meet here: the *daemon's namespace* (what the guest sees below the share's mount point), the
//! *guest's* paths, and the *passthrough source* on the host (paths relative to it).

use crate::{ContainerId, GuestPath};

/// The virtio-fs tag of the share.
pub const SHARE_TAG: &str = "kataShared";
/// Where the guest mounts the share when the daemon is a nydusd: its namespace has `/containers` and `/rafs`.
pub const GUEST_SHARE: &str = "/run/kata-containers/shared";
/// Where the daemon's namespace shows the host's shared directory (`passthrough_fs`).
pub const NAMESPACE_CONTAINERS: &str = "/containers";
/// Below which the daemon's namespace has the RAFS instances.
pub const NAMESPACE_RAFS: &str = "/rafs";

/// The mount point of a container's RAFS in the daemon's namespace: `/rafs/<cid>/lowerdir`.
#[must_use]
pub fn namespace_rafs(container: &ContainerId) -> String {
    format!("{NAMESPACE_RAFS}/{container}/lowerdir")
}

/// The mount point of one of a container's layers, `layer` counted from 0 at the top: [`namespace_rafs`] for the
/// topmost, `/rafs/<cid>/lowerdir1` for the one below it, and so on. Kata has no name for these.
#[must_use]
pub fn namespace_rafs_layer(container: &ContainerId, layer: usize) -> String {
    match layer {
        0 => namespace_rafs(container),
        layer => format!("{}{layer}", namespace_rafs(container)),
    }
}

/// Where the passthrough source must show the snapshot's directory (the one with `fs` and `work`), relative to that
/// source: `<cid>/snapshotdir`.
#[must_use]
pub fn snapshot_dir_in_source(container: &ContainerId) -> String {
    format!("{container}/snapshotdir")
}

/// The guest's path of a path in the daemon's namespace.
///
/// # Errors
/// As [`GuestPath::new`], when `in_namespace` climbs or has control characters.
pub fn guest_path_of(in_namespace: &str) -> Result<GuestPath, crate::GuestPathError> {
    GuestPath::new(format!("{GUEST_SHARE}/{}", in_namespace.trim_start_matches('/')))
}
