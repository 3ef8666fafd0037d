//! The host's side of a boot without an image: a directory tree and a daemon on it, genuine virtiofsd or ours.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use command_fds::CommandFdExt;
use nydusbox_rootfs::{ContainerId, GuestPath, OverlayPlan, ShareDevice, ShareSocket};
use nydusbox_vmm::{
    GuestAssets, GuestStdio, Machine, MachineConfig, MachineSpec, Vm, VmConfig, VmOutcome, VmSpec,
};

use super::prerequisites;
use super::sink::Sink;
use crate::peers::{self, Peer};

/// A path in the guest.
///
/// # Panics
/// If it is none.
pub fn path(text: &str) -> GuestPath {
    GuestPath::new(text).unwrap()
}

/// Which daemon serves.
#[derive(Debug, Clone, Copy)]
pub enum Server<'a> {
    /// The genuine virtiofsd, with these arguments.
    Virtiofsd(&'a [&'a str]),
    /// `nydusbox virtiofs`, of this executable.
    Nydusbox(&'a Path),
}

/// A served directory: `rootfs` (busybox), `share0`, and container `c1`'s snapshot directory. Everything goes with it.
#[derive(Debug)]
pub struct Host {
    root: tempfile::TempDir,
    assets: GuestAssets,
    daemon: Child,
}

impl Host {
    /// `None`, with the reason printed, where peers or guest are absent.
    pub fn new() -> Option<Self> {
        // overlayfs keeps what it must remember of the upper directory in trusted.* attributes.
        Self::with_daemon_arguments(&["--modcaps=+sys_admin"])
    }

    /// As [`Host::new`], with these arguments for the daemon instead of `--modcaps`.
    pub fn with_daemon_arguments(more: &[&str]) -> Option<Self> {
        Self::served_by(Server::Virtiofsd(more))
    }

    /// As [`Host::new`], with another daemon.
    ///
    /// # Panics
    /// If it does not start.
    pub fn served_by(server: Server<'_>) -> Option<Self> {
        let assets = prerequisites::guest()?.1;
        let mut command = match server {
            Server::Virtiofsd(more) => {
                let mut command = Command::new(peers::require(Peer::Virtiofsd).ok()?);
                command
                    .args([
                        "--sandbox",
                        "none",
                        "--xattr",
                        "--log-level",
                        "error",
                        "--fd",
                        "3",
                    ])
                    .args(more);
                command
            }
            Server::Nydusbox(program) => {
                let mut command = Command::new(program);
                command.args(["virtiofs", "--log-level", "error", "--sock-fd", "3"]);
                command
            }
        };
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
        let daemon = command
            .arg("--shared-dir")
            .arg(&served)
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
    pub fn dir(&self, name: &str) -> PathBuf {
        self.root.path().join("served").join(name)
    }

    /// Puts a program into the served root's `/bin`, and the libraries it is linked to where they are on this machine.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn install(&self, program: &Path) {
        let root = self.dir("rootfs");
        copy(program, &root.join("bin").join(program.file_name().unwrap()));
        for library in libraries(program) {
            copy(&library, &root.join(library.strip_prefix("/").unwrap()));
        }
    }

    /// A machine with the defaults.
    pub fn machine(&self) -> MachineSpec {
        MachineSpec::new(self.assets.clone())
    }

    /// Starts such a machine.
    ///
    /// # Panics
    /// If it can't be started.
    pub async fn start(&self, machine: MachineSpec) -> Machine {
        let config = MachineConfig::new(machine).unwrap();
        Machine::start(&config, &self.dir("vm")).await.unwrap()
    }

    /// Boots a machine with the defaults for `spec`.
    ///
    /// # Panics
    /// If it can't be started.
    pub async fn boot(&self, spec: VmSpec, stdio: GuestStdio) -> Vm {
        let config = VmConfig::new(spec).unwrap();
        self.start(self.machine()).await.run(&config, stdio)
    }

    /// What runs `command` on the served root.
    pub fn spec(&self, command: &[&str]) -> VmSpec {
        let socket = ShareSocket::new(self.root.path().join("fs.sock")).unwrap();
        let rootfs = OverlayPlan::for_container(&ContainerId::new("c1").unwrap())
            .with_lower(path("/run/kata-containers/shared/rootfs"))
            .unwrap();
        let command = command.iter().map(Into::into).collect();
        VmSpec::new(ShareDevice::on(socket), rootfs, command)
    }

    /// Boots, runs and waits: the outcome, stdout and stderr.
    pub async fn run(&self, spec: VmSpec) -> (VmOutcome, String, String) {
        self.run_in(self.start(self.machine()).await, spec).await
    }

    /// As [`Self::run`], in a machine that was started before.
    ///
    /// # Panics
    /// If the VMM's process is still there at the end.
    pub async fn run_in(&self, machine: Machine, spec: VmSpec) -> (VmOutcome, String, String) {
        let (stdout, stderr) = (Sink::default(), Sink::default());
        let stdio = GuestStdio::output(stdout.clone(), stderr.clone());
        let mut vm = machine.run(&VmConfig::new(spec).unwrap(), stdio);
        let outcome = vm.wait().await;
        self.assert_gone(&vm);
        let text = |sink: &Sink| String::from_utf8(sink.take()).unwrap();
        (outcome, text(&stdout), text(&stderr))
    }

    /// The VMM's process has been reaped: its number is free, or someone else's.
    pub fn assert_gone(&self, vm: &Vm) {
        let command_line = fs::read(format!("/proc/{}/cmdline", vm.pid())).unwrap_or_default();
        // It has a name, which is its directory.
        let ours = String::from_utf8_lossy(&command_line).contains(self.root.path().to_str().unwrap());
        assert!(!ours, "the VMM is still there");
    }

    /// Ends the daemon before its time.
    pub fn stop_daemon(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.stop_daemon();
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    // What is there may be a link to busybox.
    let _ = fs::remove_file(to);
    fs::copy(from, to).unwrap();
}

/// The files a program is linked to, as `ldd` lists them.
fn libraries(program: &Path) -> Vec<PathBuf> {
    let listed = Command::new("ldd").arg(program).output().unwrap();
    assert!(listed.status.success(), "{listed:?}");
    String::from_utf8_lossy(&listed.stdout)
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(PathBuf::from)
        .collect()
}
