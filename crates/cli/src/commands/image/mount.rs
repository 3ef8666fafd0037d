//! `nydusbox image mount`: an image on a directory of this host, to look around in.
//!
//! Serves in the foreground, in this process, with the code that serves guests; what a mount is, is the library's
//! (`nydusbox_fsd::HostMount`).

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::thread;

use clap::Args;
use nydusbox_fsd::{HostMount, HostMountError, outlive_truncation};
use nydusbox_image::StoredImage;
use nydusbox_image::source::{AccessOptions, ImageRef, Platform};
use nydusbox_protocol::{FsType, MountCommand};
use signal_hook::iterator::Signals;

use super::bar::{Bar, cancelled_by_signals};
use super::store;
use crate::commands::registry::RegistryArgs;
use crate::commands::stored::{FirstUseArgs, ca_files, rafs_config};
use crate::daemon_env;
use crate::data_dir::DataDirArg;
use crate::error::{Failure, INTERRUPTED, TAKEN};
use crate::signals;

/// Read-only, until Ctrl-C or `umount MOUNTPOINT`. What is read is fetched and kept in the cache that `run` uses.
#[derive(Debug, Args)]
pub(crate) struct MountArgs {
    /// Image: what `image build` made, or docker://HOST/REPOSITORY[:TAG], oci:DIR[:TAG], oci-archive:FILE[:TAG],
    /// docker-archive:FILE[:NAME:TAG] or dir:DIR, which is converted first unless it is in nydus' form
    image: ImageRef,
    /// Directory to mount it on
    mountpoint: PathBuf,
    /// Which of several images: OS/ARCH[/VARIANT]; this machine's unless given
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,
    #[command(flatten)]
    first_use: FirstUseArgs,
    #[command(flatten)]
    registry: RegistryArgs,
    #[command(flatten)]
    data_dir: DataDirArg,
}

pub(super) fn run(args: MountArgs) -> Result<(), Failure> {
    daemon_env::have_here(&ca_files(&args.image, &args.registry.access())?)?;
    let cancelled = cancelled_by_signals()?;
    let access = args.registry.access_until(&cancelled);
    let data_dir = args.data_dir.resolve()?;
    let store = store::open(&data_dir)?;
    let request = args
        .first_use
        .request(args.platform.as_ref())
        .access(access.clone());
    let bar = Bar::new(cancelled.clone());
    let result = store.get(&args.image, &request, &bar);
    bar.clear();
    let what = format!("mount {}", args.image);
    // Held for as long as it is mounted: nobody removes it from the store.
    let image = result.map_err(|e| store::failure(&what, &e))?;
    let command = command(&image, &data_dir.cache(), &access)?;
    // Also when its terminal goes: nothing else would unmount it.
    let mut signals = Signals::new(signals::ending()).map_err(|e| Failure::new("watch for signals", &e))?;
    if cancelled.load(Ordering::Relaxed) {
        return Err(Failure::plain("interrupted before anything was mounted").code(INTERRUPTED));
    }
    let name = image.reference.to_string();
    outlive_truncation().map_err(|e| Failure::new(&what, &e))?;
    signals::outlive_file_limit().map_err(|e| Failure::new(&what, &e))?;
    let mount = HostMount::start(&command, &args.mountpoint, &name).map_err(|e| failure(&what, &e))?;
    let stopper = mount.stopper();
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            if signals.forever().next().is_some() {
                stopper.unmount();
            }
        })
        .map_err(|e| Failure::new("watch for signals", &e))?;
    let told = writeln!(
        std::io::stdout(),
        "{name} is mounted on {}; Ctrl-C or `umount` ends it",
        args.mountpoint.display()
    );
    // Whoever closed our standard output still has the mount.
    if let Err(error) = told {
        tracing::debug!(%error, "nobody reads that it is mounted");
    }
    mount.wait().map(drop).map_err(|e| failure("unmount", &e))
}

fn command(image: &StoredImage, cache: &Path, access: &AccessOptions) -> Result<MountCommand, Failure> {
    let config = rafs_config(image, cache, access, None, false)?;
    let source = image
        .bootstrap
        .to_str()
        .ok_or_else(|| Failure::plain(format!("the path {} is not UTF-8", image.bootstrap.display())))?;
    Ok(MountCommand {
        fs_type: FsType::Rafs,
        source: source.to_owned(),
        config,
        prefetch_files: None,
        prefetch_parts: None,
        prefetch_program: None,
    })
}

fn failure(what: &str, error: &HostMountError) -> Failure {
    let failure = Failure::new(what, error);
    match error {
        HostMountError::Stale { mountpoint } => failure
            .hint(format!(
                "`umount {0}` or `fusermount3 -u {0}` removes it",
                mountpoint.display()
            ))
            .code(TAKEN),
        HostMountError::Occupied { .. } => failure.code(TAKEN),
        HostMountError::Device { .. } => {
            failure.hint("`modprobe fuse` has the kernel make it; in a container it has to be passed in")
        }
        HostMountError::NotPermitted => failure.hint("run it as root, or install the package fuse3"),
        _ => failure,
    }
}
