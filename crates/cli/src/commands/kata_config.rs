//! `nydusbox kata-config`: the section of Kata Containers' configuration that has it start our daemon.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use nydusbox_rootfs::kata::{KataHypervisor, hypervisor_section};
use nydusbox_rootfs::{HostPath, QueueSize};

use super::output;
use crate::error::Failure;

/// To be put in Kata's configuration file in place of the keys of the same names. Kata then starts the executable as
/// it starts nydusd.
#[derive(Debug, Args)]
pub(crate) struct KataConfigArgs {
    /// Hypervisor the section is for
    #[arg(long, value_enum, default_value_t = Hypervisor::Qemu)]
    hypervisor: Hypervisor,
    /// Executable Kata is to start [default: this one]
    #[arg(long, value_name = "PATH")]
    daemon: Option<PathBuf>,
    /// Entries in each virtqueue, a power of two up to 1024
    #[arg(long, value_name = "ENTRIES", default_value_t = QueueSize::default().entries())]
    queue_size: u16,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Hypervisor {
    /// QEMU
    Qemu,
    /// Cloud Hypervisor, as the Go runtime names it
    Clh,
    /// Cloud Hypervisor, as runtime-rs names it
    #[value(name = "cloud-hypervisor")]
    Cloud,
}

pub(crate) fn run(args: KataConfigArgs) -> Result<(), Failure> {
    let hypervisor = match args.hypervisor {
        Hypervisor::Qemu => KataHypervisor::Qemu,
        Hypervisor::Clh => KataHypervisor::Clh,
        Hypervisor::Cloud => KataHypervisor::CloudHypervisor,
    };
    let daemon = match args.daemon {
        Some(daemon) => daemon,
        None => std::env::current_exe().map_err(|e| Failure::new("find this executable's path", &e))?,
    };
    let daemon = executable(&daemon)?;
    let queue_size =
        QueueSize::new(args.queue_size).map_err(|e| Failure::new("use this --queue-size", &e))?;
    let section = hypervisor_section(hypervisor, &daemon, queue_size);
    output::line(section.trim_end_matches('\n')).map(drop)
}

/// Kata would find out with the first pod.
fn executable(path: &Path) -> Result<HostPath, Failure> {
    let refused =
        |e: &(dyn std::error::Error + 'static)| Failure::new(&format!("use {} as daemon", path.display()), e);
    rustix::fs::access(path, rustix::fs::Access::EXEC_OK).map_err(|e| refused(&e))?;
    let text = path
        .to_str()
        .ok_or_else(|| Failure::plain(format!("{} is not UTF-8", path.display())))?;
    HostPath::new(text).map_err(|e| refused(&e))
}
