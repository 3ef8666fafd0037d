//! A genuine nydusd with a RAFS image made by the genuine nydus-image, mounted as Kata mounts them.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nydusbox_rootfs::{ContainerId, OverlayPlan, ShareDevice, ShareSocket};
use nydusbox_vmm::{GuestAssets, MachineSpec, VmSpec};
use rustix::fs::inotify;

use super::prerequisites;
use crate::peers::Peer;

/// A nydusd serving `/containers`, `/share0` and container `c1`'s RAFS.
#[derive(Debug)]
pub struct KataSandbox {
    root: tempfile::TempDir,
    assets: GuestAssets,
    nydusd: Child,
}

impl KataSandbox {
    /// `None`, with the reason printed, where peers or guest are absent.
    pub fn new() -> Option<Self> {
        let (program, assets) = prerequisites::find(Peer::Nydusd)?;
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        for dir in [
            "source/bin",
            "source/etc",
            "blobs",
            "cache",
            "share",
            "vm",
            "shared/c1/snapshotdir/fs",
        ] {
            fs::create_dir_all(at(dir)).unwrap();
        }
        fs::create_dir(at("shared/c1/snapshotdir/work")).unwrap();
        fs::copy(assets.busybox(), at("source/bin/busybox")).unwrap();
        for applet in ["sh", "cat", "cp"] {
            std::os::unix::fs::symlink("busybox", at("source/bin").join(applet)).unwrap();
        }
        fs::write(at("source/etc/greeting"), "hello\n").unwrap();
        let data: Vec<u8> = (0..1_048_576u32)
            .map(|n| (n.wrapping_mul(2_654_435_761) >> 24).to_le_bytes()[0])
            .collect();
        fs::write(at("source/data"), data).unwrap();
        let made = Command::new(program.with_file_name("nydus-image"))
            .args([
                "create",
                "--type",
                "dir-rafs",
                "--fs-version",
                "6",
                "--log-level",
                "error",
                "--bootstrap",
            ])
            .arg(at("bootstrap"))
            .arg("--blob-dir")
            .arg(at("blobs"))
            .arg(at("source"))
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(made.success());

        let created = watch(root.path());
        let nydusd = Command::new(&program)
            .args([
                "virtiofs",
                "--log-level",
                "error",
                "--rlimit-nofile",
                "0",
                "--sock",
            ])
            .arg(at("fs.sock"))
            .arg("--apisock")
            .arg(at("api.sock"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let sandbox = Self { root, assets, nydusd };
        wait_for(created, "api.sock");
        let config = serde_json::json!({
            "device": {
                "backend": { "type": "localfs", "config": { "dir": sandbox.at("blobs") } },
                "cache": { "type": "blobcache", "config": { "work_dir": sandbox.at("cache") } },
            },
            "mode": "direct",
        });
        sandbox.mount("/containers", "passthrough_fs", "shared", "");
        sandbox.mount("/share0", "passthrough_fs", "share", "");
        sandbox.mount("/rafs/c1/lowerdir", "rafs", "bootstrap", &config.to_string());
        Some(sandbox)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn mount(&self, mount_point: &str, fs_type: &str, source: &str, config: &str) {
        let body = serde_json::json!({ "fs_type": fs_type, "source": self.at(source), "config": config })
            .to_string();
        // The socket's name appears when it is bound, a moment before it listens.
        let mut api = loop {
            match UnixStream::connect(self.at("api.sock")) {
                Ok(api) => break api,
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                    std::thread::yield_now();
                }
                Err(error) => panic!("{error}"),
            }
        };
        write!(
            api,
            "POST /api/v1/mount?mountpoint={mount_point} HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        let mut answer = [0; 1024];
        let read = api.read(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer[..read]);
        assert!(answer.starts_with("HTTP/1.1 204"), "{mount_point}: {answer}");
    }

    /// A machine with the defaults.
    pub fn machine(&self) -> MachineSpec {
        MachineSpec::new(self.assets.clone())
    }

    /// What runs `command` on the image with the snapshot on top.
    pub fn spec(&self, command: &[&str]) -> VmSpec {
        VmSpec::new(
            ShareDevice::on(ShareSocket::new(self.at("fs.sock")).unwrap()),
            OverlayPlan::for_container(&ContainerId::new("c1").unwrap()),
            command.iter().map(Into::into).collect(),
        )
    }

    /// An empty directory for the machine.
    pub fn vm_dir(&self) -> PathBuf {
        self.at("vm")
    }

    /// A file of the image's source.
    pub fn source(&self, name: &str) -> PathBuf {
        self.at("source").join(name)
    }

    /// A file of the shared directory.
    pub fn share(&self, name: &str) -> PathBuf {
        self.at("share").join(name)
    }

    /// A file of the container's upper directory.
    pub fn upper(&self, name: &str) -> PathBuf {
        self.at("shared/c1/snapshotdir/fs").join(name)
    }
}

impl Drop for KataSandbox {
    fn drop(&mut self) {
        let _ = self.nydusd.kill();
        let _ = self.nydusd.wait();
    }
}

fn watch(dir: &Path) -> File {
    let events = inotify::init(inotify::CreateFlags::CLOEXEC).unwrap();
    inotify::add_watch(&events, dir, inotify::WatchFlags::CREATE).unwrap();
    events.into()
}

/// Returns when a file called `name` has been created in the watched directory.
fn wait_for(events: File, name: &str) {
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut reader = inotify::Reader::new(events, &mut buffer);
    loop {
        let event = reader.next().unwrap();
        if event
            .file_name()
            .is_some_and(|found| found.to_bytes() == name.as_bytes())
        {
            return;
        }
    }
}
