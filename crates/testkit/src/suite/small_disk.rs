//! A file system with little room, for as long as it lives.

use std::ffi::CString;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// A tmpfs of a given size, to which its owner only writes.
#[derive(Debug)]
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Makes one at a path that is not there yet; `size` as in `mount -o size=`. `None`, with the reason printed,
    /// where that is not permitted.
    pub fn mount(at: PathBuf, size: &str) -> Option<Self> {
        let options = CString::new(format!("size={size},mode=0755")).ok()?;
        let mounted = fs::create_dir(&at).and_then(|()| {
            Ok(mount(
                "tmpfs",
                &at,
                "tmpfs",
                MountFlags::empty(),
                options.as_c_str(),
            )?)
        });
        match mounted {
            Ok(()) => Some(Self(at)),
            Err(e) => {
                eprintln!("skipped: no tmpfs can be mounted here: {e}");
                None
            }
        }
    }

    /// Fills it up with a file, whose path is given.
    ///
    /// # Panics
    /// If the file cannot be made.
    #[expect(clippy::unwrap_used, reason = "a suite fails by panicking")]
    pub fn fill(&self) -> PathBuf {
        let path = self.0.join("filler");
        let mut file = fs::File::create(&path).unwrap();
        while file.write_all(&[1; 4096]).is_ok() {}
        path
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a daemon that failed the test may still have files there.
        let _unmounted = unmount(&self.0, UnmountFlags::DETACH);
    }
}
