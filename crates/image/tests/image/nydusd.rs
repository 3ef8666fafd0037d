//! The genuine nydusd serves an image of ours on this host, by FUSE.

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use serde_json::json;

/// How long a daemon may take to mount, on a slow machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// A daemon with its mount; both end with it.
pub(crate) struct Served {
    daemon: Child,
    mountpoint: PathBuf,
}

impl Served {
    /// Serves `bootstrap`, with blobs from `blob_dir`, below `dir`.
    pub(crate) fn start(nydusd: &Path, bootstrap: &Path, blob_dir: &Path, dir: &Path) -> Self {
        let (cache, mountpoint, config) = (dir.join("cache"), dir.join("mnt"), dir.join("config.json"));
        fs::create_dir(&cache).unwrap();
        fs::create_dir(&mountpoint).unwrap();
        let text = json!({
            "version": 2,
            "id": "image",
            "backend": { "type": "localfs", "localfs": { "dir": blob_dir } },
            "cache": { "type": "blobcache", "filecache": { "work_dir": cache } },
            "rafs": { "mode": "direct", "enable_xattr": true },
        });
        fs::write(&config, text.to_string()).unwrap();
        let mounts = fs::File::open("/proc/self/mountinfo").unwrap();
        let daemon = Command::new(nydusd)
            .args(["fuse", "--rlimit-nofile", "0", "--log-level", "error", "--config"])
            .arg(&config)
            .arg("--bootstrap")
            .arg(bootstrap)
            .arg("--mountpoint")
            .arg(&mountpoint)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let mut served = Self { daemon, mountpoint };
        let deadline = Instant::now() + DEADLINE;
        while !served.is_mounted() {
            assert!(served.daemon.try_wait().unwrap().is_none(), "nydusd has ended");
            let left = deadline
                .checked_duration_since(Instant::now())
                .expect("nydusd mounts nothing");
            // The kernel tells of every change to the table of mounts.
            let mut fds = [PollFd::from_borrowed_fd(mounts.as_fd(), PollFlags::PRI)];
            let most = left.min(Duration::from_millis(500));
            poll(&mut fds, Some(&most.try_into().unwrap())).unwrap();
        }
        served
    }

    pub(crate) fn root(&self) -> &Path {
        &self.mountpoint
    }

    fn is_mounted(&self) -> bool {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        table.contains(&format!(" {} ", self.mountpoint.display()))
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.mountpoint, rustix::mount::UnmountFlags::DETACH);
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}
