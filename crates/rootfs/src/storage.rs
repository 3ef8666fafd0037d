//! The `Storage` messages a Kata agent is sent: one for the share, one for each container's overlay.
//!
//! Field names are those of `agent.proto`, in its JSON form.

use serde::Serialize;

use crate::OverlayPlan;
use crate::layout::GUEST_SHARE;
use crate::share::ShareTag;

/// One `Storage` of the agent's protocol.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AgentStorage {
    /// The agent's handler: `virtio-fs` or `overlayfs`.
    pub driver: String,
    /// What is mounted: the tag, or `overlay`.
    pub source: String,
    /// The file system's type.
    pub fstype: String,
    /// Mount options.
    pub options: Vec<String>,
    /// Where in the guest.
    pub mount_point: String,
}

impl AgentStorage {
    /// The sandbox's share. No `dax`: nydusd maps nothing into the guest.
    #[must_use]
    pub fn share(tag: &ShareTag) -> Self {
        Self {
            driver: "virtio-fs".to_owned(),
            source: tag.as_str().to_owned(),
            fstype: "virtiofs".to_owned(),
            options: Vec::new(),
            // With the trailing slash Kata sends.
            mount_point: format!("{GUEST_SHARE}/"),
        }
    }

    /// A container's root file system.
    #[must_use]
    pub fn rootfs(plan: &OverlayPlan) -> Self {
        Self {
            driver: "overlayfs".to_owned(),
            source: "overlay".to_owned(),
            fstype: "overlay".to_owned(),
            options: plan.options(),
            mount_point: plan.mount_point().as_str().to_owned(),
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::ContainerId;

    #[test]
    fn the_agent_is_told_what_kata_tells_it() {
        assert_eq!(
            serde_json::to_value(AgentStorage::share(&ShareTag::default())).unwrap(),
            serde_json::json!({
                "driver": "virtio-fs", "source": "kataShared", "fstype": "virtiofs", "options": [],
                "mount_point": "/run/kata-containers/shared/",
            })
        );
        let plan = OverlayPlan::for_container(&ContainerId::new("c1").unwrap());
        assert_eq!(
            serde_json::to_value(AgentStorage::rootfs(&plan)).unwrap(),
            serde_json::json!({
                "driver": "overlayfs", "source": "overlay", "fstype": "overlay",
                "options": [
                    "upperdir=/run/kata-containers/shared/containers/c1/snapshotdir/fs",
                    "workdir=/run/kata-containers/shared/containers/c1/snapshotdir/work",
                    "lowerdir=/run/kata-containers/shared/rafs/c1/lowerdir",
                    "index=off",
                ],
                "mount_point": "/run/kata-containers/shared/containers/c1/rootfs",
            })
        );
    }
}
