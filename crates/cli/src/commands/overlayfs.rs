//! `nydusbox overlayfs`: mounts an overlay whose options may hold some that are meant for a runtime.
//!
//! The mount helper of type `fuse.nydus-overlayfs`. What the options mean and how they are made to fit is decided in
//! nydusbox-rootfs ([`OverlayMount`]); here directories are opened and the mount is made. Options can hold registry
//! credentials, so no message has one in it. Under the name `nydus-overlayfs`, see `nydus_overlayfs.rs`.

use std::ffi::{CString, NulError};
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;

use clap::Args;
use nydusbox_rootfs::{MountFlag, MountPlan, OverlayMount, OverlayMountError, OverlayRole, TooMuchData};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountFlags;

use crate::error::{FAILED, Failure};

#[derive(Debug, Args)]
pub(crate) struct OverlayfsArgs {
    /// Type of the file system; always `overlay`
    #[arg(value_name = "overlay", value_parser = ["overlay"], hide_possible_values = true)]
    source: String,
    /// Directory to mount on
    target: PathBuf,
    /// Mount options, separated by commas; can be repeated. `extraoption` and `io.katacontainers.volume` are dropped
    #[arg(short = 'o', value_name = "OPTIONS", required = true)]
    options: Vec<Options>,
    /// Check the options, and mount nothing
    #[arg(short)]
    fake: bool,
    /// Accepted for mount(8): there is no mtab to leave alone
    #[arg(short)]
    no_mtab: bool,
    /// Accepted for mount(8): the kernel judges overlayfs' own options
    #[arg(short)]
    sloppy: bool,
    /// Accepted for mount(8): there is nothing more to say
    #[arg(short)]
    verbose: bool,
    /// Accepted for mount(8): the type this helper was found by
    #[arg(short = 't', value_name = "TYPE")]
    mount_type: Option<String>,
}

/// The value of one `-o`, which may hold credentials.
#[derive(Clone)]
struct Options(String);

impl FromStr for Options {
    type Err = std::convert::Infallible;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Options({} bytes)", self.0.len())
    }
}

/// Why the overlay was not mounted.
#[derive(Debug, thiserror::Error)]
enum OverlayfsError {
    #[error(transparent)]
    Options(#[from] OverlayMountError),
    #[error("the target is no directory to mount on")]
    Target(#[source] io::Error),
    #[error("{} {} cannot be used", role.as_str(), path.display())]
    Directory {
        role: OverlayRole,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot change to {}", path.display())]
    Change {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    TooMuch(#[from] TooMuchData),
    #[error("the options have a NUL byte")]
    Nul(#[from] NulError),
    #[error("the kernel refuses it")]
    Mount {
        layers_only: Option<usize>,
        #[source]
        errno: Errno,
    },
}

impl OverlayfsError {
    fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Mount { errno, .. } if *errno == Errno::PERM => {
                Some("mounting needs root, or a user and mount namespace of its own")
            }
            Self::Mount {
                layers_only: Some(1), ..
            } => Some("without an upperdir an overlay needs two lower directories"),
            Self::Mount { .. } => Some("the kernel's log says why: dmesg | grep overlayfs"),
            _ => None,
        }
    }
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "every command takes its arguments by value"
)]
pub(crate) fn main(args: OverlayfsArgs) -> ExitCode {
    match mount(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let failure = Failure::new(&format!("mount an overlay on {}", args.target.display()), &error);
            let failure = match error.hint() {
                Some(hint) => failure.hint(hint),
                None => failure,
            };
            failure.report(FAILED)
        }
    }
}

fn mount(args: &OverlayfsArgs) -> Result<(), OverlayfsError> {
    let overlay = OverlayMount::parse(args.options.iter().map(|options| options.0.as_str()))?;
    // The working directory may change before the mount.
    let target = args.target.canonicalize().map_err(OverlayfsError::Target)?;
    directory(&target).map_err(OverlayfsError::Target)?;
    for (role, path) in overlay.directories() {
        directory(&path).map_err(|source| OverlayfsError::Directory { role, path, source })?;
    }
    if args.fake {
        return Ok(());
    }
    // Open until the mount is made: their numbers are its options.
    let mut open = Vec::new();
    let data = match overlay.plan() {
        MountPlan::AsGiven { data } => data,
        MountPlan::Relative { dir, data } => {
            change_to(&dir)?;
            data
        }
        MountPlan::ByDescriptor => {
            for (role, path) in overlay.directories() {
                let opened = open_path(&path);
                open.push(opened.map_err(|source| OverlayfsError::Directory { role, path, source })?);
            }
            change_to(Path::new("/proc/self/fd"))?;
            let numbers: Vec<i32> = open.iter().map(AsRawFd::as_raw_fd).collect();
            overlay.data_by_descriptor(&numbers)?
        }
    };
    let data = CString::new(data)?;
    rustix::mount::mount("overlay", &target, "overlay", flags(&overlay), data.as_c_str()).map_err(|errno| {
        let writable = overlay.directories().any(|(role, _)| role == OverlayRole::Upper);
        OverlayfsError::Mount {
            layers_only: (!writable).then(|| overlay.directories().count()),
            errno,
        }
    })
}

/// mount(2) says "no such file or directory" without saying which.
fn directory(path: &Path) -> io::Result<()> {
    if path.metadata()?.is_dir() {
        Ok(())
    } else {
        Err(io::ErrorKind::NotADirectory.into())
    }
}

fn open_path(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

fn change_to(path: &Path) -> Result<(), OverlayfsError> {
    std::env::set_current_dir(path).map_err(|source| OverlayfsError::Change {
        path: path.to_owned(),
        source,
    })
}

fn flags(overlay: &OverlayMount) -> MountFlags {
    let flag = |flag: &MountFlag| match flag {
        MountFlag::Ro => MountFlags::RDONLY,
        MountFlag::Nosuid => MountFlags::NOSUID,
        MountFlag::Nodev => MountFlags::NODEV,
        MountFlag::Noexec => MountFlags::NOEXEC,
        MountFlag::Noatime => MountFlags::NOATIME,
        MountFlag::Nodiratime => MountFlags::NODIRATIME,
        MountFlag::Relatime => MountFlags::RELATIME,
        MountFlag::Strictatime => MountFlags::STRICTATIME,
        MountFlag::Sync => MountFlags::SYNCHRONOUS,
        MountFlag::Dirsync => MountFlags::DIRSYNC,
    };
    overlay.flags().iter().map(flag).collect()
}
