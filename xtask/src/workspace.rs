//! Where things are: the repository's root and what tasks put below `target/`.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::TaskError;

/// The repository this task was started in.
#[derive(Debug)]
pub(crate) struct Workspace {
    root: PathBuf,
    target: PathBuf,
}

impl Workspace {
    /// Cargo tells a program that it runs where its package is.
    pub(crate) fn find() -> Result<Self, TaskError> {
        let package = env::var_os("CARGO_MANIFEST_DIR").ok_or(TaskError::NotByCargo)?;
        let root = Path::new(&package)
            .parent()
            .ok_or(TaskError::NotByCargo)?
            .to_owned();
        let target =
            env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |dir| root.join(dir));
        Ok(Self { root, target })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Genuine programs to compare with: `bin/` below this.
    pub(crate) fn peers(&self) -> PathBuf {
        self.target.join("peers")
    }

    /// Kernel, modules and busybox of the microVM.
    pub(crate) fn guest(&self) -> PathBuf {
        self.target.join("guest")
    }

    /// Tools that a task installed for itself: `bin/` below this.
    pub(crate) fn tools(&self) -> PathBuf {
        self.target.join("tools")
    }

    /// Fuzzing programs and what they found out.
    pub(crate) fn fuzz(&self) -> PathBuf {
        self.target.join("fuzz")
    }

    /// The demo's image, share and cache.
    pub(crate) fn demo(&self) -> PathBuf {
        self.target.join("demo")
    }

    /// A Debian root file system, as a tar archive.
    pub(crate) fn rootfs(&self) -> PathBuf {
        self.target.join("rootfs.tar")
    }

    /// One that has more in it.
    pub(crate) fn rootfs_with(&self, what: &str) -> PathBuf {
        self.target.join(format!("rootfs-{what}.tar"))
    }

    /// The first, unpacked. The tests also look there by themselves.
    pub(crate) fn test_rootfs(&self) -> PathBuf {
        self.target.join("test-rootfs/rootfs")
    }

    /// Figures of benchmarks.
    pub(crate) fn bench(&self) -> PathBuf {
        self.target.join("bench")
    }

    /// The command, built for use.
    pub(crate) fn release_binary(&self) -> PathBuf {
        self.target.join("release/nydusbox")
    }
}

/// Makes a directory and what is above it.
pub(crate) fn make_dir(path: &Path) -> Result<(), TaskError> {
    fs::create_dir_all(path).map_err(|source| TaskError::io("create", path, source))
}

/// Removes a directory or file, which need not be there.
pub(crate) fn remove(path: &Path) -> Result<(), TaskError> {
    let removed = match path.symlink_metadata() {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(|source| TaskError::io("remove", path, source)),
    }
}

/// Puts `new`, complete, where `path` is or was.
pub(crate) fn replace(new: &Path, path: &Path) -> Result<(), TaskError> {
    remove(path)?;
    fs::rename(new, path).map_err(|source| TaskError::io("create", path, source))
}
