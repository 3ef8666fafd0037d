//! The host's side of a boot: a directory tree, a genuine virtiofsd on it, and sinks for the command's output.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use command_fds::CommandFdExt;
use nydusbox_rootfs::{ContainerId, GuestPath, OverlayPlan, ShareDevice, ShareSocket};
use nydusbox_vmm::{GuestAssets, GuestStdio, Vm, VmConfig, VmOutcome, VmSpec};
use tokio::io::{AsyncReadExt, AsyncWrite, DuplexStream};
use tokio::sync::Notify;

pub(crate) fn path(text: &str) -> GuestPath {
    GuestPath::new(text).unwrap()
}

/// A served directory: `rootfs` (busybox), `share0`, and container `c1`'s snapshot directory. Everything goes with it.
pub(crate) struct Host {
    root: tempfile::TempDir,
    assets: GuestAssets,
    daemon: Child,
}

impl Host {
    /// `None`, with the reason printed, where peers or guest are absent.
    pub(crate) fn new() -> Option<Self> {
        // overlayfs keeps what it must remember of the upper directory in trusted.* attributes.
        Self::with_daemon_arguments(&["--modcaps=+sys_admin"])
    }

    /// As [`Host::new`], with these arguments for the daemon instead of `--modcaps`.
    pub(crate) fn with_daemon_arguments(more: &[&str]) -> Option<Self> {
        let (virtiofsd, assets) = crate::prerequisites::find("virtiofsd")?;
        let root = tempfile::tempdir().unwrap();
        let served = root.path().join("served");
        for dir in [
            "rootfs/bin",
            "rootfs/etc",
            "share0",
            "vm",
            "containers/c1/snapshotdir/fs",
            "containers/c1/snapshotdir/work",
        ] {
            fs::create_dir_all(served.join(dir)).unwrap();
        }
        fs::copy(assets.busybox(), served.join("rootfs/bin/busybox")).unwrap();
        for applet in ["sh", "cat", "hostname", "sleep", "true", "echo"] {
            std::os::unix::fs::symlink("busybox", served.join("rootfs/bin").join(applet)).unwrap();
        }
        // Handed down listening: QEMU may connect before the daemon has come up.
        let listener = UnixListener::bind(root.path().join("fs.sock")).unwrap();
        let daemon = Command::new(&virtiofsd)
            .args([
                "--sandbox",
                "none",
                "--xattr",
                "--log-level",
                "error",
                "--fd",
                "3",
                "--shared-dir",
            ])
            .arg(&served)
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .fd_mappings(vec![command_fds::FdMapping {
                parent_fd: listener.into(),
                child_fd: 3,
            }])
            .unwrap()
            .spawn()
            .unwrap();
        Some(Self { root, assets, daemon })
    }

    /// A directory of the served tree.
    pub(crate) fn dir(&self, name: &str) -> PathBuf {
        self.root.path().join("served").join(name)
    }

    /// A machine that runs `command` on the served root.
    pub(crate) fn spec(&self, command: &[&str]) -> VmSpec {
        let socket = ShareSocket::new(self.root.path().join("fs.sock")).unwrap();
        let rootfs = OverlayPlan::for_container(&ContainerId::new("c1").unwrap())
            .with_lower(path("/run/kata-containers/shared/rootfs"))
            .unwrap();
        let command = command.iter().map(Into::into).collect();
        VmSpec::new(self.assets.clone(), ShareDevice::on(socket), rootfs, command)
    }

    /// Boots, runs and waits: the outcome, stdout and stderr.
    pub(crate) async fn run(&self, spec: VmSpec) -> (VmOutcome, String, String) {
        let (stdout, stderr) = (Sink::default(), Sink::default());
        let stdio = GuestStdio::output(stdout.clone(), stderr.clone());
        let mut vm = Vm::boot(&VmConfig::new(spec).unwrap(), &self.dir("vm"), stdio)
            .await
            .unwrap();
        let outcome = vm.wait().await;
        self.assert_gone(&vm);
        let text = |sink: &Sink| String::from_utf8(sink.take()).unwrap();
        (outcome, text(&stdout), text(&stderr))
    }

    /// The VMM's process has been reaped: its number is free, or someone else's.
    pub(crate) fn assert_gone(&self, vm: &Vm) {
        let command_line = fs::read(format!("/proc/{}/cmdline", vm.pid())).unwrap_or_default();
        let socket = self.root.path().join("fs.sock");
        let ours = String::from_utf8_lossy(&command_line).contains(socket.to_str().unwrap());
        assert!(!ours, "the VMM is still there");
    }

    pub(crate) fn stop_daemon(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.stop_daemon();
    }
}

/// Returns when no process has this number. Bounded by the test runner's own limit.
pub(crate) async fn wait_until_gone(pid: u32) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    // A dropped child is killed at once and reaped by the runtime; until then the number is its own.
    while rustix::process::test_kill_process(pid).is_ok() {
        tokio::task::yield_now().await;
    }
}

/// Collects what is written to it.
#[derive(Clone, Default)]
pub(crate) struct Sink {
    bytes: Arc<Mutex<Vec<u8>>>,
    written: Arc<Notify>,
}

impl Sink {
    pub(crate) fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.bytes.lock().unwrap())
    }

    pub(crate) async fn wait_for(&self, bytes: &[u8]) {
        while self.bytes.lock().unwrap().as_slice() != bytes {
            self.written.notified().await;
        }
    }
}

impl AsyncWrite for Sink {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        self.bytes.lock().unwrap().extend_from_slice(bytes);
        self.written.notify_one();
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// A sink with room for 4 KiB, so that the writer always waits for the reader.
pub(crate) fn slow_sink() -> (DuplexStream, SlowReader) {
    let (sink, reader) = tokio::io::duplex(4096);
    (sink, SlowReader(reader))
}

pub(crate) struct SlowReader(DuplexStream);

impl SlowReader {
    /// Reads to the end, in small pieces.
    pub(crate) async fn read_all(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        let mut piece = [0; 1000];
        while let Ok(read @ 1..) = self.0.read(&mut piece).await {
            all.extend_from_slice(&piece[..read]);
            tokio::task::yield_now().await;
        }
        all
    }
}
