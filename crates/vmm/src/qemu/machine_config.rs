//! The machine, whatever runs in it: asked for in a [`MachineSpec`], checked once into a [`MachineConfig`]. No I/O.

use std::path::PathBuf;
use std::time::Duration;

use super::accel::AccelRequest;
use crate::guest::GuestAssets;
use crate::template::Templates;

/// Memory unless told otherwise: enough for an interpreter and the page cache of a small image.
const DEFAULT_MEMORY_BYTES: u64 = 512 << 20;
/// Below this the kernel, busybox and the modules leave nothing for a command.
const MIN_MEMORY_BYTES: u64 = 96 << 20;
/// QEMU rounds a machine's memory up to this, and then refuses the file that is to be it.
const PAGE_BYTES: u64 = 8192;
/// More cores than this make booting under emulation slower, not faster.
const DEFAULT_CPUS: u16 = 2;
/// q35's limit without an IOMMU.
const MAX_CPUS: u16 = 255;
/// An emulated boot takes 3 s alone on two cores; a busy machine may need several times that.
const DEFAULT_BOOT_DEADLINE: Duration = Duration::from_secs(90);

/// What is asked for. [`MachineSpec::new`] has the defaults; change fields, then [`MachineConfig::new`].
#[derive(Debug, Clone)]
pub struct MachineSpec {
    /// Kernel, modules and busybox.
    pub assets: GuestAssets,
    /// Guest memory in bytes.
    pub memory_bytes: u64,
    /// Number of virtual processors.
    pub cpus: u16,
    /// How to run the guest's instructions.
    pub accel: AccelRequest,
    /// Whether it boots, or goes on from one that was booted before.
    pub templates: Templates,
    /// How long until the machine can be given a command, and from then on until the command has started.
    pub boot_deadline: Duration,
    /// The QEMU program, by path or looked up in `PATH`.
    pub qemu: PathBuf,
}

impl MachineSpec {
    /// A machine with the defaults: 512 MiB, at most two processors, no templates, 90 s to boot.
    #[must_use]
    pub fn new(assets: GuestAssets) -> Self {
        let host_cpus =
            std::thread::available_parallelism().map_or(1, |n| u16::try_from(n.get()).unwrap_or(u16::MAX));
        Self {
            assets,
            memory_bytes: DEFAULT_MEMORY_BYTES,
            cpus: host_cpus.min(DEFAULT_CPUS),
            accel: AccelRequest::Auto,
            templates: Templates::Never,
            boot_deadline: DEFAULT_BOOT_DEADLINE,
            qemu: "qemu-system-x86_64".into(),
        }
    }
}

/// A machine there can't be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MachineConfigError {
    /// Too little memory, or not whole pages.
    #[error("{bytes} bytes of memory: at least {MIN_MEMORY_BYTES} and a multiple of {PAGE_BYTES} are needed")]
    Memory {
        /// What was asked for.
        bytes: u64,
    },
    /// No processors, or more than the machine can have.
    #[error("{cpus} processors: 1 to {MAX_CPUS} are possible")]
    Cpus {
        /// What was asked for.
        cpus: u16,
    },
}

/// A machine that can be started.
#[derive(Debug, Clone)]
pub struct MachineConfig(MachineSpec);

impl MachineConfig {
    /// Checks what is asked for.
    ///
    /// # Errors
    /// [`MachineConfigError`] names the first thing that can't be.
    pub fn new(spec: MachineSpec) -> Result<Self, MachineConfigError> {
        if spec.memory_bytes < MIN_MEMORY_BYTES || !spec.memory_bytes.is_multiple_of(PAGE_BYTES) {
            return Err(MachineConfigError::Memory {
                bytes: spec.memory_bytes,
            });
        }
        if spec.cpus == 0 || spec.cpus > MAX_CPUS {
            return Err(MachineConfigError::Cpus { cpus: spec.cpus });
        }
        Ok(Self(spec))
    }

    /// What was asked for, checked.
    #[must_use]
    pub fn spec(&self) -> &MachineSpec {
        &self.0
    }
}

/// On made-up assets; nothing that is pure reads them.
#[cfg(test)]
pub(crate) fn made_up_spec() -> MachineSpec {
    MachineSpec {
        cpus: 2,
        ..MachineSpec::new(GuestAssets::made_up())
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn refused(change: impl FnOnce(&mut MachineSpec)) -> MachineConfigError {
        let mut spec = made_up_spec();
        change(&mut spec);
        MachineConfig::new(spec).unwrap_err()
    }

    #[test]
    fn the_defaults_are_valid_and_each_limit_has_its_error() {
        let config = MachineConfig::new(made_up_spec()).unwrap();
        assert_eq!(config.spec().memory_bytes, 512 << 20);
        assert_eq!(
            refused(|s| s.memory_bytes = 1 << 20),
            MachineConfigError::Memory { bytes: 1 << 20 }
        );
        assert!(matches!(
            refused(|s| s.memory_bytes += 1),
            MachineConfigError::Memory { .. }
        ));
        assert!(matches!(
            refused(|s| s.memory_bytes += 4096),
            MachineConfigError::Memory { .. }
        ));
        assert_eq!(refused(|s| s.cpus = 0), MachineConfigError::Cpus { cpus: 0 });
        assert_eq!(refused(|s| s.cpus = 256), MachineConfigError::Cpus { cpus: 256 });
    }
}
