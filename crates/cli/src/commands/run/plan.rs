//! What a run will do, decided before anything is done.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use nydusbox::{MountRequest, Program, SandboxConfig};
use nydusbox_image::{BlobsAt, ImageDir, RafsConfig};
use nydusbox_protocol::{ContainerId, MountPoint, SandboxId, ShareConfig};
use nydusbox_rootfs::{GuestPath, OverlayPlan, ShareDevice, ShareSocket};
use nydusbox_vmm::{GuestAssets, SharedDir, UpperDir, VmConfig, VmSpec};

use super::RunArgs;
use super::trace::Record;
use crate::error::Failure;

/// Where a share appears when no guest path is given.
const DEFAULT_SHARE_TARGET: &str = "/share";

/// Everything a run needs, checked.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) sandbox: SandboxConfig,
    /// Mounts besides `/containers`, in order.
    pub(super) mounts: Vec<MountRequest>,
    /// Where the image is mounted.
    pub(super) image_at: MountPoint,
    pub(super) vm: VmConfig,
    /// Everything on disk that belongs to this run only.
    pub(super) run_dir: PathBuf,
    /// What the daemon shows at `/containers`.
    pub(super) shared_dir: PathBuf,
    /// The snapshot's two directories, for the overlay.
    pub(super) snapshot_dirs: [PathBuf; 2],
    pub(super) cache_dir: PathBuf,
    pub(super) image_bytes: u64,
    pub(super) keep: bool,
    pub(super) verbose: bool,
    pub(super) report: Option<PathBuf>,
    pub(super) record: Option<Record>,
}

impl Plan {
    pub(super) fn new(args: RunArgs, state_dir: &Path) -> Result<Self, Failure> {
        let image = ImageDir::open(&args.image).map_err(|e| {
            Failure::new(&format!("open the image {}", args.image.display()), &e)
                .hint("make one with: nydusbox image build ROOTFS_DIR IMAGE_DIR")
        })?;
        let assets = match &args.kernel {
            None => GuestAssets::find(&args.guest_root),
            Some(kernel) => GuestAssets::find_for_kernel(&args.guest_root, kernel),
        }
        .map_err(|e| {
            Failure::new("find what the guest boots from", &e).hint("`nydusbox doctor` says what to install")
        })?;
        let privileged = rustix::process::geteuid().is_root();
        if args.keep && !privileged {
            return Err(Failure::plain(
                "--keep works for root only: for others the guest's writes stay in its memory",
            ));
        }
        let name = format!("run-{}", std::process::id());
        let id = SandboxId::new(&name).map_err(|e| Failure::new("name the sandbox", &e))?;
        let container = ContainerId::new("c1").map_err(|e| Failure::new("name the container", &e))?;
        let data_dir = args.data_dir.resolve()?;
        let run_dir = data_dir.run(&name);
        let cache_dir = data_dir.cache();
        let shared_dir = run_dir.join("shared");
        let snapshot_dir = shared_dir.join(container.as_str()).join("snapshotdir");
        let sandbox = sandbox(id, &args.daemon, state_dir)?;
        let rafs = RafsConfig {
            id: image_id(&image),
            blobs: BlobsAt::Directory(&image.blob_dir()),
            cache_dir: &cache_dir,
            prefetch: false,
        }
        .to_json()
        .map_err(|e| Failure::new("configure the image's mount", &e))?;
        let bootstrap = absolute(&image.bootstrap())?;
        let record = args.record_trace.map(|file| Record {
            file,
            bootstrap: bootstrap.clone(),
        });
        let image_mount = MountRequest::rafs(&container, bootstrap, rafs)
            .map_err(|e| Failure::new("mount the image", &e))?;
        let image_at = image_mount.at().clone();
        let mut mounts = vec![image_mount];
        let mut shares = Vec::new();
        for (number, text) in args.share.iter().enumerate() {
            let (mount, shown) = share(number, text, args.daemon == "builtin")?;
            mounts.push(mount);
            shares.push(shown);
        }
        let vm = vm(&sandbox, assets, &container, args.command, |spec| {
            spec.shares = shares;
            // Without privileges the daemon cannot keep an overlay's attributes on the host.
            if !privileged {
                spec.upper = UpperDir::GuestMemory;
            }
            spec.memory_bytes = args.memory.bytes();
            spec.accel = args.accel.into();
            if let Some(cpus) = args.cpus {
                spec.cpus = cpus;
            }
            spec.workdir = guest_path(&args.workdir)?;
            for pair in &args.env {
                let Some((key, value)) = pair.split_once('=') else {
                    return Err(Failure::plain(format!(
                        "--env {pair:?} is not of the form NAME=VALUE"
                    )));
                };
                spec.env.retain(|(known, _)| known != key);
                spec.env.push((key.into(), value.into()));
            }
            Ok(())
        })?;
        Ok(Self {
            sandbox,
            mounts,
            image_at,
            vm,
            run_dir,
            shared_dir,
            snapshot_dirs: [snapshot_dir.join("fs"), snapshot_dir.join("work")],
            cache_dir,
            image_bytes: image.summary().image_bytes(),
            keep: args.keep,
            verbose: args.verbose,
            report: args.report,
            record,
        })
    }
}

fn sandbox(id: SandboxId, daemon: &str, state_dir: &Path) -> Result<SandboxConfig, Failure> {
    let failed = |e: nydusbox::ProgramError| Failure::new("use the daemon", &e);
    let program = if daemon == "builtin" {
        let exe = std::env::current_exe().map_err(|e| Failure::new("find this executable", &e))?;
        Program::embedded(exe).map_err(failed)?
    } else {
        Program::stock(daemon).map_err(failed)?
    };
    SandboxConfig::new(id, state_dir, program).map_err(|e| Failure::new("configure the sandbox", &e))
}

fn vm(
    sandbox: &SandboxConfig,
    assets: GuestAssets,
    container: &ContainerId,
    command: Vec<OsString>,
    adjust: impl FnOnce(&mut VmSpec) -> Result<(), Failure>,
) -> Result<VmConfig, Failure> {
    let failed = |e: &(dyn std::error::Error + 'static)| Failure::new("configure the VM", e);
    let socket = ShareSocket::new(sandbox.vhost_socket().as_path()).map_err(|e| failed(&e))?;
    let container = nydusbox_rootfs::ContainerId::new(container.as_str()).map_err(|e| failed(&e))?;
    let mut spec = VmSpec::new(
        assets,
        ShareDevice::on(socket),
        OverlayPlan::for_container(&container),
        command,
    );
    adjust(&mut spec)?;
    VmConfig::new(spec).map_err(|e| failed(&e))
}

/// The id under which the cache's counters are kept: the same image has the same.
fn image_id(image: &ImageDir) -> &str {
    image
        .summary()
        .blobs
        .first()
        .map_or("empty", |blob| blob.id.as_str())
}

/// Reads `HOST_DIR[:GUEST_PATH[:ro]]`. The daemon that is `ours` keeps a guest from writing whatever that does; with
/// another one, the guest's mount is read-only.
fn share(number: usize, text: &str, ours: bool) -> Result<(MountRequest, SharedDir), Failure> {
    let mut parts = text.split(':');
    let host = parts.next().unwrap_or_default();
    let target = parts.next().unwrap_or(DEFAULT_SHARE_TARGET);
    let read_only = match (parts.next(), parts.next()) {
        (None, _) => false,
        (Some("ro"), None) => true,
        _ => {
            return Err(Failure::plain(format!(
                "--share {text:?} is not of the form HOST_DIR[:GUEST_PATH[:ro]]"
            )));
        }
    };
    let source = absolute(Path::new(host))?;
    if !source.is_dir() {
        return Err(Failure::plain(format!(
            "--share {host:?} is not a directory that can be read"
        )));
    }
    let at = format!("/share{number}");
    let mount_point = MountPoint::new(&at).map_err(|e| Failure::new("share a directory", &e))?;
    let request =
        MountRequest::passthrough(mount_point, source).map_err(|e| Failure::new("share a directory", &e))?;
    let request = request.with_share_config(&ShareConfig {
        read_only: read_only && ours,
        xattrmap: None,
    });
    Ok((
        request,
        SharedDir {
            source: guest_path(&at)?,
            target: guest_path(target)?,
            read_only,
        },
    ))
}

fn guest_path(text: &str) -> Result<GuestPath, Failure> {
    GuestPath::new(text).map_err(|e| Failure::new("use a path in the guest", &e))
}

fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(|e| Failure::new(&format!("use the path {}", path.display()), &e))
}
