//! What to run in a machine: asked for in a [`VmSpec`], checked once into a [`VmConfig`].
//!
//! No I/O. Everything after this file may rely on the checks made here. The machine itself is in `machine_config.rs`.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use nydusbox_rootfs::{GuestPath, OverlayPathError, OverlayPlan, ShareDevice};

use crate::hostname::Hostname;
use crate::initramfs::params::MEMORY_UPPER;
use crate::user::ContainerUser;

/// Where the container's writes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpperDir {
    /// To the plan's upper directory, in the share: they outlive the guest.
    Share,
    /// Into the guest's memory: they end with it. The only choice when the daemon does not run as root: overlayfs
    /// makes directories only root may enter, and is refused in a share where the guest's root is an ordinary user.
    GuestMemory,
}

/// A directory of the daemon's namespace that the container sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedDir {
    /// Its path in the daemon's namespace, such as `/share0`.
    pub source: GuestPath,
    /// Where the container sees it.
    pub target: GuestPath,
    /// Whether the container may only read it.
    pub read_only: bool,
}

/// What is asked for. [`VmSpec::new`] has the defaults; change fields, then [`VmConfig::new`].
#[derive(Debug, Clone)]
pub struct VmSpec {
    /// The daemon's device. The daemon must already listen.
    pub share: ShareDevice,
    /// Where the guest mounts the share.
    pub share_mount: GuestPath,
    /// The container's overlay.
    pub rootfs: OverlayPlan,
    /// Where its writes go.
    pub upper: UpperDir,
    /// Further directories shown in the container.
    pub shares: Vec<SharedDir>,
    /// The command and its arguments; looked up in the container's `PATH`.
    pub command: Vec<OsString>,
    /// The command's environment. Besides, unless they are in here, `HOME` is what the container's `/etc/passwd` says and
    /// `HOSTNAME` the guest's host name.
    pub env: Vec<(OsString, OsString)>,
    /// Who it runs as.
    pub user: ContainerUser,
    /// Its working directory in the container; made if it isn't there.
    pub workdir: GuestPath,
    /// The guest's host name.
    pub hostname: Hostname,
}

/// The `PATH` of a command, unless its environment has another: directories, separated by colons.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

impl VmSpec {
    /// With the defaults: `/` as working directory, writes in the share, the user 0, and an environment of `PATH` and
    /// `TERM`.
    #[must_use]
    pub fn new(share: ShareDevice, rootfs: OverlayPlan, command: Vec<OsString>) -> Self {
        let path = |text| GuestPath::new(text).expect("constants are valid guest paths");
        let env = [("PATH", DEFAULT_PATH), ("TERM", "dumb")];
        Self {
            share,
            share_mount: path(nydusbox_rootfs::layout::GUEST_SHARE),
            rootfs,
            upper: UpperDir::Share,
            shares: Vec::new(),
            command,
            env: env.map(|(name, value)| (name.into(), value.into())).to_vec(),
            user: ContainerUser::default(),
            workdir: path("/"),
            hostname: Hostname::default(),
        }
    }
}

/// What can't be run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VmConfigError {
    /// No command.
    #[error("no command to run")]
    NoCommand,
    /// An argument, variable or working directory with a NUL byte, which `execve` can't pass.
    #[error("{what} {value:?} contains a NUL byte")]
    Nul {
        /// `argument` or `environment variable`.
        what: &'static str,
        /// The value.
        value: OsString,
    },
    /// A variable's name is empty or contains `=`.
    #[error("environment variable name {name:?} is empty or contains '='")]
    VariableName {
        /// The name.
        name: OsString,
    },
    /// A share shown at the container's root, or in place of what every container has.
    #[error(
        "a share cannot be shown at {target}, where every container has something of its own: choose another place"
    )]
    ShareTarget {
        /// The target.
        target: GuestPath,
    },
    /// Two shares at one place.
    #[error("two shares are to be shown at {target}")]
    ShareTwice {
        /// The target.
        target: GuestPath,
    },
    /// The overlay's options can't be written.
    #[error("the container's overlay cannot be mounted")]
    Overlay(#[source] OverlayPathError),
}

/// What can be run.
#[derive(Debug, Clone)]
pub struct VmConfig(VmSpec);

impl VmConfig {
    /// Checks what is asked for.
    ///
    /// # Errors
    /// [`VmConfigError`] names the first thing that can't be.
    pub fn new(mut spec: VmSpec) -> Result<Self, VmConfigError> {
        if spec.command.is_empty() {
            return Err(VmConfigError::NoCommand);
        }
        let without_nul = |what, value: &OsString| {
            if value.as_bytes().contains(&0) {
                Err(VmConfigError::Nul {
                    what,
                    value: value.clone(),
                })
            } else {
                Ok(())
            }
        };
        for argument in &spec.command {
            without_nul("argument", argument)?;
        }
        for (name, value) in &spec.env {
            without_nul("environment variable", name)?;
            without_nul("environment variable", value)?;
            if name.is_empty() || name.as_bytes().contains(&b'=') {
                return Err(VmConfigError::VariableName { name: name.clone() });
            }
        }
        for (at, share) in spec.shares.iter().enumerate() {
            let target = &share.target;
            // What is below /proc would be hidden by that of the command's own processes.
            let is_hidden = target.as_str().starts_with("/proc/");
            if is_hidden || target.is_root() || ["/proc", "/sys", "/dev"].contains(&target.as_str()) {
                return Err(VmConfigError::ShareTarget {
                    target: target.clone(),
                });
            }
            if spec.shares[..at].iter().any(|other| other.target == *target) {
                return Err(VmConfigError::ShareTwice {
                    target: target.clone(),
                });
            }
        }
        // One that is mounted below another's place comes after it, or the other would hide it.
        let depth = |share: &SharedDir| share.target.as_str().matches('/').count();
        spec.shares.sort_by_key(depth);
        if spec.upper == UpperDir::GuestMemory {
            let path = |text| GuestPath::new(text).expect("constants are valid guest paths");
            spec.rootfs = spec
                .rootfs
                .with_upper(path(MEMORY_UPPER.0), path(MEMORY_UPPER.1))
                .map_err(VmConfigError::Overlay)?;
        }
        Ok(Self(spec))
    }

    /// What was asked for, checked.
    #[must_use]
    pub fn spec(&self) -> &VmSpec {
        &self.0
    }
}

#[cfg(test)]
#[path = "config/tests.rs"]
pub(crate) mod tests;
