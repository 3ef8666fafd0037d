//! The overlay that becomes a container's root file system in the guest.
//!
//! Lower is the container's RAFS; upper and work are in the snapshot's directory, seen through the passthrough.
//! The defaults are Kata's paths; each can be replaced where the lower or upper lies elsewhere.

use std::num::NonZeroUsize;

use crate::layout::{GUEST_SHARE, NAMESPACE_CONTAINERS, namespace_rafs_layer, snapshot_dir_in_source};
use crate::{ContainerId, GuestPath};

/// A directory that cannot be named in overlayfs' options.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{option} {path} has {found:?} at byte {at}, which separates overlay options")]
pub struct OverlayPathError {
    /// `lowerdir`, `upperdir` or `workdir`.
    pub option: &'static str,
    /// The refused path.
    pub path: GuestPath,
    /// The separator found: `,`, `:` or `\`.
    pub found: char,
    /// Its byte offset.
    pub at: usize,
}

/// Everything needed to mount a container's overlay in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverlayPlan {
    /// At least one, topmost first.
    lowers: Vec<GuestPath>,
    upper: GuestPath,
    work: GuestPath,
    mount_point: GuestPath,
}

impl OverlayPlan {
    /// Kata's plan for a container whose RAFS and snapshot directory are both in the share.
    #[must_use]
    pub fn for_container(container: &ContainerId) -> Self {
        Self::for_layers(container, NonZeroUsize::MIN)
    }

    /// The same for a container whose image is mounted in layers, each at its
    /// [`namespace_rafs_layer`](crate::layout::namespace_rafs_layer).
    #[must_use]
    pub fn for_layers(container: &ContainerId, layers: NonZeroUsize) -> Self {
        let snapshot = snapshot_dir_in_source(container);
        let shared = format!("{GUEST_SHARE}{NAMESPACE_CONTAINERS}");
        Self {
            lowers: (0..layers.get())
                .map(|layer| {
                    let mounted = namespace_rafs_layer(container, layer);
                    GuestPath::assembled(format!("{GUEST_SHARE}{mounted}"))
                })
                .collect(),
            upper: GuestPath::assembled(format!("{shared}/{snapshot}/fs")),
            work: GuestPath::assembled(format!("{shared}/{snapshot}/work")),
            mount_point: GuestPath::assembled(format!("{shared}/{container}/rootfs")),
        }
    }

    /// The same plan on another lower directory, the only one.
    ///
    /// # Errors
    /// [`OverlayPathError`] when the path has a character overlayfs takes for a separator.
    pub fn with_lower(self, lower: GuestPath) -> Result<Self, OverlayPathError> {
        let lowers = vec![usable("lowerdir", lower)?];
        Ok(Self { lowers, ..self })
    }

    /// The same plan with other writable directories. Both must lie on one file system.
    ///
    /// # Errors
    /// [`OverlayPathError`] when a path has a character overlayfs takes for a separator.
    pub fn with_upper(self, upper: GuestPath, work: GuestPath) -> Result<Self, OverlayPathError> {
        let upper = usable("upperdir", upper)?;
        let work = usable("workdir", work)?;
        Ok(Self { upper, work, ..self })
    }

    /// The same plan mounted elsewhere.
    #[must_use]
    pub fn with_mount_point(self, mount_point: GuestPath) -> Self {
        Self { mount_point, ..self }
    }

    /// The read-only directory; the topmost where there are several.
    #[must_use]
    pub fn lower(&self) -> &GuestPath {
        &self.lowers[0]
    }

    /// All read-only directories, topmost first.
    #[must_use]
    pub fn lowers(&self) -> &[GuestPath] {
        &self.lowers
    }

    /// The directory that takes the container's writes.
    #[must_use]
    pub fn upper(&self) -> &GuestPath {
        &self.upper
    }

    /// overlayfs' scratch directory.
    #[must_use]
    pub fn work(&self) -> &GuestPath {
        &self.work
    }

    /// Where the overlay is mounted.
    #[must_use]
    pub fn mount_point(&self) -> &GuestPath {
        &self.mount_point
    }

    /// The mount options, in Kata's order. `index=off`: an index needs file handles, which virtio-fs doesn't export.
    #[must_use]
    pub fn options(&self) -> Vec<String> {
        let lowers: Vec<&str> = self.lowers.iter().map(GuestPath::as_str).collect();
        vec![
            format!("upperdir={}", self.upper),
            format!("workdir={}", self.work),
            format!("lowerdir={}", lowers.join(":")),
            "index=off".to_owned(),
        ]
    }
}

fn usable(option: &'static str, path: GuestPath) -> Result<GuestPath, OverlayPathError> {
    match path
        .as_str()
        .char_indices()
        .find(|(_, c)| matches!(c, ',' | ':' | '\\'))
    {
        None => Ok(path),
        Some((at, found)) => Err(OverlayPathError {
            option,
            path,
            found,
            at,
        }),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn path(text: &str) -> GuestPath {
        GuestPath::new(text).unwrap()
    }

    #[test]
    fn the_plan_is_katas() {
        let plan = OverlayPlan::for_container(&ContainerId::new("c1").unwrap());
        assert_eq!(
            plan.mount_point().as_str(),
            "/run/kata-containers/shared/containers/c1/rootfs"
        );
        assert_eq!(
            plan.options(),
            [
                "upperdir=/run/kata-containers/shared/containers/c1/snapshotdir/fs",
                "workdir=/run/kata-containers/shared/containers/c1/snapshotdir/work",
                "lowerdir=/run/kata-containers/shared/rafs/c1/lowerdir",
                "index=off",
            ]
        );
    }

    #[test]
    fn paths_are_replaced_one_by_one() {
        let plan = OverlayPlan::for_container(&ContainerId::new("c1").unwrap())
            .with_lower(path("/l"))
            .unwrap()
            .with_upper(path("/u"), path("/w"))
            .unwrap()
            .with_mount_point(path("/m:1"));
        assert_eq!(
            plan.options(),
            ["upperdir=/u", "workdir=/w", "lowerdir=/l", "index=off"]
        );
        assert_eq!(plan.mount_point().as_str(), "/m:1");
    }

    #[test]
    fn layers_are_lowers_from_the_top() {
        let plan = OverlayPlan::for_layers(&ContainerId::new("c1").unwrap(), NonZeroUsize::new(3).unwrap());
        assert_eq!(
            plan.options()[2],
            "lowerdir=/run/kata-containers/shared/rafs/c1/lowerdir:\
             /run/kata-containers/shared/rafs/c1/lowerdir1:\
             /run/kata-containers/shared/rafs/c1/lowerdir2"
        );
        assert_eq!(plan.lower(), &plan.lowers()[0]);
    }

    #[test]
    fn separators_are_refused_with_their_place() {
        let plan = || OverlayPlan::for_container(&ContainerId::new("c1").unwrap());
        let error = plan().with_lower(path("/a:b")).unwrap_err();
        assert_eq!((error.option, error.found, error.at), ("lowerdir", ':', 2));
        let error = plan().with_upper(path("/a"), path("/w,x")).unwrap_err();
        assert_eq!((error.option, error.found, error.at), ("workdir", ',', 2));
        assert_eq!(
            error.to_string(),
            "workdir /w,x has ',' at byte 2, which separates overlay options"
        );
    }

    proptest! {
        #[test]
        fn no_id_adds_an_option(id in "[A-Za-z0-9][A-Za-z0-9_.+-]{0,127}") {
            let options = OverlayPlan::for_container(&ContainerId::new(&id).unwrap()).options().join(",");
            prop_assert_eq!(options.split(',').count(), 4);
            prop_assert!(!options.contains(':') && !options.contains("/../"));
            prop_assert_eq!(options.matches(id.as_str()).count() >= 3, true);
        }
    }
}
