//! What a run will do, decided before anything is started. The image is had on the way, and it says what is run.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use nydusbox::{MountRequest, Program, SandboxConfig};
use nydusbox_image::StoredImage;
use nydusbox_protocol::{ContainerId, MountPoint, SandboxId, ShareConfig};
use nydusbox_rootfs::{GuestPath, OverlayPlan, ShareDevice, ShareSocket};
use nydusbox_vmm::{
    GuestAssets, Hostname, MachineConfig, MachineSpec, SharedDir, Templates, UpperDir, VmConfig, VmSpec,
};

use super::claim::Claim;
use super::places::Places;
use super::process::{Overrides, Process, ProcessError};
use super::trace::Record;
use super::{RunArgs, Template};
use crate::commands::stored::Served;
use crate::daemon_env;
use crate::data_dir::DataDir;
use crate::error::Failure;

/// Where a share appears when no guest path is given.
const DEFAULT_SHARE_TARGET: &str = "/share";

/// What `--daemon` says for ours.
pub(super) const BUILTIN: &str = "builtin";

/// Everything a run needs, checked.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) sandbox: SandboxConfig,
    /// Mounts besides `/containers`, in order.
    pub(super) mounts: Vec<MountRequest>,
    /// Where the image is mounted.
    pub(super) image_at: MountPoint,
    pub(super) vm: VmConfig,
    /// Whether the daemon is not ours.
    pub(super) is_stock: bool,
    /// Held until the run is over.
    pub(super) image: StoredImage,
    /// How long it took to have the image.
    pub(super) image_took: Duration,
    pub(super) keep: bool,
    pub(super) report: Option<PathBuf>,
    pub(super) record: Option<Record>,
}

/// What is decided before the image is had.
#[derive(Debug)]
pub(super) struct Draft {
    args: RunArgs,
    machine: MachineConfig,
    sandbox: SandboxConfig,
    container: ContainerId,
    data_dir: DataDir,
    shares: Vec<(MountRequest, SharedDir)>,
    overrides: Overrides,
    hostname: Hostname,
    privileged: bool,
}

impl Draft {
    /// The directories are not made yet, but nobody else has them.
    pub(super) fn new(mut args: RunArgs, state_dir: &Path) -> Result<(Self, Places), Failure> {
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
        let container = ContainerId::new("c1").map_err(|e| Failure::new("name the container", &e))?;
        let shares = args.share.iter().enumerate();
        let shares = shares.map(|(number, text)| share(number, text, args.daemon == BUILTIN));
        let shares = shares.collect::<Result<_, _>>()?;
        let overrides = Overrides {
            entrypoint: args.entrypoint.take(),
            command: std::mem::take(&mut args.command),
            user: args.user.take(),
            env: args
                .env
                .iter()
                .map(|pair| variable(pair))
                .collect::<Result<_, _>>()?,
            workdir: args.workdir.as_deref().map(guest_path).transpose()?,
        };
        let data_dir = args.data_dir.clone().resolve()?;
        let ca_files = args.stored.ca_files(&args.image)?;
        let trusted = match ca_files.is_empty() {
            true => None,
            false => Some(daemon_env::with_system_certificates(&ca_files)?),
        };
        // The first that is done; whatever else can be said without it has been.
        let claim = Claim::take(&data_dir)?;
        let id = SandboxId::new(claim.name()).map_err(|e| Failure::new("name the sandbox", &e))?;
        let hostname = match args.hostname.take() {
            Some(name) => name,
            None => Hostname::new(claim.name()).map_err(|e| Failure::new("name the guest", &e))?,
        };
        let places = Places::new(&data_dir, claim, &container, trusted);
        let mut program = daemon_env::beside_proxies(program(&args.daemon)?);
        if let Some(file) = places.certificates() {
            program = daemon_env::trusting(program, file);
        }
        let machine = machine(&args, assets, &data_dir)?;
        let sandbox = SandboxConfig::new(id, state_dir, program)
            .map_err(|e| Failure::new("configure the sandbox", &e))?;
        let draft = Self {
            machine,
            sandbox,
            container,
            data_dir,
            shares,
            overrides,
            hostname,
            privileged,
            args,
        };
        Ok((draft, places))
    }

    /// The machine, which is the same whatever the image is.
    pub(super) fn machine(&self) -> &MachineConfig {
        &self.machine
    }

    pub(super) fn is_verbose(&self) -> bool {
        self.args.verbose
    }

    /// Has the image, and completes the plan with what it says.
    pub(super) fn with_image(self, cancelled: &Arc<AtomicBool>) -> Result<Plan, Failure> {
        let args = self.args;
        let since = Instant::now();
        let Served {
            image,
            config,
            prefetch,
            prefetches,
        } = args.stored.obtain(&args.image, &self.data_dir, cancelled)?;
        let image_took = since.elapsed();
        let process = Process::new(&image.config, self.overrides).map_err(|e| {
            let failure = Failure::new(&format!("run {}", image.reference), &e);
            match e {
                ProcessError::NoCommand => failure.hint("give one: nydusbox run IMAGE -- COMMAND ARGS…"),
                ProcessError::User(_) => failure.hint("give another one with --user"),
                ProcessError::Workdir(_) => failure.hint("give another one with --workdir"),
            }
        })?;
        let record = args.record_trace.map(|file| Record {
            file,
            bootstrap: image.bootstrap.clone(),
        });
        let image_mount = MountRequest::rafs(&self.container, &image.bootstrap, config)
            .map_err(|e| Failure::new("mount the image", &e))?
            .with_prefetch_parts(prefetch)
            .with_prefetch_program(prefetches.then(|| process.programs()).into_iter().flatten());
        let image_at = image_mount.at().clone();
        let (share_mounts, shares): (Vec<_>, _) = self.shares.into_iter().unzip();
        let vm = vm(&self.sandbox, &self.container, process, |spec| {
            spec.shares = shares;
            spec.hostname = self.hostname;
            // Without privileges the daemon cannot keep an overlay's attributes on the host.
            if !self.privileged {
                spec.upper = UpperDir::GuestMemory;
            }
        })?;
        Ok(Plan {
            sandbox: self.sandbox,
            mounts: std::iter::once(image_mount).chain(share_mounts).collect(),
            image_at,
            vm,
            is_stock: args.daemon != BUILTIN,
            image,
            image_took,
            keep: args.keep,
            report: args.report,
            record,
        })
    }
}

fn program(daemon: &str) -> Result<Program, Failure> {
    let failed = |e: nydusbox::ProgramError| Failure::new("use the daemon", &e);
    if daemon == BUILTIN {
        let exe = std::env::current_exe().map_err(|e| Failure::new("find this executable", &e))?;
        Program::embedded(exe).map_err(failed)
    } else {
        Program::stock(daemon).map_err(failed)
    }
}

fn machine(args: &RunArgs, assets: GuestAssets, data_dir: &DataDir) -> Result<MachineConfig, Failure> {
    let mut spec = MachineSpec::new(assets);
    spec.memory_bytes = args.memory.bytes();
    spec.accel = args.accel.into();
    if let Some(cpus) = args.cpus {
        spec.cpus = cpus;
    }
    spec.templates = match args.template {
        Template::Never => Templates::Never,
        Template::Auto => Templates::WhenEmulated(data_dir.templates()),
        Template::Always => Templates::Always(data_dir.templates()),
    };
    MachineConfig::new(spec).map_err(|e| Failure::new("configure the VM", &e))
}

fn vm(
    sandbox: &SandboxConfig,
    container: &ContainerId,
    process: Process,
    adjust: impl FnOnce(&mut VmSpec),
) -> Result<VmConfig, Failure> {
    let failed = |e: &(dyn std::error::Error + 'static)| Failure::new("configure the VM", e);
    let socket = ShareSocket::new(sandbox.vhost_socket().as_path()).map_err(|e| failed(&e))?;
    let container = nydusbox_rootfs::ContainerId::new(container.as_str()).map_err(|e| failed(&e))?;
    let mut spec = VmSpec::new(
        ShareDevice::on(socket),
        OverlayPlan::for_container(&container),
        process.command,
    );
    for (name, value) in process.env {
        spec.env.retain(|(known, _)| *known != name);
        spec.env.push((name, value));
    }
    spec.user = process.user;
    spec.workdir = process.workdir;
    adjust(&mut spec);
    VmConfig::new(spec).map_err(|e| failed(&e))
}

/// Reads `NAME=VALUE`.
fn variable(pair: &str) -> Result<(OsString, OsString), Failure> {
    match pair.split_once('=') {
        Some((name, value)) => Ok((name.into(), value.into())),
        None => Err(Failure::plain(format!(
            "--env {pair:?} is not of the form NAME=VALUE"
        ))),
    }
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
