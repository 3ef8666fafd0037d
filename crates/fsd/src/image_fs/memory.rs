//! A file system in memory for small files that are this process' alone.
//!
//! It has no place in any tree of files: nobody else sees it, and it goes with the process, however that ends.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use rustix::fs::fstat;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
};

struct Memory {
    path: PathBuf,
    /// The path leads through it.
    _root: OwnedFd,
}

/// Its root, made when it is first asked for. `None` where it is not to be had: it takes CAP_SYS_ADMIN, and `/proc`.
pub(super) fn dir() -> Option<&'static Path> {
    static MEMORY: LazyLock<Option<Memory>> = LazyLock::new(|| {
        Memory::make()
            .inspect_err(|error| tracing::debug!(%error, "nydus' files are kept in the cache directories"))
            .ok()
    });
    MEMORY.as_ref().map(|memory| memory.path.as_path())
}

impl Memory {
    fn make() -> io::Result<Self> {
        let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(context.as_fd(), "mode", "0700")?;
        fsconfig_create(context.as_fd())?;
        let hardened = MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let root = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, hardened)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", root.as_raw_fd()));
        // Another PID namespace's `/proc` has no such name, or another one's file.
        let (there, here) = (fs::metadata(&path)?, fstat(&root)?);
        if (there.dev(), there.ino()) != (here.st_dev, here.st_ino) {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(Self { path, _root: root })
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn files_in_it_are_found_by_their_paths_and_nowhere_else() {
        let Some(dir) = dir() else {
            eprintln!("skipped: takes CAP_SYS_ADMIN");
            return;
        };
        fs::write(dir.join("file"), "content").unwrap();
        assert_eq!(fs::read_to_string(dir.join("file")).unwrap(), "content");
        let device = fs::metadata(dir).unwrap().dev();
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(&format!(" {major}:{minor} ")), "{mounts}");
        fs::remove_file(dir.join("file")).unwrap();
    }
}
