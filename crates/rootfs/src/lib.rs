//! What a guest and a VMM are told about a container's root file system, as values.
//!
//! Owns the names both sides must agree on ([`layout`]), the overlay the guest mounts ([`OverlayPlan`]), the
//! storages a Kata agent is sent ([`AgentStorage`]), and the arguments that give QEMU or Cloud Hypervisor the share
//! ([`ShareDevice`]); what others have configured is judged in [`check`]. It performs no I/O and starts nothing: the same input always gives the same output. Read
//! [`layout`] first, then [`OverlayPlan`]; what a snapshotter hands over is read in [`input`].
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod check;
mod cloud_hypervisor;
mod container_id;
mod guest_path;
mod host_path;
pub mod input;
pub mod kata;
pub mod layout;
mod overlay;
mod overlay_mount;
mod overlay_option;
pub mod qemu;
mod share;
mod storage;

pub use cloud_hypervisor::{
    CloudHypervisorConfig, CloudHypervisorError, CloudHypervisorFs, CloudHypervisorMemory,
    CloudHypervisorPathError,
};
pub use container_id::{ContainerId, ContainerIdError, MAX_CONTAINER_ID_LEN};
pub use guest_path::{GuestPath, GuestPathError};
pub use host_path::{HostPath, HostPathError};
pub use overlay::{OverlayPathError, OverlayPlan};
pub use overlay_mount::{
    MAX_LAYERS, MAX_MOUNT_DATA, MountFlag, MountPlan, OverlayMount, OverlayMountError, OverlayRole,
    TooMuchData,
};
pub use share::{
    MAX_QUEUE_SIZE, MAX_SOCKET_PATH_LEN, MAX_TAG_LEN, QueueSize, QueueSizeError, ShareDevice, ShareSocket,
    ShareSocketError, ShareTag, ShareTagError,
};
pub use storage::AgentStorage;
