//! What the guest is booted from: a kernel, the modules it needs for the share, and a static busybox.
//!
//! [`GuestAssets::find`] looks below a directory shaped like a root file system: `/` on a host with the packages
//! installed, or a directory Debian packages were unpacked into. It reads and never writes. Next:
//! `guest/modules.rs` for dependencies, `initramfs.rs` for what is made of all this.

mod elf;
mod kernel;
mod modules;

use std::fs;
use std::path::{Path, PathBuf};

pub use kernel::{Kernel, KernelError};
pub use modules::{ModuleError, ModuleFile};

/// The modules the guest loads, besides whatever they depend on.
pub const WANTED_MODULES: [&str; 6] = [
    "virtio_pci",
    "virtio_console",
    "virtio_rng",
    "fuse",
    "virtiofs",
    "overlay",
];

/// Those of them without which init cannot speak to the host; first in the order.
pub(crate) const PORT_MODULES: [&str; 2] = ["virtio_pci", "virtio_console"];

/// Where a static busybox may be, relative to the root.
const BUSYBOX_PLACES: [&str; 2] = ["bin/busybox", "usr/bin/busybox"];

/// Why no guest can be booted from a directory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GuestAssetsError {
    /// No `boot/vmlinuz-*` below the root.
    #[error("no kernel: {root:?} has no boot/vmlinuz-*")]
    NoKernel {
        /// The directory searched.
        root: PathBuf,
    },
    /// The kernel's file is not usable.
    #[error("unusable kernel")]
    Kernel(#[source] KernelError),
    /// The kernel is there, its modules are not.
    #[error(
        "no modules for kernel {version}: neither {root:?}/lib/modules/{version} nor usr/lib/modules/{version} is a directory"
    )]
    NoModules {
        /// The directory searched.
        root: PathBuf,
        /// The kernel's release.
        version: String,
    },
    /// A module is missing or unusable.
    #[error("modules of kernel {version} are not sufficient")]
    Module {
        /// The kernel's release.
        version: String,
        /// Which module and why.
        #[source]
        source: ModuleError,
    },
    /// No busybox below the root.
    #[error("no busybox: {root:?} has neither bin/busybox nor usr/bin/busybox")]
    NoBusybox {
        /// The directory searched.
        root: PathBuf,
    },
    /// The busybox needs shared libraries, which the initramfs doesn't have.
    #[error("busybox {path:?} is not a static x86-64 executable")]
    BusyboxNotStatic {
        /// The file.
        path: PathBuf,
    },
    /// A file that is there can't be read.
    #[error("cannot read {path:?}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// A kernel, its modules in load order and a static busybox: found, and checked to be what they should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestAssets {
    kernel: Kernel,
    modules: Vec<ModuleFile>,
    busybox: PathBuf,
}

impl GuestAssets {
    /// Finds the newest kernel below `root` that has modules, and what belongs to it.
    ///
    /// # Errors
    /// [`GuestAssetsError`] names the first thing that is missing or unusable.
    pub fn find(root: &Path) -> Result<Self, GuestAssetsError> {
        let (kernel, modules) = newest_kernel(root)?;
        Ok(Self {
            kernel,
            modules,
            busybox: static_busybox(root)?,
        })
    }

    /// As [`Self::find`], with the kernel in `image`; its modules must still be below `root`.
    ///
    /// # Errors
    /// [`GuestAssetsError`] names the first thing that is missing or unusable.
    pub fn find_for_kernel(root: &Path, image: &Path) -> Result<Self, GuestAssetsError> {
        let kernel = Kernel::open(image).map_err(GuestAssetsError::Kernel)?;
        Ok(Self {
            modules: modules_for(root, &kernel)?,
            kernel,
            busybox: static_busybox(root)?,
        })
    }

    /// Assets that name files nobody has.
    #[cfg(test)]
    pub(crate) fn made_up() -> Self {
        Self {
            kernel: Kernel::made_up("/boot/vmlinuz-6.1.0-1-cloud-amd64", "6.1.0-1-cloud-amd64"),
            modules: Vec::new(),
            busybox: "/bin/busybox".into(),
        }
    }

    /// The kernel.
    #[must_use]
    pub fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// The modules, each after those it depends on. Built-in ones are left out.
    #[must_use]
    pub fn modules(&self) -> &[ModuleFile] {
        &self.modules
    }

    /// The static busybox.
    #[must_use]
    pub fn busybox(&self) -> &Path {
        &self.busybox
    }
}

/// The newest kernel below `root` that has modules, and the modules.
pub(crate) fn newest_kernel(root: &Path) -> Result<(Kernel, Vec<ModuleFile>), GuestAssetsError> {
    let kernels = Kernel::installed(root).map_err(GuestAssetsError::Kernel)?;
    let newest = kernels.first().ok_or_else(|| GuestAssetsError::NoKernel {
        root: root.to_owned(),
    })?;
    // A kernel whose package was half removed keeps its image; the next older one may be complete.
    let kernel = kernels
        .iter()
        .find(|k| modules_dir(root, k.version()).is_some())
        .unwrap_or(newest);
    Ok((kernel.clone(), modules_for(root, kernel)?))
}

fn modules_for(root: &Path, kernel: &Kernel) -> Result<Vec<ModuleFile>, GuestAssetsError> {
    let version = kernel.version().to_owned();
    let dir = modules_dir(root, &version).ok_or_else(|| GuestAssetsError::NoModules {
        root: root.to_owned(),
        version: version.clone(),
    })?;
    modules::load_order(&dir, &WANTED_MODULES).map_err(|source| GuestAssetsError::Module { version, source })
}

fn modules_dir(root: &Path, version: &str) -> Option<PathBuf> {
    ["lib/modules", "usr/lib/modules"]
        .map(|place| root.join(place).join(version))
        .into_iter()
        .find(|dir| dir.is_dir())
}

/// The first static busybox below `root`.
///
/// # Errors
/// [`GuestAssetsError`] when there is none, or it is linked dynamically.
pub(crate) fn static_busybox(root: &Path) -> Result<PathBuf, GuestAssetsError> {
    let path = BUSYBOX_PLACES
        .map(|place| root.join(place))
        .into_iter()
        .find(|path| path.is_file())
        .ok_or_else(|| GuestAssetsError::NoBusybox {
            root: root.to_owned(),
        })?;
    let file = fs::read(&path).map_err(|source| GuestAssetsError::Read {
        path: path.clone(),
        source,
    })?;
    if elf::is_static_executable(&file) {
        Ok(path)
    } else {
        Err(GuestAssetsError::BusyboxNotStatic { path })
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn an_empty_directory_lacks_a_kernel() {
        let root = tempfile::tempdir().unwrap();
        assert!(matches!(
            GuestAssets::find(root.path()),
            Err(GuestAssetsError::NoKernel { .. })
        ));
    }

    #[test]
    fn a_dynamic_busybox_is_refused() {
        let root = tempfile::tempdir().unwrap();
        assert!(matches!(
            static_busybox(root.path()),
            Err(GuestAssetsError::NoBusybox { .. })
        ));
        fs::create_dir_all(root.path().join("usr/bin")).unwrap();
        // The test's own executable is a dynamic ELF.
        fs::copy(
            std::env::current_exe().unwrap(),
            root.path().join("usr/bin/busybox"),
        )
        .unwrap();
        assert!(matches!(
            static_busybox(root.path()),
            Err(GuestAssetsError::BusyboxNotStatic { .. })
        ));
    }

    #[test]
    fn a_kernel_without_modules_is_named() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("boot")).unwrap();
        fs::write(
            root.path().join("boot/vmlinuz-6.1.0-9-x"),
            kernel::tests::image("6.1.0-9-x"),
        )
        .unwrap();
        let error = GuestAssets::find(root.path()).unwrap_err();
        assert!(matches!(error, GuestAssetsError::NoModules { version, .. } if version == "6.1.0-9-x"));
    }
}
